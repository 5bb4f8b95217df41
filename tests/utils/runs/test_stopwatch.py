"""The time of training alone."""

from contextlib import suppress

import pytest

from utils.runs.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: a list of one number."""
    now = [100.0]
    monkeypatch.setattr("utils.runs.stopwatch.time.perf_counter", lambda: now[0])
    return now


def test_only_running_blocks_count_without_what_is_paused_in_them(clock):
    watch = Stopwatch()
    with watch.paused():
        clock[0] += 1000
    with watch.running():
        clock[0] += 3
        with watch.paused():
            clock[0] += 1000
            with watch.paused():
                clock[0] += 1000
            clock[0] += 1000
        clock[0] += 4
    clock[0] += 1000
    assert watch.take() == 7
    assert watch.seconds == 0


def test_within_a_pause_the_seconds_so_far_can_be_saved_and_an_error_ends_the_block(clock):
    watch = Stopwatch(seconds=5.0)  # of an earlier process
    with suppress(KeyboardInterrupt), watch.running():
        clock[0] += 2
        with watch.paused():
            assert watch.seconds == 7
        clock[0] += 1
        raise KeyboardInterrupt
    clock[0] += 1000
    assert watch.take() == 8


def test_the_device_has_ended_its_work_whenever_the_time_is_taken(clock):
    watch = Stopwatch(settle=lambda: clock.__setitem__(0, clock[0] + 10))
    with watch.running(), watch.paused():
        clock[0] += 1000
    assert watch.take() == 20
