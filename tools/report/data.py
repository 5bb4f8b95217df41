"""What a report draws, taken from finished runs: accuracies by branch, and what their events say."""

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
    """The mean of what is known; NaN of nothing."""
    known = [value for value in map(_number, values) if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# ---- accuracy and structure


def mean_matrix(matrices: Sequence[AccuracyMatrix]) -> np.ndarray:
    """R in per cent, mean over seeds; of other lengths, the tasks that all have."""
    size = min(len(matrix.count) for matrix in matrices)
    return 100 * np.mean([matrix.matrix[:size, :size] for matrix in matrices], axis=0)


def branches(run: Run) -> dict[str, AccuracyMatrix]:
    """The accuracy matrix of every choice of branches, all of them first; empty where they were not measured."""
    measured = {name: AccuracyMatrix.from_json(matrix) for name, matrix in run.results.get("branches", {}).items()}
    whole = "+".join(name for name in measured if "+" not in name and name != NEITHER)
    return {whole: run.matrix, **measured} if measured else {}


def shared_branches(group: Group) -> dict[str, list[AccuracyMatrix]]:
    """The choices of branches that every run of a configuration measured, with a matrix a run."""
    each = [branches(run) for run in group.runs]
    return {name: [found[name] for found in each] for name in each[0] if all(name in found for found in each)}


def adapters_per_layer(group: Group) -> np.ndarray | None:
    """(layers, tasks): adapters in every block after every task, mean over seeds; None without any."""
    if not all(run.last_task.get("adapters") for run in group.runs):
        return None
    each = [np.array([task["adapters"] for task in run.results["tasks"]], dtype=float).T for run in group.runs]
    layers, tasks = (min(sizes) for sizes in zip(*(counts.shape for counts in each), strict=True))
    return np.mean([counts[:layers, :tasks] for counts in each], axis=0)


# ---- events


def _events(run: Run, kind: type[E], convert: Callable[[E], T]) -> list[T]:
    """The events of one kind, converted; none for a log.

    Raises:
        RunError: An event is malformed; the message names the run.
    """
    found = iter(()) if run.is_log else events.read_events(run.path / events.FILE, kind)
    try:
        return list(map(convert, found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{run.path}: a {kind.kind} event is malformed: {error!r}") from error


@dataclass(frozen=True)
class Reading:
    """One telemetry event.

    Attributes:
        task: When it was taken.
        at: The task plus the share of its measured steps done: 2.5 is halfway through task 2.
        adapters: Quantities by (layer, adapter).
    """

    task: int
    at: float
    adapters: Mapping[tuple[int, int], Mapping[Quantity, float]]

    def mean(self, quantity: Quantity, layer: int | None = None) -> float:
        """Over the adapters, or over those of a layer."""
        return mean(values.get(quantity) for (at, _), values in self.adapters.items() if layer in (None, at))


def telemetry(run: Run) -> list[Reading]:
    """The readings in order; steps of a task's func phases count on from phase to phase."""

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
    """By time scale, its func phases in order."""

    def convert(event: events.Cadence) -> events.Cadence:
        observed, expected = list(map(int, event.observed)), event.expected and list(map(int, event.expected))
        return replace(event, steps=int(event.steps), observed=observed, expected=expected)

    by_scale: dict[str, list[events.Cadence]] = {}
    for event in _events(run, events.Cadence, convert):
        by_scale.setdefault(event.scale or SCALES[0].name, []).append(event)
    return by_scale


@dataclass(frozen=True)
class Consolidation:
    """One consolidation: means over its receipts, of which there is one for each layer and adapter.

    Attributes:
        task: When it was made.
        settings: Text by key.
        drifts: Change of each adapter's output.
        changes: Before and after, of all that the receipts have: `z_mean`, and a branch's `_norm`.
        accuracy: Before and after, in per cent.
    """

    task: int
    settings: Mapping[str, str]
    drifts: list[float]
    changes: Mapping[str, tuple[float, float]]
    accuracy: tuple[float, float]

    @classmethod
    def of(cls, event: events.Consolidation) -> "Consolidation":
        """What an event says."""

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
    """The consolidations in order."""
    return _events(run, events.Consolidation, Consolidation.of)


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


def scans(run: Run) -> Scan | None:
    """The expansion record; None without scans."""

    def convert(event: events.Scan) -> tuple[float, dict[int, float], float | None]:
        known = {int(layer): [float(z) for z in values if z is not None] for layer, values in event.z.items()}
        smallest = {layer: min(values, default=math.nan) for layer, values in known.items()}
        return float(event.threshold), smallest, None if event.expands is None else smallest[int(event.expands)]

    found = _events(run, events.Scan, convert)
    layers = sorted({layer for _, z, _ in found for layer in z})
    z = {layer: [smallest.get(layer, math.nan) for _, smallest, _ in found] for layer in layers}
    asked = [(float(batch), height) for batch, (_, _, height) in enumerate(found, 1) if height is not None]
    return Scan(z, sorted({threshold for threshold, _, _ in found}), asked) if found else None
