"""What the runs of a sweep are going to take, by `main.py --plan` of one run of each kind.

Runs are of one kind if they differ only in keys that do not change the amount of work, such as learning rates.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence

from tools.sweep.launch import THREADS
from tools.sweep.plan import PlannedRun, joined
from utils.config.identity import without_idle_keys
from utils.memory import size_text
from utils.progress import duration, progress
from utils.runs.estimate import Span, Totals, read_totals, sizes_text, time_text, total

LONGEST = 60.0  # seconds after which no further kind is measured
NO_MORE_WORK = (
    *("seed", "class_order_seed", "class_order", "shuffle", "output_dir", "prefix", "auto_resume", "on_nan"),
    *("init_lr", "rd_lr", "min_lr", "weight_decay", "classifier_alignment_lr", "exp_threshold"),
    *(f"nested_lora_{name}" for name in ("lr_fast", "lr_slow", "update_interval_slow", "slow_update")),
    *(f"nested_lora_{name}" for name in ("consolidation_alpha", "fast_reset")),
)


def estimate(runs: Sequence[PlannedRun], threads: int, at_a_time: int) -> tuple[list[str], list[str]]:
    """Return lines on what these runs will take, and what main.py says against those that were measured.

    Args:
        runs: Those to make.
        threads: Of each run.
        at_a_time: How many are made at a time.
    """
    if not runs:
        return ["nothing is left to do"], []
    kinds: dict[str, list[PlannedRun]] = {}
    for run in runs:
        kinds.setdefault(_kind(run), []).append(run)
    found: list[Totals] = []
    refused: list[tuple[str, str]] = []
    members: list[list[PlannedRun]] = []
    for alike, totals, error in progress(_measured([*kinds.values()], threads), "measuring", len(kinds)):
        refused += [(alike[0].member.name, line) for line in error.splitlines()]
        if totals is not None:
            found.append(totals)
            members.append(alike)
    if refused or not found:
        return [], joined(refused)
    return [*_lines(members, found), *_totals(runs, members, found, len(kinds), at_a_time)], []


def _kind(run: PlannedRun) -> str:
    values = without_idle_keys(run.member.config).model_dump(mode="json")
    return json.dumps({key: value for key, value in values.items() if key not in NO_MORE_WORK}, sort_keys=True)


def _measured(kinds: Sequence[list[PlannedRun]], threads: int) -> Iterator[tuple[list[PlannedRun], Totals | None, str]]:
    """Yield the runs of each kind with its totals, or the reason why it has none, until the time is over."""
    begun = time.monotonic()
    for number, alike in enumerate(kinds):
        if number and time.monotonic() - begun > LONGEST:
            return
        command = [*alike[0].command(), "--plan=true"]
        environment = {**os.environ, THREADS: str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        if done.returncode:
            yield alike, None, done.stderr.strip() or f"exit code {done.returncode}"
        else:
            yield alike, read_totals(done.stdout), ""


def _lines(members: Sequence[Sequence[PlannedRun]], found: Sequence[Totals]) -> list[str]:
    lines = []
    for alike, totals in zip(members, found, strict=True):
        names = list(dict.fromkeys(run.member.name for run in alike))
        named = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        count = f"{len(alike)} run{'s' * (len(alike) > 1)}"
        lines.append(f"{count} of about {time_text(totals.seconds)}, disk {sizes_text(totals.disk)}: {named}")
    return lines


def _totals(
    runs: Sequence[PlannedRun],
    members: Sequence[Sequence[PlannedRun]],
    found: Sequence[Totals],
    kinds: int,
    at_a_time: int,
) -> list[str]:
    known = sum(map(len, members))
    weights = [len(alike) * len(runs) / known for alike in members]  # the others count as their mean
    seconds = total(_times(weight, totals.seconds) for weight, totals in zip(weights, found, strict=True))
    disk = total(_times(weight, totals.disk) for weight, totals in zip(weights, found, strict=True))
    memory = max(totals.memory.high for totals in found)
    together = _times(1 / at_a_time, seconds)
    lines = [
        f"{len(runs)} runs to make: about {time_text(seconds)} one after the other, "
        f"{time_text(together)} with {at_a_time} at a time",
        f"memory: about {size_text(memory)} for each of them",
        f"disk: about {sizes_text(disk)}",
        "measured: one run of each line; the runs of a line differ in keys that do not change the work",
    ]
    if len(found) < kinds:
        left = f"not measured: {len(runs) - known} more runs, which count as the mean of these"
        lines.append(f"{left}, as measuring ends after about {duration(LONGEST)}")
    return lines


def _times(factor: float, span: Span) -> Span:
    return Span(*(factor * value for value in span))
