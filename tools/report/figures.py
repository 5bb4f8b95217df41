"""The figures of a report. None, or an empty iterator: there is nothing to draw."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tools.compare.comparison import Group
from tools.compare.plot import ACCURACY, AFTER, WITHIN, band_line, last
from tools.finished.reader import Run
from tools.plots.charts import Line, heat_map, line_chart, line_numbers
from tools.plots.drawing import Drawing, Numbers
from tools.report import data
from tools.report.data import Quantity, Reading, Scan
from utils.timescales.scales import NEITHER


def of_group(group: str, title: str, text: str, draw: Callable[..., Figure], numbers: Numbers) -> Drawing:
    """Return a chart of the configuration of that name."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{title} {group}").strip("-")[:80]
    return Drawing(name, f"{group}: {title}", text, draw, numbers)


def _lines(group: Group, title: str, text: str, lines: Sequence[Line], x: str, y: str, **more: Any) -> Drawing:
    return of_group(group.name, title, text, partial(line_chart, lines, x, y, **more), line_numbers(lines, x))


def _table_of(values: np.ndarray, row: str, column: str, digits: int) -> Numbers:
    """Return a matrix with the numbers of its rows and columns; NaN as an empty cell."""
    cells = [["" if math.isnan(value) else f"{value:.{digits}f}" for value in line] for line in values]
    return Numbers(
        [row, *(f"{column} {n}" for n in range(values.shape[1]))], [[str(n), *c] for n, c in enumerate(cells)]
    )


def _seeds(group: Group) -> str:
    return f"{'seed' if len(group.runs) == 1 else 'seeds'} {', '.join(group.seeds)}"


# ---- accuracy


def matrix(group: str, title: str, values: np.ndarray) -> Drawing | None:
    """Draw R in per cent."""
    if np.isnan(values).all():
        return None
    ends = f"The last row goes from {values[-1, 0]:.0f} % on task 0 to {values[-1, -1]:.0f} % on the last task."
    draw = partial(heat_map, values, "accuracy on task (%)", AFTER, top=100)
    numbers = _table_of(values, AFTER, "accuracy on task", 2)
    return of_group(group, title, f"A row for each task learned, a column for each task. {ends}", draw, numbers)


def branch_title(name: str) -> str:
    """Return the title of a subset of branches: `a + b`, `a only`, `neither branch`."""
    return f"{name} branch" if name == NEITHER else name.replace("+", " + ") if "+" in name else f"{name} only"


def by_branch(group: Group) -> Drawing | None:
    """Draw A_t with each subset of branches."""
    found = {branch_title(name): matrices for name, matrices in data.shared_branches(group).items()}
    if not found:
        return None
    curves = [[matrix.average_accuracies for matrix in matrices] for matrices in found.values()]
    lines = list(map(band_line, found, curves, range(len(curves))))
    of = "mean over" if len(group.runs) > 1 else "of"
    text = f"Accuracy of the network with only some of its branches, {of} {_seeds(group)}. {last(lines)}"
    return _lines(group, "accuracy by branch", text, lines, AFTER, ACCURACY)


def branches(group: Group) -> Iterator[Drawing | None]:
    """Draw R with each subset of branches; equal matrices once."""
    named = ((branch_title(name), data.mean_matrix(some)) for name, some in data.shared_branches(group).items())
    for title, values in data.distinct(named):
        yield matrix(group.name, title, values)


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
            _over_tasks(_seeded(_label(quantity), run, measured), readings, quantity, style, thin=number > 0)
            for style, quantity in enumerate(quantity for quantity in recorded if quantity[0] in keys)
            for number, (run, readings) in enumerate(measured)
        ]
        if lines:
            each = ", a line for each seed" if len(measured) > 1 else ""
            text = f"Mean over the adapters in training{each}. {_ends(lines)}"
            yield _lines(group, title, text, lines, WITHIN, y_label, limits=limits)
    for key, branch in recorded:
        if key == "norms" and (drawing := _norm_by_layer(group, *measured[0], branch)):
            yield drawing


def _label(quantity: Quantity) -> str:
    """Return the branch; for a pair of branches `output: a and b`."""
    key, name = quantity
    return f"{key.removesuffix('_cosine')}: {name.replace('+', ' and ')}" if key.endswith("_cosine") else name


def _over_tasks(
    label: str,
    readings: Sequence[Reading],
    quantity: Quantity,
    style: int,
    layer: int | None = None,
    thin: bool = False,
) -> Line:
    """Return a line with a gap between tasks, as each task may train other adapters."""
    points: list[tuple[float, float]] = []
    for number, reading in enumerate(readings):
        if number and readings[number - 1].task != reading.task:
            points.append((reading.task, math.nan))
        points.append((reading.at, reading.mean(quantity, layer)))
    x, y = zip(*points, strict=True)
    return Line(label, x, y, style, thin=thin)


def _seeded(label: str, run: Run, measured: Sequence[tuple[Run, Any]]) -> str:
    """Return a label with the seed if there are several."""
    return label if len(measured) == 1 else f"{label}, seed {run.seed}"


def _ends(lines: Sequence[Line]) -> str:
    known = {line.label: [y for y in line.y if not math.isnan(y)] for line in lines if not line.thin}
    return "; ".join(f"{label} goes from {y[0]:.3g} to {y[-1]:.3g}" for label, y in known.items() if y) + "."


def _norm_by_layer(group: Group, run: Run, readings: Sequence[Reading], branch: str) -> Drawing | None:
    """Draw the norm in the layers where it changes; a layer whose adapters do not train has no line."""
    layers = sorted({layer for reading in readings for layer, _ in reading.adapters})
    moving = [at for at in layers if any(reading.mean(("update_norms", branch), at) > 0 for reading in readings)]
    lines = [_over_tasks(f"layer {at}", readings, ("norms", branch), style, at) for style, at in enumerate(moving)]
    text = f"Seed {run.seed} only; mean over the layer's adapters in training. {_ends(lines)}"
    return _lines(group, f"norm of {branch} by layer", text, lines, WITHIN, f"norm of {branch}") if lines else None


# ---- consolidation and expansion


def drift(groups: Sequence[Group]) -> Drawing | None:
    """Draw the change of the adapters' outputs by consolidation."""
    lines = []
    for style, group in enumerate(groups):
        consolidated = [(run, made) for run in group.runs if (made := data.consolidations(run))]
        for number, (run, made) in enumerate(consolidated):
            x, y = [float(event.task) for event in made], [data.mean(event.drifts) for event in made]
            lines.append(Line(_seeded(group.name, run, consolidated), x, y, style, thin=number > 0))
    each = ", a line for each seed" if any(line.thin for line in lines) else ""
    text, x_label = f"Mean over layers and adapters{each}. {_ends(lines)}", "consolidation at the end of task"
    draw, numbers = partial(line_chart, lines, x_label, "relative drift"), line_numbers(lines, x_label)
    return Drawing("drift", "Consolidation drift", text, draw, numbers) if lines else None


def expansion(group: Group, run: Run, scan: Scan) -> Drawing:
    """Draw the z of every scanned layer, with the threshold."""
    count = len(next(iter(scan.z.values()), []))
    lines = [Line(f"layer {layer}", range(1, count + 1), z, style) for style, (layer, z) in enumerate(scan.z.items())]
    axes = "scanned batch, counted through all tasks", "smallest z of the layer"
    more: dict[str, Any] = {"levels": scan.thresholds, "marks": scan.asked, "mark_label": "adds an adapter"}
    above = ", ".join(f"{level:g}" for level in scan.thresholds)
    text = f"Dashed: the threshold, {above}. {count} batches were scanned; {len(scan.asked)} of them added an adapter."
    return _lines(group, f"z in the scans of seed {run.seed}", text, lines, *axes, **more)


def adapters(groups: Sequence[Group]) -> Iterator[Drawing]:
    """Draw the number of adapters in every block after every task; equal ones once."""
    for name, counts in data.distinct((group.name, data.adapters_per_layer(group)) for group in groups):
        digits = 0 if (counts == counts.round()).all() else 1
        draw = partial(heat_map, counts, AFTER, "layer", top=float(counts.max()), digits=digits)
        text = f"{counts[:, 0].sum():g} after task 0, {counts[:, -1].sum():g} after the last"
        text += "; mean over seeds." if any(len(group.runs) > 1 for group in groups) else "."
        yield of_group(name, "adapters per layer", text, draw, _table_of(counts, "layer", "after task", digits))
