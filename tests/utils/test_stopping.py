"""When a state is saved, and how a run ends that is asked to."""

import os
import signal
import threading

import pytest

from utils.errors import StoppedError
from utils.stopping import StateKeeper, StopRequest, stop_requests

EPOCH = ["step", "step", "last step", "epoch"]
TASK = [*EPOCH, *EPOCH, "stage", *EPOCH, "stage", "wait", "stage", "wait", "task"]


def saved(every: int, points: list[str], stop_at: int | None = None, passed: list[int] | None = None) -> list[int]:
    """At which points of a list a state is saved; with `stop_at` the process is asked to stop before that point.

    `passed` takes the points that did not end the run.
    """
    request, found, now = StopRequest(), [], 0
    keep = StateKeeper(every, lambda: found.append(now), request, "go on")
    for now, point in enumerate(points):
        if now == stop_at:
            request.signal = signal.SIGTERM
        keep(point)
        if passed is not None:
            passed.append(now)
    return found


@pytest.mark.parametrize(
    ("every", "expected"),
    [(0, [17]), (1, [3, 7, 8, 12, 13, 15, 17]), (2, [7, 8, 13, 15, 17]), (3, [8, 12, 13, 15, 17])],
)
def test_a_state_is_saved_every_so_many_epochs_between_stages_and_after_tasks(every, expected):
    assert saved(every, TASK) == expected


@pytest.mark.parametrize(("asked", "ends"), [(0, 0), (1, 1), (2, 3), (3, 3), (8, 8), (14, 14), (16, 16)])
def test_a_run_that_is_asked_to_stop_does_so_where_nothing_is_lost(asked, ends):
    passed: list[int] = []
    with pytest.raises(StoppedError, match="stopped by SIGTERM, nothing is lost; go on") as stop:
        saved(1, TASK, stop_at=asked, passed=passed)
    assert (len(passed), stop.value.signal) == (ends, signal.SIGTERM)


def test_an_evaluation_after_unsaved_steps_is_finished_first():
    with pytest.raises(StoppedError):
        saved(0, ["step", "wait", "step"], stop_at=1)
    assert saved(0, ["step", "wait"], stop_at=1) == []


def test_the_first_signal_asks_and_the_second_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_there_is_nothing_to_note():
    found = []

    def other() -> None:
        with stop_requests() as request:
            found.append(request.signal)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [None]
