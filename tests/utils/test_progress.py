"""How far a long command is: on a terminal, in a log, and where neither is."""

import logging

import pytest

from utils import progress as module
from utils.progress import duration, progress, seconds_of


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (12000, "3 h 20 min"),
        (180000, "50 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text
    assert duration(seconds_of(text)) == text


@pytest.fixture
def clock(monkeypatch):
    """A clock that steps by 25 seconds whenever it is read."""
    now = iter(range(1000, 9000, 25))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))


@pytest.fixture
def on_terminal(monkeypatch):
    monkeypatch.setattr(module, "on_terminal", lambda: False)


LINES = ["reading: 5 of 12, about 2 min 55 s left", "reading: 8 of 12, about 1 min 40 s left"]


def test_without_a_terminal_a_line_a_minute_tells_the_time_left(clock, on_terminal, capsys):
    assert list(progress("abcdefghij", "reading", 12, done=2)) == [*"abcdefghij"]
    assert capsys.readouterr().err.splitlines() == [*LINES, "reading: 11 of 12, about 25 s left"]


def test_where_a_log_is_taken_the_lines_go_there(clock, on_terminal, capsys, caplog):
    with caplog.at_level(logging.INFO):
        list(progress("abcdef", "reading", 12, done=2))
    assert [record.getMessage() for record in caplog.records] == LINES
    assert capsys.readouterr().err == ""


def test_the_last_step_is_told_by_whoever_goes_on(clock, on_terminal, capsys):
    list(progress("abc", "reading", 3))
    assert capsys.readouterr().err == ""


def test_the_first_line_can_come_sooner(clock, on_terminal, capsys):
    assert list(progress("abcdef", "reading", 6, first=20.0)) == [*"abcdef"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["reading: 1 of 6, about 2 min 5 s left", "reading: 4 of 6, about 50 s left"]


def test_steps_whose_number_is_not_known_are_counted(clock, on_terminal, capsys):
    assert list(progress(iter("abcdef"), "listing", None)) == [*"abcdef"]
    assert capsys.readouterr().err.splitlines() == ["listing: 3 so far", "listing: 6 so far"]


def test_a_process_without_standard_error_reads_on(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert list(progress("abcdef", "reading", 12)) == [*"abcdef"]
