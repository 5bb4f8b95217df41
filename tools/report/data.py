"""The data of a report, from finished runs: accuracies by branch, and events."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from tools.compare.comparison import Group
from tools.finished.reader import Run
from utils.errors import RunError
from utils.metrics import AccuracyMatrix
from utils.runs import events
from utils.timescales.scales import NEITHER, SCALES

E = TypeVar("E", bound=events.Event)
T = TypeVar("T")
Quantity = tuple[str, str]  # its key in a telemetry event, and the branch or pair of branches


def mean(values: Iterable[float | None]) -> float:
    """Return the mean of the known values; NaN if there are none."""
    known = [value for value in map(_number, values) if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# ---- accuracy and structure


def mean_matrix(matrices: Sequence[AccuracyMatrix]) -> np.ndarray:
    """Return R in per cent, mean over seeds, of the tasks that all runs have."""
    size = min(len(matrix.count) for matrix in matrices)
    return 100 * np.mean([matrix.matrix[:size, :size] for matrix in matrices], axis=0)


def distinct(named: Iterable[tuple[str, np.ndarray | None]]) -> list[tuple[str, np.ndarray]]:
    """Return matrices that differ, each under the names of all that are equal to it: `a = b`; None is left out."""
    found: dict[tuple[object, bytes], tuple[str, np.ndarray]] = {}
    for name, values in named:
        if values is not None:
            key = (values.shape, values.tobytes())
            found[key] = (f"{found[key][0]} = {name}" if key in found else name, values)
    return list(found.values())


def branches(run: Run) -> dict[str, AccuracyMatrix]:
    """Return the accuracy matrix of every subset of branches, all of them first; empty if none was measured."""
    measured = {name: AccuracyMatrix.from_json(matrix) for name, matrix in run.results.get("branches", {}).items()}
    whole = "+".join(name for name in measured if "+" not in name and name != NEITHER)
    return {whole: run.matrix, **measured} if measured else {}


def shared_branches(group: Group) -> dict[str, list[AccuracyMatrix]]:
    """Return the subsets of branches that every run of a configuration measured, with a matrix for each run."""
    each = [branches(run) for run in group.runs]
    return {name: [found[name] for found in each] for name in each[0] if all(name in found for found in each)}


def adapters_per_layer(group: Group) -> np.ndarray | None:
    """Return adapters in every block after every task (layers, tasks), mean over seeds; None if none or unknown."""
    if not all(run.has_adapters and run.last_task.get("adapters") for run in group.runs):
        return None
    each = [np.array([task["adapters"] for task in run.results["tasks"]], dtype=float).T for run in group.runs]
    layers, tasks = (min(sizes) for sizes in zip(*(counts.shape for counts in each), strict=True))
    return np.mean([counts[:layers, :tasks] for counts in each], axis=0)


# ---- events


def _events(run: Run, kind: type[E], convert: Callable[[E], T]) -> list[T]:
    """Return the converted events of one kind, none for a log; raise RunError, with the run, if one is malformed."""
    found = iter(()) if run.is_log else events.read_events(run.path / events.FILE, kind)
    try:
        return list(map(convert, found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{run.path}: a {kind.kind} event is malformed: {error!r}") from error


@dataclass(frozen=True)
class Reading:
    """One telemetry event."""

    task: int
    at: float  # the task plus the share of its measured steps done: 2.5 is halfway through task 2
    adapters: Mapping[tuple[int, int], Mapping[Quantity, float]]  # by layer and adapter

    def mean(self, quantity: Quantity, layer: int | None = None) -> float:
        """Return the mean over all adapters, or over those of a layer."""
        return mean(values.get(quantity) for (at, _), values in self.adapters.items() if layer in (None, at))


def telemetry(run: Run) -> list[Reading]:
    """Return the readings in order; the func phases of a task count their steps together."""

    def convert(event: events.Telemetry) -> tuple[int, int, int, dict[tuple[int, int], dict[Quantity, float]]]:
        return int(event.task), int(event.cycle), int(event.step), dict(map(_adapter, event.layers))

    found = _events(run, events.Telemetry, convert)
    steps: dict[int, dict[int, int]] = {}  # by task, the last measured step of each of its phases
    for task, cycle, step, _ in found:
        steps.setdefault(task, {})[cycle] = step
    done = [sum(last for phase, last in steps[task].items() if phase < cycle) + step for task, cycle, step, _ in found]
    return [
        Reading(task, task + step / max(1, sum(steps[task].values())), adapters)
        for (task, _, _, adapters), step in zip(found, done, strict=True)
    ]


def _adapter(entry: Mapping[str, Any]) -> tuple[tuple[int, int], dict[Quantity, float]]:
    own = list(entry["share"])  # the adapter's branches
    tensors = [(name.split(".")[0], _number(norm)) for name, norm in entry["norms"].items()]
    values = {("norms", branch): math.hypot(*(norm for of, norm in tensors if of == branch)) for branch in own}
    for key in ("update_norms", "share", "effective_rank", "output_cosine", "update_cosine"):
        by_name = entry[key] if isinstance(entry[key], Mapping) else {"+".join(own): entry[key]}  # of earlier versions
        values |= {(key, name): _number(value) for name, value in by_name.items()}
    return (int(entry["layer"]), int(entry["adapter"])), values


def cadences(run: Run) -> dict[str, list[events.Cadence]]:
    """Return the cadence events in order, by time scale."""

    def convert(event: events.Cadence) -> events.Cadence:
        observed, expected = list(map(int, event.observed)), event.expected and list(map(int, event.expected))
        return replace(event, steps=int(event.steps), observed=observed, expected=expected)

    by_scale: dict[str, list[events.Cadence]] = {}
    for event in _events(run, events.Cadence, convert):
        by_scale.setdefault(event.scale or SCALES[0].name, []).append(event)
    return by_scale


@dataclass(frozen=True)
class Consolidation:
    """One consolidation: means over its receipts, of which there is one for each layer and adapter."""

    task: int
    settings: Mapping[str, str]
    drifts: list[float]  # change of each adapter's output
    changes: Mapping[str, tuple[float, float]]  # before and after, by quantity: `z_mean`, and a branch's `_norm`
    accuracy: tuple[float, float]  # before and after, in per cent

    @classmethod
    def of(cls, event: events.Consolidation) -> "Consolidation":
        def edge(what: str, when: str) -> float:
            return mean(receipt.get(f"{what}_{when}") for receipt in event.receipts)

        settings = {key: [str(receipt[key]) for receipt in event.receipts] for key in ("alpha", "mode", "reset")}
        keys = dict.fromkeys(key for receipt in event.receipts for key in receipt)
        changed = [key.removesuffix("_before") for key in keys if key.endswith("_before")]
        return cls(
            int(event.task),
            {key: ", ".join(dict.fromkeys(texts)) for key, texts in settings.items()},
            [_number(receipt["drift"]) for receipt in event.receipts],
            {what: (edge(what, "before"), edge(what, "after")) for what in changed},
            (_number(event.accuracy_before["top1"]), _number(event.accuracy_after["top1"])),
        )


def consolidations(run: Run) -> list[Consolidation]:
    """Return the consolidations in order."""
    return _events(run, events.Consolidation, Consolidation.of)


@dataclass(frozen=True)
class Scan:
    """The batches of all scans of a run, one after another."""

    z: dict[int, list[float]]  # by layer, the smallest z of its adapters at each batch; NaN if it was not scanned
    thresholds: list[float]  # without repetitions
    asked: list[tuple[float, float]]  # batch and z at which a layer got an adapter


def scans(run: Run) -> Scan | None:
    """Return the scans of a run; None if there are none."""

    def convert(event: events.Scan) -> tuple[float, dict[int, float], float | None]:
        known = {int(layer): [float(z) for z in values if z is not None] for layer, values in event.z.items()}
        smallest = {layer: min(values, default=math.nan) for layer, values in known.items()}
        return float(event.threshold), smallest, None if event.expands is None else smallest[int(event.expands)]

    found = _events(run, events.Scan, convert)
    layers = sorted({layer for _, z, _ in found for layer in z})
    z = {layer: [smallest.get(layer, math.nan) for _, smallest, _ in found] for layer in layers}
    asked = [(float(batch), height) for batch, (_, _, height) in enumerate(found, 1) if height is not None]
    return Scan(z, sorted({threshold for threshold, _, _ in found}), asked) if found else None
