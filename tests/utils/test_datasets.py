"""The data sets' entries: each is a choice of the configuration, and an entry is all that a data set needs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.config.flags import parse
from utils.config.identity import counted
from utils.config.load import load
from utils.config.schema import schemas
from utils.data.sources import load_dataset
from utils.datasets import DATASETS, Source, benchmark
from utils.errors import ConfigError, DataError


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_is_a_choice_of_the_configuration(name):
    assert load(None, {"dataset": name}).dataset == name
    assert name in schemas()["dataset"]["enum"]


def test_another_name_is_refused_with_all_there_are():
    with pytest.raises(ConfigError) as error:
        load(None, {"dataset": "birds"})
    assert f"expected one of {', '.join(DATASETS)}" in str(error.value)


@pytest.fixture
def birds(monkeypatch: pytest.MonkeyPatch) -> Source:
    """A data set of the test's own: one entry."""
    source = benchmark("my-birds", 2)
    monkeypatch.setitem(DATASETS, "birds", source)
    return source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of one colour each: 3 training images and 1 test image of a class."""
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("jay", "tit")):
            folder = tmp_path / "my-birds" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (100 * label, number, 0)).save(folder / f"{number}.png")
    return tmp_path


def test_a_new_entry_is_accepted_by_configuration_and_flags(birds):
    assert load(None, parse(["--dataset", "birds"]).flags).dataset == "birds"
    assert schemas()["dataset"]["enum"][-1] == "birds"
    assert "data_root" not in counted({"dataset": "birds", "data_root": "a"})  # it lies in a folder of its own


def test_a_new_entry_is_read(birds, root):
    data = load_dataset("birds", root)
    assert data.class_names == ("jay", "tit")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    colours = [np.asarray(Image.open(file))[0, 0].tolist() for file in data.train.images]
    assert colours == [[100 * label, number, 0] for label in (0, 1) for number in range(3)]


def test_a_new_entry_words_its_own_errors(birds, root):
    with pytest.raises(DataError) as error:
        load_dataset("birds", root / "nowhere")
    assert "my-birds/{train,test}/<class>/<image>, 2 classes" in str(error.value)
    assert birds.origin in str(error.value)
    extra = root / "my-birds"
    for split in ("train", "test"):
        (extra / split / "owl").mkdir()
    with pytest.raises(DataError, match="3 classes instead of 2"):
        load_dataset("birds", root)


def test_where_data_root_is_the_data_set_it_counts(monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", Source("folders", "", "{train,test}/<class>/<image>", "your own"))
    assert counted({"dataset": "mine", "data_root": "a"})["data_root"] == "a"
