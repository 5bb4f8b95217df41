"""Accuracy, forgetting and learning curves, and old against new tasks: for a page and for a paper."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from tools.compare.comparison import Group
from tools.compare.measures import old_accuracy, plasticity
from tools.plots.charts import Line, line_chart, line_numbers
from tools.plots.drawing import SERIES, Drawing, Numbers
from utils.errors import UserError
from utils.files import atomic_write
from utils.metrics import number_with
from utils.runs import events

ACCURACY, AFTER = "accuracy (%)", "after learning task"
WITHIN = "task, from its first step to its last"
BAND = "the band is one standard deviation to either side"


def accuracy_curves(groups: Sequence[Group]) -> Drawing:
    """Draw A_t of every configuration."""
    lines = [_curve(group, number) for number, group in enumerate(groups)]
    seeds = "" if not any(line.band for line in lines) else f"Mean over seeds; {BAND}. "
    draw, numbers = partial(line_chart, lines, AFTER, ACCURACY), line_numbers(lines, AFTER)
    return Drawing("accuracy", "Accuracy over all classes seen", f"{seeds}{last(lines)}", draw, numbers)


def _curve(group: Group, style: int) -> Line:
    line = band_line(group.name, [run.curve for run in group.runs], style)
    return replace(line, x=[_number(group, int(task)) for task in line.x])


def _number(group: Group, task: int) -> int:
    """Return the number of a task; where transient tasks are left out, the others keep theirs."""
    config = group.runs[0].config
    return number_with(config.get("transient", []) if config.get("leave_out_transient") else [], task)


def band_line(label: str, curves: Sequence[Sequence[float]], style: int) -> Line:
    """Return mean and standard deviation over seeds in per cent, over the tasks that all runs have."""
    per_cent = 100 * np.array(list(zip(*curves, strict=False)))
    y, width = per_cent.mean(axis=1), per_cent.std(axis=1, ddof=1) if len(curves) > 1 else None
    band = None if width is None else ((y - width).tolist(), (y + width).tolist())
    return Line(label, range(len(y)), y.tolist(), style, band)


def last(lines: Sequence[Line]) -> str:
    """Return where the lines end, as a sentence."""
    return "; ".join(f"{line.label} ends at {line.y[-1]:.1f} %" for line in lines) + "."


def forgetting_curves(groups: Sequence[Group]) -> Drawing:
    """Draw the accuracy on each task from the moment it was learned, mean over seeds.

    The tasks of one configuration differ in colour. Of several configurations, each has one colour.
    """
    lines, several = [], len(groups) > 1
    for number, group in enumerate(groups):
        matrices, named = [run.matrix for run in group.runs], group.name
        values = 100 * np.mean([m.matrix[: _tasks(group), : _tasks(group)] for m in matrices], axis=0)
        places = [_number(group, task) for task in range(len(values))]
        for task, place in enumerate(places):
            name = f"task {place}{', transient' if task in matrices[0].transient else ''}"
            y = values[task:, task].tolist()
            if not np.isnan(y).all():  # the task has test images
                label, style = (f"{group.name}: {name}", number) if several else (name, task)
                lines.append(Line(label, places[task:], y, style, legend=named if several else None))
                named = ""
    mean = "Mean over seeds; " if any(len(group.runs) > 1 for group in groups) else ""
    draw, numbers = partial(line_chart, lines, AFTER, "accuracy on the task (%)"), line_numbers(lines, AFTER)
    text = f"{mean}each line begins when its task was learned. {last(lines)}"
    return Drawing("forgetting", "Accuracy on each task over the stream", text, draw, numbers)


def learning_curves(groups: Sequence[Group]) -> Drawing:
    """Draw the accuracy on the classes of each new task, and on those before it, while it is learned.

    Raises:
        UserError: No run was evaluated in the middle of a task.
    """
    lines, rows = [], []
    for style, group in enumerate(groups):
        found = evaluations(group)
        if found:
            ends = [number for number, row in enumerate(found) if number and row.task != found[number - 1].task]
            x = np.insert([row.at for row in found], ends, [found[number].task for number in ends])
            for which, name in enumerate(("new", "old")):
                y = np.insert([row.accuracy[which] for row in found], ends, math.nan).tolist()
                legend, thin = (group.name, which > 0) if len(groups) > 1 else (f"{name} classes", False)
                look = style + which * len(SERIES)  # of the same colour, dashed
                lines.append(Line(f"{group.name}, {name}", x.tolist(), y, look, thin=thin, legend=legend))
        rows += [
            [group.name, *map(str, row[:3]), *("" if math.isnan(v) else f"{v:.6g}" for v in row.accuracy)]
            for row in found
        ]
    if not lines:
        raise UserError("no run was evaluated in the middle of a task, as runs with eval_every are")
    mean = "Mean over seeds. " if any(len(group.runs) > 1 for group in groups) else ""
    text = f"{mean}New: the classes of the task that is learned; old: all classes before them, dashed."
    numbers = Numbers(["configuration", "task", "cycle", "epoch", "accuracy on new (%)", "accuracy on old (%)"], rows)
    draw = partial(line_chart, lines, WITHIN, "accuracy (%) on new classes; dashed: on old")
    return Drawing("learning", "Learning each new task", text, draw, numbers)


class Evaluated(NamedTuple):
    """An evaluation in the middle of a task, with the means over seeds."""

    task: int
    cycle: int
    epoch: int
    at: float  # task, and the share of its epochs until then
    accuracy: tuple[float, float]  # per cent on new and on old classes


def evaluations(group: Group) -> list[Evaluated]:
    """Return the evaluations that all runs of a configuration have, in order."""
    each = [
        {
            (event.task, event.cycle, event.epoch): grouped
            for event in run.events(events.Evaluation)
            if isinstance(grouped := event.accuracy.get("grouped"), dict)
        }
        for run in group.runs
    ]
    shared = [place for place in each[0] if all(place in other for other in each)]
    if not shared:
        return []
    trained = [(e.task, e.cycle, e.epoch) for e in group.runs[0].events(events.Epoch) if e.phase == "func"]
    found = []
    for place in shared:
        task, cycle, epoch = place
        of_task = [other <= place for other in trained if other[0] == task] or [True]
        new, old = (fmean(_known(found[place].get(key)) for found in each) for key in ("new", "old"))
        number = _number(group, task)
        found.append(Evaluated(number, cycle, epoch, number + fmean(of_task), (new, old if task else math.nan)))
    return found


def _known(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _tasks(group: Group) -> int:
    return min(len(run.matrix.count) for run in group.runs)


def old_and_new(groups: Sequence[Group]) -> Drawing:
    """Draw stability and plasticity: the accuracy on new tasks against that on old tasks, a point for each seed.

    Raises:
        UserError: No run has two tasks.
    """
    points = {
        group.name: [
            (seed, 100 * old_accuracy(run), 100 * plasticity(run))
            for seed, run in zip(group.seeds, group.runs, strict=True)
            if not np.isnan([old_accuracy(run), plasticity(run)]).any()
        ]
        for group in groups
    }
    if not any(points.values()):
        raise UserError("no run has two tasks with test images, so there are no old and new ones")
    lines = [
        Line(name, [x for _, x, _ in each], [y for *_, y in each], style, joined=False)
        for style, (name, each) in enumerate(points.items())
    ]
    rows = [[name, seed, f"{x:.6g}", f"{y:.6g}"] for name, each in points.items() for seed, x, y in each]
    x_label, y_label = "accuracy on old tasks (%)", "accuracy on the new task (%)"
    text = "A point for each seed. New: mean over t > 0 of the accuracy on task t after learning it. Old: mean over "
    text += "t > 0 of the accuracy on the tasks before t after learning task t. Upper right is better."
    numbers = Numbers(["configuration", "seed", x_label, y_label], rows)
    return Drawing("old-and-new", "Old and new tasks", text, partial(line_chart, lines, x_label, y_label), numbers)


PLOTS: dict[str, Callable[[Sequence[Group]], Drawing]] = {
    "accuracy": accuracy_curves,
    "forgetting": forgetting_curves,
    "learning": learning_curves,
    "old-and-new": old_and_new,
}


def write_plot(groups: Sequence[Group], file: Path, width: float, plot: str = "accuracy") -> None:
    """Write a plot as the kind of file that the name's ending says, of a width in inches.

    Args:
        groups: What to draw.
        file: Its name ends in .svg, .pdf or .png, or for the numbers in .csv.
        width: Inches.
        plot: One of `PLOTS`.

    Raises:
        UserError: There is nothing to draw, or the file cannot be written.
    """
    try:
        atomic_write(file, PLOTS[plot](groups).file(file.suffix.lower().removeprefix("."), width))
    except OSError as error:
        raise UserError(f"cannot be written: {error}") from None
