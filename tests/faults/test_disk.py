"""Disks that are full or cannot be written: one message, nothing lost, and the run goes on when there is room."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_record import fault
from fault_runs import IN_A_FILE, KEYS, NO_HEADROOM, Ended, Observe, Whole
from tiny_runs import KINDS, TinyRun, Workshop, differences, finish

from utils.runs.directory import STATES
from utils.runs.states import read_state

LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"


def size(path: Path) -> int:
    return path.stat().st_size


def full_for_states(run: TinyRun, whole: Path) -> int:
    return size(max((run.killed(1) / STATES).iterdir())) - 1


def full_for_checkpoints(run: TinyRun, whole: Path) -> int:
    """Of task 1: that of task 0, and the state after it, are smaller."""
    return size(whole / "checkpoints" / "task_1.safetensors") - 1


def full_for_metrics(run: TinyRun, whole: Path) -> int:
    """With telemetry at every step they outgrow all other files, of which the largest is a state near the end."""
    return int(0.85 * size(whole / "metrics.jsonl"))


def full_for_the_log(run: TinyRun, whole: Path) -> int:
    """That of a run with a long past."""
    log = run.killed(1) / "log.txt"
    log.write_text(log.read_text() + 100_000 * ".\n")
    return size(log) + 1000


FULL: dict[str, tuple[Callable[[TinyRun, Path], int], dict[str, Any]]] = {
    "resume/[0-9]{6}.state": (full_for_states, KEYS),
    "checkpoints/task_1.safetensors": (
        full_for_checkpoints,
        {**KEYS, **KINDS["adaptmlp"], "checkpoint_every": 0},
    ),
    "metrics.jsonl": (full_for_metrics, {**KEYS, "telemetry_every": 1}),
    "log.txt": (full_for_the_log, KEYS),
}


@fault(
    "no room for a state, a checkpoint, the metrics or the log",
    "a limit on the size of the process's files (RLIMIT_FSIZE) that the file in question is the first to reach",
)
@pytest.mark.parametrize("file", FULL)
def test_a_file_that_cannot_grow_ends_the_run_which_goes_on_with_more_room(
    file: str, shop: Workshop, ended: Ended, whole: Whole, observe: Observe
) -> None:
    limit, keys = FULL[file]
    run = shop.make("limited", keys)
    code, message = ended(run.start("--auto_resume", before=LIMITED.format(limit(run, whole(**keys)))))
    assert code == 1
    named = f"File too large: '{re.escape(str(run.path))}/{file}'; the run's files are kept"
    assert re.search(named, message)
    assert_goes_on(run, whole(**keys))
    observe(seen=f"exit code {code}, the file's name; states before it intact; goes on to the bit-identical end")


def assert_goes_on(run: TinyRun, whole: Path, before: str = "") -> None:
    """What is saved is whole, and the run gets from there to the same end."""
    states = list((run.path / STATES).iterdir())
    assert states
    for state in states:
        read_state(state)
    finish(run.resume(before=before))
    assert differences(run.path, whole) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte, where this user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only a user who may mount a disk can fill one")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


FILLED = """
import pkgutil
owner = pkgutil.resolve_name("{owner}")
function, calls = owner.{name}, []
def filled(*args, **keys):
    calls.append("")
    if len(calls) == {call}:
        try:
            with open({ballast!r}, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1024))
        except OSError:
            pass
    return function(*args, **keys)
owner.{name} = filled
"""


def filled(function: str, call: int, ballast: Path) -> str:
    """Python that lets the disk be full when a function is called for the n-th time."""
    owner, _, name = function.rpartition(".")
    return FILLED.format(owner=owner, name=name, call=call, ballast=str(ballast))


def on_small_disk(run: TinyRun, disk: Path) -> TinyRun:
    """The run, which writes there."""
    run.folder.mkdir()
    (disk / "logs").mkdir()
    (run.folder / "logs").symlink_to(disk / "logs")
    return run


@fault(
    "the disk is full",
    "a small disk (tmpfs), filled to the last block when a state, a line of metrics or the results are to be written",
)
@pytest.mark.parametrize(
    ("function", "call", "file"),
    [
        ("utils.runs.states.SavedStates.save", 5, "resume/000004.state"),
        # one of the first steps of an epoch, so that no state is next
        ("utils.runs.log.RunLog.event", 10, "metrics.jsonl"),
        ("utils.runs.log.RunLog.results", 1, "results.json"),
    ],
)
def test_a_full_disk_ends_the_run_which_goes_on_when_it_is_cleared(
    function: str,
    call: int,
    file: str,
    shop: Workshop,
    small_disk: Path,
    ended: Ended,
    whole: Whole,
    observe: Observe,
) -> None:
    keys, ballast = {**KEYS, "telemetry_every": 1}, small_disk / "ballast"
    run = on_small_disk(shop.make("full", keys), small_disk)
    code, message = ended(run.start(before=filled(function, call, ballast)))
    assert code == 1
    assert message.startswith(f"[Errno 28] No space left on device: '{run.path / file}'; the run's files are kept")
    ballast.unlink()
    assert_goes_on(run, whole(**keys))
    observe(seen=f"exit code {code}, the file's name; states before it intact; goes on to the bit-identical end")


@fault(
    "no room for the file of kept views",
    "a small disk (tmpfs), filled to the last block when the file (views_disk_gib) is to be made",
)
def test_a_disk_without_room_for_views_ends_the_run_which_goes_on_when_it_is_cleared(
    shop: Workshop, small_disk: Path, ended: Ended, whole: Whole, observe: Observe
) -> None:
    keys, ballast = {**KEYS, **IN_A_FILE}, small_disk / "ballast"
    run = on_small_disk(shop.make("full", keys), small_disk)
    code, message = ended(run.start(before=NO_HEADROOM + filled("models.evaluation.allocate", 1, ballast)))
    assert code == 1
    named = rf"where views take \S+ KiB \(views_disk_gib\): '{run.path}'; the run's files are kept"
    assert re.match(rf"\[Errno 28\] No space left on device, {named}", message)
    ballast.unlink()
    assert_goes_on(run, whole(**keys), NO_HEADROOM)
    observe(seen=f"exit code {code}, the key and the folder; states before it intact; goes on to the bit-identical end")
