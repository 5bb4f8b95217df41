"""The images on a run's record, and what is said when they differ."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from utils.data.contents import of_array
from utils.data.record import (
    Changes,
    accept_changes,
    changes_of_run,
    fingerprints,
    refuse_other_classes,
    refuse_other_data,
    write_record,
)
from utils.data.sources import ImageData, LeftOut, Split
from utils.errors import DataError


def split(values: list[int], labels: list[int]) -> Split:
    images = np.array(values, dtype=np.uint8).reshape(-1, 1, 1)
    return Split(images, np.array(labels), of_array(images))


DATA = ImageData(split([1, 2, 3], [0, 0, 1]), split([4, 5], [0, 1]), ("ca\tt", "dög"), (LeftOut("train/x", "why"),))


def other(
    train: Split | None = None, test: Split | None = None, names: tuple[str, ...] = DATA.class_names
) -> ImageData:
    return ImageData(train or DATA.train, test or DATA.test, names)


def test_the_record_says_what_the_run_was_made_of(tmp_path: Path):
    write_record(tmp_path, DATA)
    record = json.loads((tmp_path / "data.json").read_text("utf-8"))
    assert record["class_names"] == ["ca\tt", "dög"]
    assert (record["train"]["images"], record["test"]["images"]) == (3, 2)
    assert {half: record[half] for half in ("train", "test")} == fingerprints(DATA)
    assert record["left_out"] == [{"file": "train/x", "reason": "why"}]
    assert record["accepted_changes"] == []
    lines = gzip.decompress((tmp_path / "images.tsv.gz").read_bytes()).decode().splitlines()
    assert lines[2].split("\t") == ["train", "dög", "2", "1", DATA.train.contents[2].digest]
    assert len(lines) == 5


def test_the_record_says_which_folder_the_test_images_are_from(tmp_path: Path):
    write_record(tmp_path, replace(DATA, test_folder="val"))
    assert json.loads((tmp_path / "data.json").read_text("utf-8"))["test_folder"] == "val"
    fewer = replace(DATA, test=split([4], [0]), test_folder="test")
    with pytest.raises(DataError, match=r"test/dög/1; test images were read from val/, now from test/; restore them"):
        refuse_other_data(tmp_path, fewer, accept=False)
    with pytest.raises(DataError, match=r"now from test/; what to do$"):
        refuse_other_data(tmp_path, fewer, False, "what to do")


def test_equal_images_write_equal_files(tmp_path: Path):
    for name in ("a", "b"):
        write_record(tmp_path / name, DATA)
    assert (tmp_path / "a" / "images.tsv.gz").read_bytes() == (tmp_path / "b" / "images.tsv.gz").read_bytes()


@pytest.mark.parametrize("accept", [True, False])
def test_the_same_images_are_no_change(tmp_path: Path, accept: bool):
    write_record(tmp_path, DATA)
    assert not refuse_other_data(tmp_path, DATA, accept)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (other(train=split([1, 9, 3], [0, 0, 1])), "0 added, 1 changed, 0 missing; the first one: train/ca\tt/1"),
        (other(train=split([1, 2], [0, 0])), "0 added, 0 changed, 1 missing; the first one: train/dög/2"),
        (other(test=split([4, 5, 6], [0, 1, 1])), "1 added, 0 changed, 0 missing; the first one: test/dög/2"),
        (other(test=split([4, 5], [0, 0])), "1 added, 0 changed, 1 missing; the first one: test/dög/1"),
    ],
)
def test_other_images_are_refused_with_their_number_and_the_first(tmp_path: Path, data: ImageData, message: str):
    write_record(tmp_path, DATA)
    with pytest.raises(DataError) as error:
        refuse_other_data(tmp_path, data, accept=False)
    assert str(error.value).startswith(f"{tmp_path}: images differ from those it began with: {message}; ")
    assert "--accept_changed_data" in str(error.value)
    assert refuse_other_data(tmp_path, data, accept=True)


@pytest.mark.parametrize("accept", [True, False])
def test_other_classes_are_refused_by_name_whatever_is_accepted(tmp_path: Path, accept: bool):
    write_record(tmp_path, DATA)
    with pytest.raises(DataError, match='missing: "dög"; new: "cow"'):
        refuse_other_data(tmp_path, other(names=("ca\tt", "cow")), accept)


@pytest.mark.parametrize("accept", [True, False])
def test_classes_that_exchanged_their_numbers_are_refused_whatever_is_accepted(tmp_path: Path, accept: bool):
    write_record(tmp_path, DATA)
    renumbered = ImageData(replace(DATA.train, labels=1 - DATA.train.labels), DATA.test, DATA.class_names[::-1])
    with pytest.raises(DataError, match=r'class 0 is "ca\\tt", in the data set it is "dög"$'):
        refuse_other_data(tmp_path, renumbered, accept)


def test_classes_in_another_order_are_the_same_classes():
    refuse_other_classes("x", ["a", "b"], ("b", "a"))
    with pytest.raises(DataError, match=r'x: its classes are not those of the data set; new: "c"$'):
        refuse_other_classes("x", ["a", "b"], ("b", "a", "c"))
    with pytest.raises(DataError, match="class_names = 3"):
        refuse_other_classes("x", 3, ("a",))


def test_a_run_without_record_is_not_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert not refuse_other_data(tmp_path, DATA, accept=False)
    assert "not compared" in caplog.text
    assert changes_of_run(tmp_path, DATA, "test") is None


def test_an_accepted_change_stands_on_record_with_all_earlier_ones(tmp_path: Path):
    write_record(tmp_path, DATA)
    first, second = other(test=split([9, 5], [0, 1])), other(test=split([9, 8], [0, 1]))
    for task, data in enumerate((first, second)):
        accept_changes(tmp_path, data, refuse_other_data(tmp_path, data, accept=True), task)
    record = json.loads((tmp_path / "data.json").read_text())
    counts = {"added": 0, "changed": 1, "missing": 0}
    assert record["accepted_changes"] == [
        {"task": 0, **counts, "before": fingerprints(DATA)},
        {"task": 1, **counts, "before": fingerprints(first)},
    ]
    assert not refuse_other_data(tmp_path, second, accept=False)


def test_the_changes_of_one_half(tmp_path: Path):
    write_record(tmp_path, DATA)
    data = other(train=split([9, 2, 3], [0, 0, 1]), test=split([4], [0]))
    assert changes_of_run(tmp_path, data, "test") == Changes([], [], [("test", "dög", "1")])
