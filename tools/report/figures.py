"""The figures of a report: for each, what is drawn of which runs. None or an empty list: nothing to draw."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tools.compare.comparison import Group
from tools.finished.reader import Run
from tools.report.charts import Line, heat_map, line_chart
from tools.report.data import (
    BOTH,
    Band,
    Reading,
    Scan,
    adapters_per_layer,
    consolidations,
    mean_matrix,
    shared_branches,
    telemetry,
)
from tools.report.drawing import Drawing

TITLES = {"slow+fast": "slow + fast", "slow": "slow only", "fast": "fast only", "neither": "neither branch"}
AFTER, WITHIN = "after learning task", "task, from its first step to its last"


def _named(kind: str, name: str) -> str:
    """The stem of a file."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{kind} {name}").strip("-")[:80]


def seeds(group: Group) -> str:
    """The seeds of a configuration."""
    known = ", ".join("unknown" if run.seed is None else str(run.seed) for run in group.runs)
    return f"seed {known}" if len(group.runs) == 1 else f"seeds {known}"


def accuracy_curves(groups: Sequence[Group]) -> Drawing:
    """A_t of every configuration."""
    lines = [_band_line(group.name, [run.curve for run in group.runs], number) for number, group in enumerate(groups)]
    last = "; ".join(f"{line.label} ends at {line.y[-1]:.1f} %" for line in lines)
    figure = line_chart(lines, AFTER, "accuracy (%)")
    text = f"Mean over seeds; the band is one standard deviation to either side. {last}."
    return Drawing("accuracy", "Accuracy over all classes seen", text, figure)


def _band_line(label: str, curves: Sequence[Sequence[float]], style: int) -> Line:
    band = Band.of([[100 * value for value in curve] for curve in curves])
    edges = (band.low, band.high) if len(curves) > 1 else None
    return Line(label, range(len(band.mean)), band.mean, style, edges)


def accuracy_matrix(group: Group) -> Drawing | None:
    """R of a configuration."""
    values = mean_matrix([run.matrix for run in group.runs])
    return _matrix(f"{group.name}: accuracy matrix", _named("matrix", group.name), values)


def _matrix(title: str, name: str, values: np.ndarray) -> Drawing | None:
    if np.isnan(values).all():
        return None
    figure = heat_map(values, "accuracy on task (%)", AFTER, rows=range(len(values)), top=100)
    ends = f"The last row goes from {values[-1, 0]:.0f} % on task 0 to {values[-1, -1]:.0f} % on the last task."
    return Drawing(name, title, f"A row for each task learned, a column for each task. {ends}", figure)


def branch_curves(group: Group) -> Drawing | None:
    """A_t of each branch."""
    found = shared_branches(group)
    if not found:
        return None
    lines = [
        _band_line(TITLES[name], [matrix.average_accuracies for matrix in matrices], number)
        for number, (name, matrices) in enumerate(found.items())
    ]
    figure = line_chart(lines, AFTER, "accuracy (%)")
    last = "; ".join(f"{line.label} ends at {line.y[-1]:.1f} %" for line in lines)
    text = f"What the network answers with only some of its branches, mean over {seeds(group)}. {last}."
    return Drawing(_named("branches", group.name), f"{group.name}: accuracy by branch", text, figure)


def branch_matrices(group: Group) -> Iterator[Drawing]:
    """R of each branch."""
    for name, matrices in shared_branches(group).items():
        stem = _named(f"matrix {name}", group.name)
        drawing = _matrix(f"{group.name}: {TITLES[name]}", stem, mean_matrix(matrices))
        if drawing:
            yield drawing


# ---- fast and slow


SCALES = {  # title, its y axis, its quantities by the label of their lines
    "norms": ("Norms", "norm of the weights", {branch: f"norm {branch}" for branch in BOTH}),
    "updates": ("Update norms", "norm of the last change", {branch: f"update {branch}" for branch in BOTH}),
    "contribution": ("Contribution", "share of the output", {branch: f"share {branch}" for branch in BOTH}),
    "cosines": ("Agreement of fast and slow", "cosine", {of: f"cosine {of}" for of in ("output", "update")}),
    "ranks": ("Effective ranks", "effective rank", {branch: f"rank {branch}" for branch in BOTH}),
}
LIMITS = {"contribution": (-0.02, 1.02), "cosines": (-1.05, 1.05)}


def time_scales(group: Group) -> Iterator[Drawing]:
    """What telemetry saw of the two branches: means over adapters with a line a seed, then norms by layer."""
    by_run = [(run, telemetry(run)) for run in group.runs]
    measured = [(run, readings) for run, readings in by_run if readings]
    if not measured:
        return
    for key, (title, y_label, quantities) in SCALES.items():
        lines = [
            _over_tasks(label if place == 0 else None, readings, [r.mean(name) for r in readings], style, place)
            for style, (label, name) in enumerate(quantities.items())
            for place, (_, readings) in enumerate(measured)
        ]
        text = f"Mean over the adapters in training, a line for each seed. {_ends(lines)}"
        figure = line_chart(lines, WITHIN, y_label, limits=LIMITS.get(key))
        yield Drawing(_named(key, group.name), f"{group.name}: {title.lower()}", text, figure)
    for branch in BOTH:
        yield _by_layer(group, *measured[0], branch)


def _over_tasks(label: str | None, readings: Sequence[Reading], y: Sequence[float], style: int, place: int) -> Line:
    """A line with a gap between tasks, as each task may train other adapters."""
    x, values = [], []
    for number, reading in enumerate(readings):
        if number and readings[number - 1].task != reading.task:
            x.append(float(reading.task))
            values.append(float("nan"))
        x.append(reading.at)
        values.append(y[number])
    return Line(label, x, values, style, faint=place > 0)


def _ends(lines: Sequence[Line]) -> str:
    known = {line.label: [y for y in line.y if not math.isnan(y)] for line in lines if line.label}
    return "; ".join(f"{label} goes from {y[0]:.3g} to {y[-1]:.3g}" for label, y in known.items() if y) + "."


def _by_layer(group: Group, run: Run, readings: Sequence[Reading], branch: str) -> Drawing:
    layers = sorted({layer for reading in readings for layer, _ in reading.adapters})
    lines = []
    for style, layer in enumerate(layers):
        inside = [[v[f"norm {branch}"] for (at, _), v in r.adapters.items() if at == layer] for r in readings]
        values = [float(np.mean(norms)) if norms else float("nan") for norms in inside]
        lines.append(_over_tasks(f"layer {layer}", readings, values, style, 0))
    figure = line_chart(lines, WITHIN, f"norm of {branch}")
    title = f"{group.name}: norm of {branch} by layer"
    text = f"Seed {run.seed} only; mean over the layer's adapters in training. {_ends(lines)}"
    return Drawing(_named(f"{branch} by layer", group.name), title, text, figure)


# ---- consolidation and expansion


def drift(groups: Sequence[Group]) -> Drawing | None:
    """How far consolidation moved the adapters' outputs."""
    lines = []
    for style, group in enumerate(groups):
        found = [made for made in map(consolidations, group.runs) if made]
        for place, made in enumerate(found):
            x, y = [float(event.task) for event in made], [event.mean("drift") for event in made]
            lines.append(Line(group.name if place == 0 else None, x, y, style, faint=place > 0))
    if not lines:
        return None
    figure = line_chart(lines, "consolidation at the end of task", "relative drift")
    text = f"Mean over layers and adapters, a line for each seed. {_ends(lines)}"
    return Drawing("drift", "Consolidation drift", text, figure)


def expansion(name: str, run: Run, scan: Scan) -> Drawing:
    """The z of every scanned layer against the threshold."""
    count = len(next(iter(scan.z.values()), []))
    lines = [Line(f"layer {layer}", range(1, count + 1), z, style) for style, (layer, z) in enumerate(scan.z.items())]
    figure = line_chart(
        lines,
        "scanned batch, counted through all tasks",
        "smallest z of the layer",
        levels=scan.thresholds,
        marks=scan.asked,
        mark_label="adds an adapter",
    )
    above = ", ".join(f"{level:g}" for level in scan.thresholds)
    text = f"Dashed: the threshold, {above}. {count} batches were scanned; {len(scan.asked)} of them added an adapter."
    return Drawing(
        _named(f"expansion s{run.seed}", name), f"{name}, seed {run.seed}: z against threshold", text, figure
    )


def adapters(group: Group) -> Drawing | None:
    """Adapters in every block after every task."""
    counts = adapters_per_layer(group)
    if counts is None:
        return None
    whole = bool((counts == counts.round()).all())
    figure = heat_map(
        counts,
        AFTER,
        "layer",
        rows=range(len(counts)),
        top=float(counts.max()),
        digits=0 if whole else 1,
    )
    text = f"Mean over {seeds(group)}; {counts[:, 0].sum():g} after task 0, {counts[:, -1].sum():g} after the last."
    return Drawing(_named("adapters", group.name), f"{group.name}: adapters per layer", text, figure)
