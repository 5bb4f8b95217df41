"""Two processes and one run directory, directories that cannot be written, and processes that outlive their run."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_record import fault
from fault_runs import KEYS, Ended, Observe, Whole, contents
from tiny_runs import Workshop, differences, finish

from utils.runs.directory import can_resume


@fault("a second process begins the run of a first", "with --auto_resume, with --overwrite and with --resume, together")
def test_a_run_at_work_is_left_alone(
    shop: Workshop, gate: Callable[..., Any], ended: Ended, whole: Whole, observe: Observe
) -> None:
    run, step = shop.make("shared", KEYS), gate("models.phase.Phase.step", after=40)
    first = run.start(before=step.code)
    step.reached(first)
    before = contents(run.path)
    others = [run.start("--auto_resume"), run.start("--overwrite"), run.resume()]
    for code, message in map(ended, others):
        assert code == 2
        assert message.startswith(
            f"{run.path}: process {first.pid} on {os.uname().nodename} is using this run directory"
        )
    assert contents(run.path) == before
    step.open()
    finish(first)
    assert differences(run.path, whole(**KEYS)) == []
    observe(times=len(others), seen="exit code 2 and who is at work; the first run's end is bit-identical")


@fault(
    "a second process that looked before the first one was done",
    "it waits between its look at the directory and its lock, while the first one is killed, or finishes",
)
@pytest.mark.parametrize("killed", [True, False])
def test_what_came_to_be_since_the_look_is_not_lost(
    killed: bool, shop: Workshop, gate: Callable[..., Any], ended: Ended, observe: Observe
) -> None:
    run, look = shop.make("raced", {**KEYS, "max_tasks": 1}), gate("trainer.load_dataset")
    second = run.start(before=look.code)
    look.reached(second)
    if killed:
        run.killed(2)
    else:
        finish(run.start())
    before = contents(run.path)
    look.open()
    code, message = ended(second)
    assert code == 2
    assert message.startswith(f"already {'started' if killed else 'finished'}: {run.path}; use --")
    assert contents(run.path) == before
    observe(seen="exit code 2, already started or finished; nothing is removed")


@fault("a killed process leaves its loading workers behind", "SIGKILL to the process alone, while its workers hang")
def test_the_lock_of_a_killed_run_is_free_while_its_workers_live(
    shop: Workshop, gate: Callable[..., Any], whole: Whole, observe: Observe
) -> None:
    run, loading = (
        shop.make("orphans", {**KEYS, "num_workers": 2}),
        gate("utils.data.tasks.TaskImages.__getitem__", 60),
    )
    first = run.start(before=loading.code)
    loading.reached(first)
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    orphans = first.workers()
    assert orphans
    assert can_resume(run.path)
    finish(run.start("--auto_resume"))
    assert not first.workers()
    assert differences(run.path, whole(**KEYS)) == []
    observe(seen="the next process has the lock at once; bit-identical end")


AS_NOBODY = """
import os, trainer
plan = trainer.plan_runs
def planned(*args):
    os.seteuid(65534)
    return plan(*args)
trainer.plan_runs = planned
"""


@fault("an output directory that cannot be made or written", "under a file; in /proc; without permission for this user")
@pytest.mark.parametrize("place", ["file/logs", "/proc/logs", "closed/logs"])
def test_where_nothing_can_be_written_nothing_is_trained(
    place: str, shop: Workshop, ended: Ended, tmp_path: Path, observe: Observe
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o555)
    dropped = AS_NOBODY if place == "closed/logs" and os.geteuid() == 0 else ""  # to root every directory is open
    process = shop.make("nowhere", KEYS).start("--output_dir", str(tmp_path / place), before=dropped)
    code, message = ended(process)
    assert code == 2
    assert str(tmp_path / place) in message
    closed = "no permission to write in "
    proc = "cannot be made: [Errno" if os.geteuid() == 0 else closed
    reasons = {"file/logs": f"{tmp_path / 'file'} is not a folder", "/proc/logs": proc, "closed/logs": closed}
    assert reasons[place] in message
    assert "epoch" not in process.errors
    observe(seen="exit code 2, the path and the reason, before any training")
