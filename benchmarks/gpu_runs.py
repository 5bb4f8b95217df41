"""Whole small runs on a device beside the same run on the CPU: whether the program works there, and resumes exactly."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Report
from tools.generated import markdown_table
from utils.runs.directory import RESULTS

SHORT = {"func_epoch": 2, "rd_epoch": 3, "readouts": "ncm", "num_threads": 4}
EXACTLY = {"deterministic": True}
LONGEST = 70.0  # seconds of a run
FIRST = "checkpoints/task_0.safetensors"  # of a run that has learned a task
LOOK = 0.05  # seconds between two looks for it


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        on_cpu: Whether it runs on the CPU, else on the device.
        keys: Of its configuration.
        stops: Whether it is stopped after its first task, and resumed.
    """

    on_cpu: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)
    stops: bool = False


CASES = {
    "fp32 on the CPU": Case(on_cpu=True),
    "fp32": Case(keys=EXACTLY),
    "fp32, stopped and resumed": Case(keys=EXACTLY, stops=True),
    "bf16, views 5": Case(keys={"precision": "bf16", "views": 5}),
}
RESUMED, WHOLE = "fp32, stopped and resumed", "fp32"


def report(config: Path, device: torch.device, folder: Path, where: Mapping[str, Any]) -> dict[str, Any]:
    """Make all runs at the same time.

    Args:
        config: A configuration, which is shortened.
        device: Of all but the run on the CPU.
        folder: A new one, for runs and logs.
        where: `setting` and `machine`.

    Returns:
        `setting`, `machine`, `config`, and `runs`: by case seconds and the results, or the last line of a failed run.
    """
    folder.mkdir(parents=True)

    def run(number_and_case: tuple[int, Case]) -> dict[str, Any]:
        number, case = number_and_case
        place = "cpu" if case.on_cpu else device.type
        return _run(case, [str(config), "--device", place], folder / str(number))

    with ThreadPoolExecutor(len(CASES)) as pool:
        found = dict(zip(CASES, pool.map(run, enumerate(CASES.values())), strict=True))
    return {**where, "config": config.stem, "runs": found}


def _run(case: Case, config_and_device: list[str], output: Path) -> dict[str, Any]:
    keys = {**SHORT, **case.keys, "output_dir": str(output)}
    flags = [part for key, value in keys.items() for part in (f"--{key}", _text(value))]
    command, log = [sys.executable, "main.py", "--config", *config_and_device, *flags], output.with_suffix(".log")
    started = time.monotonic()
    try:
        code = _ended(command, log, output if case.stops else None, LONGEST)
        if case.stops and code == 0:
            return {"failed": "it ended before it could be stopped"}
        if case.stops and code == 128 + signal.SIGTERM:
            code = _ended([*command, "--auto_resume", "true"], log, None, LONGEST - (time.monotonic() - started))
    except subprocess.TimeoutExpired:
        return {"failed": f"it took longer than {LONGEST:g} s"}
    if code:
        return {"failed": last_line(log)}
    (results,) = output.glob(f"*/{RESULTS}")
    found = {key: value for key, value in json.loads(results.read_text(encoding="utf-8")).items() if key != "run"}
    return {"seconds": time.monotonic() - started, "results": found}


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _ended(command: list[str], log: Path, stopped_in: Path | None, limit: float) -> int:
    """Run a command, in this folder ask it to stop when the first task is learned, and return its exit code."""
    ends = time.monotonic() + limit
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            while stopped_in and process.poll() is None and time.monotonic() < ends:
                if any(stopped_in.glob(f"*/{FIRST}")):
                    process.terminate()
                    break
                time.sleep(LOOK)
            return process.wait(max(0.0, ends - time.monotonic()))
        finally:
            process.kill()


def last_line(log: Path) -> str:
    """What a command that failed said at last."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


def tables(report: Report) -> str:
    """A line for each run."""
    runs = report["runs"]
    resumed, whole = (runs[name].get("results") for name in (RESUMED, WHOLE))
    same = "the same as without the stop" if resumed == whole else "not those without the stop"
    epochs = f"{SHORT['func_epoch']} func and {SHORT['rd_epoch']} rd epochs"
    where = f"on a {report['machine']['device']} and on the CPU"
    note = f"`exps/{report['config']}.json` with {epochs}, {where}; all runs at the same time.\n\n"
    header = ["run", "last accuracy, %", "average incremental accuracy, %", "adapters per block", "s", "results"]
    told = {} if None in (resumed, whole) else {RESUMED: same}
    rows = [[name, *_cells(run), told.get(name, "")] for name, run in runs.items()]
    return note + markdown_table(header, rows)


def _cells(run: Mapping[str, Any]) -> list[str]:
    if "failed" in run:
        return [f"failed: {run['failed'].replace('|', '/')}", "", "", ""]
    results = run["results"]
    accuracies = [f"{100 * results[key]:.2f}" for key in ("last_acc", "avg_inc_acc")]
    return [*accuracies, "-".join(map(str, results["tasks"][-1]["adapters"])), f"{run['seconds']:.0f}"]
