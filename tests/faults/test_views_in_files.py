"""Kept views in memory-mapped files: killed runs leave none behind, and two runs share none."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_record import fault
from fault_runs import IN_A_FILE, KEYS, Observe, Whole
from preloaded import LONGEST, Started
from tiny_runs import Workshop, differences, finish

from utils.runs.directory import STATES, is_finished

KILLS = 20
DELAY = 0.1  # seconds after the file is there: the latest moment of a kill
RUN: dict[str, Any] = {**KEYS, **IN_A_FILE, "max_tasks": 3, "func_epoch": 6, "rd_epoch": 6}
FIRST_STEP, STEPS_OF_TASK_0 = "models.losses.FuncLoss.__call__", 6 * 6


def files(process: Started, folder: Path) -> set[tuple[str, str]]:
    """Device and number of the files below a folder, without names, that a process has mapped; waits for one.

    Raises:
        AssertionError: It ended before.
    """
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        lines = [line.split(maxsplit=5) for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()]
        if found := {(line[3], line[4]) for line in lines if line[5:] and line[5].startswith(f"{folder}/")}:
            return found
        assert not process.ends_within(0.002), process.errors
    raise AssertionError("no file is mapped")


@fault(
    "the process is killed while views are in a file",
    "SIGKILL while the file is made, and at random moments after it is mapped, again and again in one run",
)
def test_a_run_killed_while_views_are_in_a_file_leaves_none_and_is_the_uninterrupted_run(
    shop: Workshop, whole: Whole, gate: Callable[..., Any], tmp_path: Path, observe: Observe
) -> None:
    run, making, rng = shop.make("killed", RUN), gate("models.evaluation.allocate"), random.Random(0)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    for number in range(KILLS):
        apart = f"import tempfile; tempfile.tempdir = {str(temporary)!r}\n"
        process = run.start("--auto_resume", before=apart + (making.code if number == 0 else ""))
        if number == 0:
            making.reached(process)
        else:
            files(process, run.folder)
            time.sleep(rng.uniform(0, DELAY))
        process.signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.end()
        assert not is_finished(run.path)
        names = {path.name for path in run.path.iterdir() if path.suffix != ".tmp"}
        assert names <= {path.name for path in whole(**RUN).iterdir()} | {STATES}
        assert list(temporary.iterdir()) == []
    finish(run.resume())
    assert differences(run.path, whole(**RUN)) == []
    observe(times=KILLS, seen="no file is left; in the end bit for bit the uninterrupted run")


def test_two_runs_at_once_share_no_file_and_are_as_one_alone(
    shop: Workshop, whole: Whole, gate: Callable[..., Any]
) -> None:
    """Of one configuration, side by side, with one temporary folder; both wait in the first step on views."""
    keys = {**RUN, "max_tasks": 2, "eval_cache_on": "disk"}
    runs, waiting = [shop.make(name, keys) for name in ("one", "two")], gate(FIRST_STEP, STEPS_OF_TASK_0)
    processes = [run.start(before=waiting.code) for run in runs]
    found = [files(process, run.folder) for process, run in zip(processes, runs, strict=True)]
    assert not found[0] & found[1]
    waiting.open()
    for process, run in zip(processes, runs, strict=True):
        finish(process)
        assert differences(run.path, whole(**keys)) == []
