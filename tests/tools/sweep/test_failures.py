"""The record of the runs that failed."""

import pytest

from tools.sweep.failures import Failure, read_failures, write_failures


def test_what_was_written_is_read(tmp_path):
    failures = {"a-s1": Failure("a", 1, "exit code 2", "no space", "logs/a-s1/attempt2.log")}
    write_failures(tmp_path / "s" / "failed.json", failures)
    assert read_failures(tmp_path / "s" / "failed.json") == failures


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"seed": 1}}', '{"a": {"seed": 1'])
def test_a_damaged_record_counts_as_none(tmp_path, content):
    (tmp_path / "failed.json").write_text(content)
    assert read_failures(tmp_path / "failed.json") == {}


def test_a_record_that_cannot_be_written_does_not_stop_the_sweep(tmp_path):
    (tmp_path / "s").write_text("no folder")
    write_failures(tmp_path / "s" / "failed.json", {})
    assert read_failures(tmp_path / "s" / "failed.json") == {}
