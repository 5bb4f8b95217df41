"""Fill every GPU table of docs/performance.md in some minutes on one card.

    python -m benchmarks.gpu --json FOLDER [--minutes 8] [--parts NAME ...] [--write]
    python -m benchmarks.gpu --from FOLDER --write

Parts are measured in order of importance, each in a process of its own, as long as the minutes last. Each writes
FOLDER/PART.json as soon as it has figures, and everything it says into FOLDER/PART.log. One that fails or takes too
long is reported in one line, and the next begins. `--from` takes the files, on whichever machine, instead of measuring.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    gpu_runs,
    gpu_steps,
    gpu_tables,
    growth,
    growth_tables,
    phase_tables,
    phases,
    profiles,
    run,
    run_tables,
    timing,
)
from benchmarks.command import run_command
from benchmarks.measure import Timer
from benchmarks.timing import Report, origin, place, timing_parser
from benchmarks.workloads import Setting
from tools.generated import replace_part
from utils.devices import resolve_device
from utils.files import atomic_write

LEAST = 10.0  # seconds with which a part is begun
RESERVE = 3.0  # seconds of the budget for what comes after the last part
FORMATS = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Task:
    """What a part is given: the command line, its setting and timer, and where its figures go."""

    given: argparse.Namespace
    setting: Setting
    timer: Timer

    @property
    def usual(self) -> tuple[Setting, int, Timer]:
        """What all reports are made of."""
        return self.setting, self.given.rounds, self.timer

    def save(self, measured: Mapping[str, Any]) -> None:
        """Write the part's figures."""
        text = json.dumps(measured, indent=1) + "\n"
        atomic_write(self.given.json / f"{self.given.part}.json", text.encode())


@dataclass(frozen=True)
class Part:
    """A part of the document.

    Attributes:
        measure: Saves its figures once or several times.
        tables: Turns them into text.
        seconds: The most it may take.
    """

    measure: Callable[[Task], None]
    tables: Callable[[Report], str]
    seconds: float


def _runs(task: Task) -> None:
    folder, where = task.given.json / "runs", origin(*task.usual)
    shutil.rmtree(folder, ignore_errors=True)
    task.save(gpu_runs.report(task.given.config, task.setting.device, folder, where))


def _growth(task: Task) -> None:
    small = replace(task.setting, vit=growth.VIT, kwargs=growth.SMALL, batch=growth.BATCH)
    task.save(growth.report(small, task.given.rounds, task.timer))


def _profile(task: Task) -> None:
    sizes = task.given.sizes
    task.save(profiles.report(replace(task.setting, batch=sizes[len(sizes) // 2]), *task.usual[1:]))


# In order of importance. The document has a part of each name, followed by the kind of device.
PARTS = {
    "run": Part(lambda task: task.save(run.report(*task.usual)), run_tables.tables, 240),
    "runs": Part(_runs, gpu_runs.tables, 90),
    "steps": Part(lambda task: gpu_steps.report(*task.usual, task.given.sizes, task.save), gpu_tables.steps, 120),
    "phases": Part(lambda task: task.save(phases.report(*task.usual, FORMATS)), phase_tables.tables, 120),
    "views": Part(lambda task: task.save(gpu_steps.views(*task.usual, task.given.images)), gpu_tables.views, 60),
    "profile": Part(_profile, profiles.tables, 45),
    "growth": Part(_growth, growth_tables.tables, 90),
    "compile": Part(lambda task: gpu_steps.compiled(*task.usual, task.given.sizes, task.save), gpu_tables.steps, 150),
}


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write what is asked for; the exit code is 1 if a part has no figures or no tables."""
    parser = timing_parser("gpu", __doc__, rounds=3, place="folder")
    parser.set_defaults(batch=32, device="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing is measured")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="in this order")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 256], help="batch sizes of the steps")
    parser.add_argument("--images", type=int, default=2048, help="of a kept view")
    parser.add_argument("--config", type=Path, default=Path("exps/quickstart.json"), help="of the whole small runs")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # measured in this process
    given = parser.parse_args(arguments)
    if given.part:
        PARTS[given.part].measure(Task(given, *place(given)))
        return 0
    folder = given.earlier or given.json
    if folder is None:
        parser.error("one of --json and --from is needed")
    if given.earlier:
        return max(shown(part, folder, given.write) for part in given.parts)
    resolve_device(given.device)
    folder.mkdir(parents=True, exist_ok=True)
    return measure_all(given, arguments)


def measure_all(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Measure the parts one after the other, and show each at once."""
    ends, worst = time.monotonic() + 60 * given.minutes - RESERVE, 0
    for part in given.parts:
        (given.json / f"{part}.json").unlink(missing_ok=True)
        began = time.monotonic()
        limit = min(PARTS[part].seconds, ends - began)
        if limit < LEAST:
            print(f"{part}: left out, as the {given.minutes:g} minutes are used up", flush=True)
            worst = 1
            continue
        outcome = in_process([*arguments, "--part", part], given.json / f"{part}.log", limit)
        print(f"{part}: {outcome}, after {time.monotonic() - began:.0f} s", flush=True)
        worst = max(worst, outcome != DONE, shown(part, given.json, given.write))
    return worst


DONE = "done"


def in_process(arguments: Sequence[str], log: Path, limit: float) -> str:
    """Run this command in a process of its own that may take so many seconds; return how it ended."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped, as it took longer than {limit:.0f} s ({log})"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes it started
                process.wait()
    return DONE if not code else f"failed: {gpu_runs.last_line(log)} ({log})"


def shown(part: str, folder: Path, write: bool) -> int:
    """Print the tables of a part, and write them if asked for; 1 if there are none."""
    file = folder / f"{part}.json"
    if not file.exists():
        print(f"{part}: no figures", flush=True)
        return 1
    try:
        measured = json.loads(file.read_text(encoding="utf-8"))
        text = PARTS[part].tables(measured)
        print(text, flush=True)
        if write:
            replace_part(timing.DOCUMENT, f"{part} {measured['machine']['kind']}", text)
    except Exception as error:  # one part must not keep the others from being written
        (folder / f"{part}.tables.log").write_text(traceback.format_exc(), encoding="utf-8")
        print(f"{part}: no tables: {type(error).__name__}: {error} ({folder / part}.tables.log)", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
