"""Flags over a file, where the value of a key is an object."""

import json
import logging
from pathlib import Path

import pytest

from utils.config.flags import parse
from utils.config.load import load
from utils.errors import ConfigError

KWARGS = {"img_size": 96, "depth": 6}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"dataset": "cub", "backbone_kwargs": KWARGS}))
    return path


def kwargs_of(file: Path, *argv: str) -> object:
    return load(file, parse(argv).flags).backbone_kwargs


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--backbone_kwargs.img_size", "224"], {"img_size": 224, "depth": 6}),
        (
            ["--backbone-kwargs.img-size=224", "--backbone_kwargs.num_heads=3"],
            {**KWARGS, "img_size": 224, "num_heads": 3},
        ),
        (
            ["--backbone_kwargs.depth", "2", "--backbone_kwargs", '{"depth": 4, "img_size": 8}'],
            {"depth": 2, "img_size": 8},
        ),
    ],
)
def test_a_dotted_flag_sets_one_entry(file: Path, argv: list[str], expected: object, caplog: pytest.LogCaptureFixture):
    assert kwargs_of(file, *argv) == expected
    assert caplog.messages == []


def test_an_object_that_loses_entries_is_told(file: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert kwargs_of(file, "--backbone_kwargs", '{"img_size": 224}') == {"img_size": 224}
    assert caplog.messages == [
        "backbone_kwargs is replaced as a whole, without depth = 6; "
        "--backbone_kwargs.img_size sets one entry and keeps the others"
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--backbone_kwargs.pretrained", "true"],
            "(flag --backbone_kwargs.pretrained): pretrained is not passed on to timm",
        ),
        (["--batch_size.x", "3"], 'batch_size.x = "3" (flag --batch_size.x): unknown key; did you mean batch_size?'),
        (["--backbone_kwargs.", "3"], "unknown key; did you mean backbone_kwargs?"),
    ],
)
def test_a_dotted_flag_that_is_wrong_is_named(file: Path, argv: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        kwargs_of(file, *argv)
    assert message in str(caught.value)
