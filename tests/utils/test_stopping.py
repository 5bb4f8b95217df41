"""When a state is saved, and how a run ends that is asked to."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from utils.errors import StoppedError
from utils.stopping import SIGNALS, StateKeeper, StopRequest, stop_requests

ROOT = Path(__file__).parents[2]
ASKED_TWICE = """
import os, signal, sys, time
from utils.stopping import stop_requests

def again():
    try:
        os.kill(os.getpid(), int(sys.argv[2]))
        time.sleep(60)
    except BaseException:
        print("caught")
    finally:
        print("late")

with stop_requests():
    os.kill(os.getpid(), signal.SIGTERM)
    if sys.argv[1] == "inside":
        again()
again()
"""

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
    with pytest.raises(StoppedError, match="stopped by SIGTERM, the state is saved; go on") as stop:
        saved(1, TASK, stop_at=asked, passed=passed)
    assert (len(passed), stop.value.signal) == (ends, signal.SIGTERM)


def test_an_evaluation_after_unsaved_steps_is_finished_first():
    with pytest.raises(StoppedError):
        saved(0, ["step", "wait", "step"], stop_at=1)
    assert saved(0, ["step", "wait"], stop_at=1) == []


@pytest.mark.usefixtures("handlers_kept")
def test_the_first_signal_asks():
    with stop_requests() as request:
        assert request.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM


def test_without_a_signal_the_handlers_are_as_before():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_requests():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("where", ["inside", "after"])
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_ends_the_process_at_once_whatever_it_is_doing(where, second):
    command = [sys.executable, "-c", ASKED_TWICE, where, str(int(second))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (128 + second, "")
    assert done.stderr.splitlines()[-1] == f"{second.name} again: ended at once; what was saved is still there"


ORPHAN = """
import os, signal, subprocess, sys, time
from utils import stopping
stopping.LOOK, stopping.PATIENCE = 0.05, 0.3
if sys.argv[1] == "parent":
    os.environ[stopping.PARENT] = str(os.getpid())
    subprocess.Popen([sys.executable, "-c", sys.argv[3], "child", sys.argv[2], sys.argv[3]])
    time.sleep(60)
with stopping.stop_requests() as request:
    stopping.stop_with_sweep()
    assert stopping.PARENT not in os.environ
    print("up", flush=True)
    while request.signal is None:
        time.sleep(0.02)
    print(request.signal.name, flush=True)
    while sys.argv[2] == "deaf":
        time.sleep(0.02)
"""


@pytest.mark.parametrize("how", ["polite", "deaf"])
def test_the_run_of_a_killed_sweep_is_asked_to_stop_and_then_ended(how):
    command = [sys.executable, "-c", ORPHAN, "parent", how, ORPHAN]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "up\n"
        parent.kill()
        assert parent.stdout.read() == "SIGTERM\n"  # to the end of the child, which has the pipe, too


def test_outside_the_main_thread_there_is_nothing_to_note():
    found = []

    def other() -> None:
        with stop_requests() as request:
            found.append(request.signal)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [None]
