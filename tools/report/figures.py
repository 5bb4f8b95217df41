"""The figures of a report. None, or an empty iterator: there is nothing to draw."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from tools.compare.comparison import Group
from tools.finished.reader import Run
from tools.report import data
from tools.report.charts import Line, heat_map, line_chart
from tools.report.data import Quantity, Reading, Scan
from tools.report.drawing import Drawing
from utils.metrics import AccuracyMatrix
from utils.timescales.scales import NEITHER

ACCURACY, AFTER, WITHIN = "accuracy (%)", "after learning task", "task, from its first step to its last"


def _of(group: Group, title: str, text: str, draw: Callable[..., Figure]) -> Drawing:
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{title} {group.name}").strip("-")[:80]
    return Drawing(name, f"{group.name}: {title}", text, draw)


def _seeds(group: Group) -> str:
    return f"{'seed' if len(group.runs) == 1 else 'seeds'} {', '.join(group.seeds)}"


# ---- accuracy


def accuracy_curves(groups: Sequence[Group]) -> Drawing:
    """Draw A_t of every configuration."""
    lines = [_band_line(group.name, [run.curve for run in group.runs], number) for number, group in enumerate(groups)]
    text = f"Mean over seeds; the band is one standard deviation to either side. {_last(lines)}"
    return Drawing("accuracy", "Accuracy over all classes seen", text, partial(line_chart, lines, AFTER, ACCURACY))


def _band_line(label: str, curves: Sequence[Sequence[float]], style: int) -> Line:
    """Return mean and standard deviation over seeds in per cent, over the tasks that all runs have."""
    per_cent = 100 * np.array(list(zip(*curves, strict=False)))
    y, width = per_cent.mean(axis=1), per_cent.std(axis=1, ddof=1) if len(curves) > 1 else None
    band = None if width is None else ((y - width).tolist(), (y + width).tolist())
    return Line(label, range(len(y)), y.tolist(), style, band)


def _last(lines: Sequence[Line]) -> str:
    return "; ".join(f"{line.label} ends at {line.y[-1]:.1f} %" for line in lines) + "."


def matrix(group: Group, title: str, matrices: Sequence[AccuracyMatrix]) -> Drawing | None:
    """Draw R of a configuration."""
    values = data.mean_matrix(matrices)
    if np.isnan(values).all():
        return None
    ends = f"The last row goes from {values[-1, 0]:.0f} % on task 0 to {values[-1, -1]:.0f} % on the last task."
    draw = partial(heat_map, values, "accuracy on task (%)", AFTER, top=100)
    return _of(group, title, f"A row for each task learned, a column for each task. {ends}", draw)


def branch_title(name: str) -> str:
    """Return the title of a subset of branches: `a + b`, `a only`, `neither branch`."""
    return f"{name} branch" if name == NEITHER else name.replace("+", " + ") if "+" in name else f"{name} only"


def branches(group: Group) -> Iterator[Drawing | None]:
    """Draw A_t with each subset of branches, then R with each."""
    found = {branch_title(name): matrices for name, matrices in data.shared_branches(group).items()}
    if found:
        curves = [[matrix.average_accuracies for matrix in matrices] for matrices in found.values()]
        lines = list(map(_band_line, found, curves, range(len(curves))))
        text = f"Accuracy of the network with only some of its branches, mean over {_seeds(group)}. {_last(lines)}"
        yield _of(group, "accuracy by branch", text, partial(line_chart, lines, AFTER, ACCURACY))
    for title, matrices in found.items():
        yield matrix(group, title, matrices)


# ---- time scales


TELEMETRY = {  # by the title: the name of the y axis, its limits, and the keys in the event
    "norms": ("norm of the weights", None, ("norms",)),
    "update norms": ("norm of the last change", None, ("update_norms",)),
    "contribution": ("share of the output", (-0.02, 1.02), ("share",)),
    "agreement of branches": ("cosine", (-1.05, 1.05), ("output_cosine", "update_cosine")),
    "effective ranks": ("effective rank", None, ("effective_rank",)),
}


def time_scales(group: Group) -> Iterator[Drawing]:
    """Draw telemetry of the branches: means over adapters with a line for each seed, then norms by layer."""
    measured = [(run, readings) for run in group.runs if (readings := data.telemetry(run))]
    entries = [entry for _, readings in measured for reading in readings for entry in reading.adapters.values()]
    recorded = list(dict.fromkeys(quantity for entry in entries for quantity in entry))
    for title, (y_label, limits, keys) in TELEMETRY.items():
        lines = [
            _over_tasks(_label(quantity) if number == 0 else None, readings, quantity, style)
            for style, quantity in enumerate(quantity for quantity in recorded if quantity[0] in keys)
            for number, (_, readings) in enumerate(measured)
        ]
        if lines:
            text = f"Mean over the adapters in training, a line for each seed. {_ends(lines)}"
            yield _of(group, title, text, partial(line_chart, lines, WITHIN, y_label, limits=limits))
    for key, branch in recorded:
        if key == "norms":
            yield _norm_by_layer(group, *measured[0], branch)


def _label(quantity: Quantity) -> str:
    """Return the branch; for a pair of branches `output: a and b`."""
    key, name = quantity
    return f"{key.removesuffix('_cosine')}: {name.replace('+', ' and ')}" if key.endswith("_cosine") else name


def _over_tasks(
    label: str | None, readings: Sequence[Reading], quantity: Quantity, style: int, layer: int | None = None
) -> Line:
    """Return a line with a gap between tasks, as each task may train other adapters."""
    points: list[tuple[float, float]] = []
    for number, reading in enumerate(readings):
        if number and readings[number - 1].task != reading.task:
            points.append((reading.task, math.nan))
        points.append((reading.at, reading.mean(quantity, layer)))
    x, y = zip(*points, strict=True)
    return Line(label, x, y, style)


def _ends(lines: Sequence[Line]) -> str:
    known = {line.label: [y for y in line.y if not math.isnan(y)] for line in lines if line.label}
    return "; ".join(f"{label} goes from {y[0]:.3g} to {y[-1]:.3g}" for label, y in known.items() if y) + "."


def _norm_by_layer(group: Group, run: Run, readings: Sequence[Reading], branch: str) -> Drawing:
    layers = sorted({layer for reading in readings for layer, _ in reading.adapters})
    lines = [_over_tasks(f"layer {at}", readings, ("norms", branch), style, at) for style, at in enumerate(layers)]
    text = f"Seed {run.seed} only; mean over the layer's adapters in training. {_ends(lines)}"
    return _of(group, f"norm of {branch} by layer", text, partial(line_chart, lines, WITHIN, f"norm of {branch}"))


# ---- consolidation and expansion


def drift(groups: Sequence[Group]) -> Drawing | None:
    """Draw the change of the adapters' outputs by consolidation."""
    lines = []
    for style, group in enumerate(groups):
        for number, made in enumerate(made for made in map(data.consolidations, group.runs) if made):
            x, y = [float(event.task) for event in made], [data.mean(event.drifts) for event in made]
            lines.append(Line(None if number else group.name, x, y, style))
    text = f"Mean over layers and adapters, a line for each seed. {_ends(lines)}"
    draw = partial(line_chart, lines, "consolidation at the end of task", "relative drift")
    return Drawing("drift", "Consolidation drift", text, draw) if lines else None


def expansion(group: Group, run: Run, scan: Scan) -> Drawing:
    """Draw the z of every scanned layer, with the threshold."""
    count = len(next(iter(scan.z.values()), []))
    lines = [Line(f"layer {layer}", range(1, count + 1), z, style) for style, (layer, z) in enumerate(scan.z.items())]
    axes = "scanned batch, counted through all tasks", "smallest z of the layer"
    draw = partial(line_chart, lines, *axes, levels=scan.thresholds, marks=scan.asked, mark_label="adds an adapter")
    above = ", ".join(f"{level:g}" for level in scan.thresholds)
    text = f"Dashed: the threshold, {above}. {count} batches were scanned; {len(scan.asked)} of them added an adapter."
    return _of(group, f"z in the scans of seed {run.seed}", text, draw)


def adapters(group: Group) -> Drawing | None:
    """Draw the number of adapters in every block after every task."""
    counts = data.adapters_per_layer(group)
    if counts is None:
        return None
    digits = 0 if (counts == counts.round()).all() else 1
    draw = partial(heat_map, counts, AFTER, "layer", top=float(counts.max()), digits=digits)
    text = f"Mean over {_seeds(group)}; {counts[:, 0].sum():g} after task 0, {counts[:, -1].sum():g} after the last."
    return _of(group, "adapters per layer", text, draw)
