"""The record of the runs that failed."""

import pytest

from tools.sweep.failures import Failure, read_failures, write_failures
from utils.errors import AFTER_DIVERGENCE


def test_what_was_written_is_read(tmp_path):
    failures = {"a-s1": Failure("a", 1, "exit code 2", "no space", "logs/a-s1/attempt2.log")}
    write_failures(tmp_path / "s" / "failed.json", failures)
    assert read_failures(tmp_path / "s" / "failed.json") == failures


@pytest.mark.parametrize(
    ("output", "diverged"),
    [(f"loss is nan; {AFTER_DIVERGENCE}\n", True), ("no space left\n", False), (None, False)],
)
def test_whether_a_run_diverged_is_read_from_its_output(tmp_path, output, diverged):
    log = tmp_path / "attempt2.log"
    if output:
        log.write_text(output)
    assert Failure("a", 1, "exit code 4", "cut off", str(log)).diverged is diverged


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"seed": 1}}', '{"a": {"seed": 1'])
def test_a_damaged_record_counts_as_none(tmp_path, content):
    (tmp_path / "failed.json").write_text(content)
    assert read_failures(tmp_path / "failed.json") == {}


def test_a_record_that_cannot_be_written_does_not_stop_the_sweep(tmp_path):
    (tmp_path / "s").write_text("no folder")
    write_failures(tmp_path / "s" / "failed.json", {})
    assert read_failures(tmp_path / "s" / "failed.json") == {}
