"""What a report draws, taken from finished runs: series over tasks, and the events of metrics.jsonl as rows."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from statistics import fmean, stdev
from typing import Any, TypeVar

import numpy as np

from tools.compare.comparison import Group
from tools.finished.reader import Run, RunError
from utils.metrics import AccuracyMatrix
from utils.runs.events import read_lines

T = TypeVar("T")
BRANCHES = ("slow+fast", "slow", "fast", "neither")
BOTH = ("slow", "fast")
Z_KEYS = ("z_mean_before", "z_std_before", "z_mean_after", "z_std_after")  # receipts of earlier versions lack them


def reads(kind: str) -> Callable[[Callable[[Run], T]], Callable[[Run], T]]:
    """Have a function of a run raise RunError, which names the run, where a record of `kind` is malformed."""

    def decorate(function: Callable[[Run], T]) -> Callable[[Run], T]:
        @wraps(function)
        def checked(run: Run) -> T:
            try:
                return function(run)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise RunError(f"{run.path}: {kind} is not as a run writes it: {error!r}") from error

        return checked

    return decorate


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    """The events of one kind; none for a log."""
    return [] if run.is_log else [line for line in read_lines(run.metrics) if line.get("kind") == kind]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def mean(values: Iterable[float | None]) -> float:
    """The mean of what is known; NaN of nothing."""
    known = [float(value) for value in values if value is not None and not math.isnan(value)]
    return fmean(known) if known else math.nan


@dataclass(frozen=True)
class Band:
    """Mean over seeds at every task, and one standard deviation to either side (none for one seed)."""

    mean: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, curves: Sequence[Sequence[float]]) -> "Band":
        """Over curves of as many tasks as the shortest has."""
        columns = list(zip(*curves, strict=False))
        centre = [fmean(column) for column in columns]
        width = [stdev(column) if len(column) > 1 else 0.0 for column in columns]
        pairs = list(zip(centre, width, strict=True))
        return cls(centre, [m - s for m, s in pairs], [m + s for m, s in pairs])


def mean_matrix(matrices: Sequence[AccuracyMatrix]) -> np.ndarray:
    """R in per cent, mean over seeds; of other lengths, the tasks that all have."""
    size = min(len(matrix.count) for matrix in matrices)
    return 100 * np.mean([matrix.matrix[:size, :size] for matrix in matrices], axis=0)


@reads("branches in results.json")
def branches(run: Run) -> dict[str, AccuracyMatrix]:
    """The accuracy matrix of each branch; empty where they were not measured."""
    measured = {name: AccuracyMatrix.from_json(matrix) for name, matrix in run.results.get("branches", {}).items()}
    whole = {"slow+fast": run.matrix} if measured else {}
    found = {**whole, **measured}
    return {name: found[name] for name in BRANCHES if name in found and found[name].count}


def shared_branches(group: Group) -> dict[str, list[AccuracyMatrix]]:
    """The branches that every run of a configuration measured, with a matrix a run."""
    each = [branches(run) for run in group.runs]
    return {name: [found[name] for found in each] for name in each[0] if all(name in found for found in each)}


# ---- telemetry


@dataclass(frozen=True)
class Reading:
    """One telemetry event.

    Attributes:
        task: When it was taken.
        at: The task plus the share of its measured steps done: 2.5 is halfway through task 2.
        adapters: Quantities by (layer, adapter): `norm slow`, `update fast`, `share slow`, `rank fast`,
            `cosine output`, `cosine update`.
    """

    task: int
    at: float
    adapters: Mapping[tuple[int, int], Mapping[str, float]]

    def mean(self, quantity: str) -> float:
        """Over the adapters."""
        return mean(values[quantity] for values in self.adapters.values())


@reads("a telemetry event")
def telemetry(run: Run) -> list[Reading]:
    """The readings in order; steps of a task's func phases count on from phase to phase."""
    found = events(run, "telemetry")
    steps: list[tuple[int, int]] = []  # task, step counted through its phases
    phase, done, last = (-1, -1), 0, 0
    for event in found:
        task, cycle = int(event["task"]), int(event["cycle"])
        if (task, cycle) != phase:
            done = last if task == phase[0] else 0
            phase = (task, cycle)
        last = done + int(event["step"])
        steps.append((task, last))
    total = {task: max(1, step) for task, step in steps}
    return [
        Reading(task, task + step / total[task], dict(_adapter(entry) for entry in event["layers"]))
        for event, (task, step) in zip(found, steps, strict=True)
    ]


def _adapter(entry: Mapping[str, Any]) -> tuple[tuple[int, int], dict[str, float]]:
    values = {f"norm {branch}": _norm(entry["norms"], branch) for branch in BOTH}
    for title, key in (("update", "update_norms"), ("share", "share"), ("rank", "effective_rank")):
        values |= {f"{title} {branch}": _number(entry[key].get(branch)) for branch in BOTH}
    values |= {f"cosine {of}": _number(entry[f"{of}_cosine"]) for of in ("output", "update")}
    return (int(entry["layer"]), int(entry["adapter"])), values


def _norm(norms: Mapping[str, float | None], branch: str) -> float:
    """Frobenius norm of all tensors of a branch together."""
    return math.hypot(*(_number(norm) for name, norm in norms.items() if name.startswith(f"{branch}.")))


# ---- cadence, consolidation, expansion


@reads("a cadence event")
def cadence(run: Run) -> list[dict[str, Any]]:
    """A row for every func phase in which slow trains."""
    return [
        {
            "task": int(event["task"]),
            "cycle": int(event["cycle"]),
            "steps": int(event["steps"]),
            "tensors": int(event["tensors"]),
            "observed": [int(step) for step in event["observed"]],
            "expected": None if event["expected"] is None else [int(step) for step in event["expected"]],
            "passed": bool(event["passed"]),
        }
        for event in events(run, "cadence")
    ]


@dataclass(frozen=True)
class Consolidation:
    """One consolidation: a receipt for each layer and adapter, and accuracy in per cent."""

    task: int
    receipts: list[Mapping[str, Any]]
    before: float
    after: float

    def mean(self, key: str) -> float:
        """Over the receipts."""
        return mean(receipt[key] for receipt in self.receipts)

    def texts(self, key: str) -> str:
        """The different values of a setting."""
        return ", ".join(dict.fromkeys(str(receipt[key]) for receipt in self.receipts)) or "-"

    @property
    def largest_drift(self) -> float:
        """Of all adapters."""
        return max((_number(receipt["drift"]) for receipt in self.receipts), default=math.nan)


@reads("a consolidation event")
def consolidations(run: Run) -> list[Consolidation]:
    """The consolidations in order."""
    return [
        Consolidation(
            int(event["task"]),
            [{**dict.fromkeys(Z_KEYS), **receipt, "drift": _number(receipt["drift"])} for receipt in event["receipts"]],
            _number(event["accuracy_before"]["top1"]),
            _number(event["accuracy_after"]["top1"]),
        )
        for event in events(run, "consolidation")
    ]


@dataclass(frozen=True)
class Scan:
    """The batches of all scans of a run, one after another.

    Attributes:
        z: By layer, the smallest z of its adapters at each batch; NaN where the layer was not scanned.
        thresholds: The different ones.
        asked: Batch and z at which a layer got an adapter.
    """

    z: dict[int, list[float]]
    thresholds: list[float]
    asked: list[tuple[float, float]]


@reads("a scan event")
def scans(run: Run) -> Scan | None:
    """The expansion record; None without scans."""
    found = events(run, "scan")
    layers = sorted({int(layer) for event in found for layer in event["z"]})
    z = {layer: [_smallest(event["z"].get(str(layer), [])) for event in found] for layer in layers}
    thresholds = sorted({float(event["threshold"]) for event in found})
    grown = [(place, int(event["expands"])) for place, event in enumerate(found) if event["expands"] is not None]
    return Scan(z, thresholds, [(place + 1.0, z[layer][place]) for place, layer in grown]) if found else None


def _smallest(z: Sequence[float | None]) -> float:
    known = [value for value in map(_number, z) if not math.isnan(value)]
    return min(known, default=math.nan)


def adapters_per_layer(group: Group) -> np.ndarray | None:
    """(layers, tasks): adapters in every block after every task, mean over seeds; None for logs."""
    if group.is_log:
        return None
    each = [np.array([task["adapters"] for task in run.results["tasks"]], dtype=float).T for run in group.runs]
    shape = tuple(min(sizes) for sizes in zip(*(counts.shape for counts in each), strict=True))
    return np.mean([counts[: shape[0], : shape[1]] for counts in each], axis=0)
