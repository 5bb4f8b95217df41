"""JSON of strangers: read, or refused with the place, before it costs memory or a stack."""

import os
from pathlib import Path

import pytest

from utils import json_file
from utils.errors import ConfigError
from utils.json_file import parse, read_object


def nested(depth: int) -> str:
    return '{"a": [' * (depth // 2) + "]}" * (depth // 2)


def test_depth_is_bounded_well_before_any_stack_ends():
    assert parse(nested(100)) == parse(nested(100))
    for depth in (102, 900, 200_000):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            parse(nested(depth))


def test_a_wide_value_is_not_a_deep_one():
    assert len(parse("[" + "[1]," * 10_000 + "[1]]")) == 10_001


def test_numbers_too_long_for_python_are_refused():
    with pytest.raises(ValueError, match="4300 digits"):
        parse("9" * 5000)


def test_a_file_without_end_is_refused_after_its_first_part(monkeypatch):
    monkeypatch.setattr(json_file, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"/dev/zero: cannot be read as JSON: larger than 1,000 bytes"):
        read_object(Path("/dev/zero"))


@pytest.mark.parametrize("content", [b'{"a": "\xff"}', nested(300).encode(), b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.json: cannot be read as JSON: ") as error:
        read_object(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_in_place_of_a_folder_a_file_in_it_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r": a folder; name a file in it: it has none that ends in \.json$"):
        read_object(tmp_path)
    (tmp_path / "b.json").touch()
    (tmp_path / "a.json").touch()
    with pytest.raises(ConfigError, match=r": a folder; name a file in it: a\.json, b\.json$"):
        read_object(tmp_path)


def test_a_mark_at_the_beginning_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "a.json") == ({"a": 1}, [])


def test_a_pipe_given_for_a_file_is_read_like_one():
    """As a shell's `--config <(command)` gives it."""
    end, start = os.pipe()
    os.write(start, b'{"a": 1}')
    os.close(start)
    assert read_object(Path(f"/dev/fd/{end}")) == ({"a": 1}, [])
    os.close(end)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('// mine\n{"a": 1}', "line 1, column 1: not JSON: JSON has no comments"),
        ('{"a": 1, # mine\n"b": 2}', "line 1, column 10: not JSON: JSON has no comments"),
        ('{"a": 1 /* mine */}', "line 1, column 9: not JSON: JSON has no comments"),
        (
            '{"a": [1, 2,]}',
            "not JSON: (a comma before the end|Illegal trailing comma)",
        ),  # the latter from Python 3.13 on
        ("{'a': 1}", "line 1, column 2: not JSON: text must be in double quotes"),
        ('{"a": True}', "line 1, column 7: not JSON: True; write true"),
        ('{"a": None}', "line 1, column 7: not JSON: None; write null"),
        (" \n", "not JSON: the file is empty"),
        ("a: 1", "line 1, column 1: not JSON: Expecting value"),
    ],
)
def test_what_other_formats_have_and_json_has_not_is_said(tmp_path, text, what):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=what):
        read_object(tmp_path / "a.json")


@pytest.mark.parametrize(("coding", "found"), [("utf-16", "is UTF-16"), ("latin-1", r"is not UTF-8 \(byte 7\)")])
def test_text_in_another_coding_is_told_how_to_be_saved(tmp_path, coding, found):
    """PowerShell's `>` writes UTF-16, old editors of Windows write Latin-1."""
    (tmp_path / "a.json").write_text('{"a": "\u00e4"}', encoding=coding)
    with pytest.raises(ConfigError, match=rf"a\.json: cannot be read as JSON: its text {found}; save it as UTF-8"):
        read_object(tmp_path / "a.json")
