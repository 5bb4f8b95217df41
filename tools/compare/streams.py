"""What the stream of tasks does to an accuracy: the harm of a transient task, and the spread over class orders."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from tools.compare.comparison import Group
from tools.compare.measures import MEASURES
from tools.compare.paired import Difference, difference, holm, spread
from tools.finished.reader import Run
from utils.metrics import AccuracyMatrix

ORDER = ("shuffle", "class_order_seed", "class_order", "tasks")  # keys of the class order
WHOLE = "whole network"
NOTE = (
    "core: the classes of the other tasks; A_t and the averages are over them. Differences: with the transient "
    "task minus without, on equal seeds, with a 95 % interval; p: two-sided paired t test, in brackets corrected for "
    "the rows of its table by Holm's method"
)


class Rows(NamedTuple):
    """A table with a title; header and rows have the same number of cells."""

    title: str
    header: list[str]
    rows: list[list[str]]


# ---- transient tasks


def transient_tables(groups: Sequence[Group]) -> Iterator[Rows]:
    """Yield, for each configuration with transient tasks, what they did to the core, and what is left of them."""
    for group in groups:
        if group.runs[0].matrix.transient:
            without = next((other for other in groups if _key(other) == _key(group) and other is not group), None)
            if without and group.by_seed.keys() & without.by_seed.keys():
                yield _core_table(group, without)
            yield _branch_table(group, without)


def _key(group: Group) -> Mapping[str, Any]:
    return {key: value for key, value in group.identity.items() if key != "leave_out_transient"}


def _core_table(group: Group, without: Group) -> Rows:
    """Return A_t with and without the transient tasks, from the task before the first of them on."""
    matrix = group.runs[0].matrix
    tasks = range(matrix.transient[0] - 1, len(matrix.count))
    gaps = [_gap(group, without, task) for task in tasks]
    tested = [place for place, gap in enumerate(gaps) if not math.isnan(gap.p)]
    corrected = dict(zip(tested, holm([gaps[place].p for place in tested]), strict=True))
    rows = []
    for place, (task, gap) in enumerate(zip(tasks, gaps, strict=True)):
        last = ", the last" if task == len(matrix.count) - 1 else ""
        name = f"task {task}{', transient' if task in matrix.transient else ''}{last}"
        values = [_mean([run.curve[task] for run in group.runs]), _mean(_before(without, matrix, task))]
        p = "-" if place not in corrected else f"{gap.p:.3f} ({corrected[place]:.3f})"
        rows.append([name, *values, _difference(gap), p])
    numbers = ", ".join(map(str, matrix.transient))
    title = f"Core accuracy with and without transient task {numbers}; {group.name} and {without.name}; per cent"
    return Rows(title, ["after", "with", "without", "difference", "p (corrected p)"], rows)


def _before(without: Group, whole: AccuracyMatrix, task: int) -> list[float]:
    """Return the core accuracy of each run without transient tasks, after the last task until `task` that it has."""
    return [run.curve[_place(whole, task)] for run in without.runs]


def _place(whole: AccuracyMatrix, task: int) -> int:
    return sum(other not in whole.transient for other in range(task + 1)) - 1


def _gap(group: Group, without: Group, task: int, branch: str = WHOLE) -> Difference:
    """Return the paired difference of the core accuracy after a task, with the transient tasks minus without."""
    seeds = sorted(group.by_seed.keys() & without.by_seed.keys())
    ours = [_of(group.by_seed[seed], branch).average_accuracy(task) for seed in seeds]
    place = _place(group.runs[0].matrix, task)
    return difference(ours, [_of(without.by_seed[seed], branch).average_accuracy(place) for seed in seeds])


def _of(run: Run, branch: str) -> AccuracyMatrix:
    return run.matrix if branch == WHOLE else run.branches[branch]


def _branch_table(group: Group, without: Group | None) -> Rows:
    """Return, for each subset of branches, the transient task itself and the core around it."""
    whole = group.runs[0].matrix
    branches = [name for name in group.runs[0].branches if all(name in run.branches for run in group.runs)]
    alone = [WHOLE, *(name for name in branches if any(_of(run, name) != run.matrix for run in group.runs))]
    rows = [
        [str(task), name.replace("+", " + "), *_branch_cells(group, without, name, task)]
        for task in whole.transient
        for name in alone
    ]
    header = ["task", "answers of", "it, when learned", "it, at the end", "core before it", "core after it"]
    header += ["core at the end", "difference after it", "difference at the end"]
    return Rows(f"Transient tasks of {group.name}, by branch; accuracies in per cent", header, rows)


def _branch_cells(group: Group, without: Group | None, branch: str, task: int) -> Iterator[str]:
    found = [_of(run, branch) for run in group.runs]
    last, place = len(found[0].count) - 1, found[0].transient.index(task)
    yield _mean([matrix.transient_learned[place] for matrix in found])
    yield _mean([matrix.transient_left[place] for matrix in found])
    for at in (task - 1, task, last):
        yield _mean([matrix.average_accuracy(at) for matrix in found])
    paired = without is not None and all(branch in (WHOLE, *run.branches) for run in without.runs)
    for at in (task, last):
        yield _difference(_gap(group, without, at, branch)) if without and paired else "-"


# ---- class orders


def order_tables(groups: Sequence[Group]) -> Iterator[Rows]:
    """Yield, for configurations that differ in nothing but the class order, how much depends on it."""
    families: list[list[Group]] = []
    for group in groups:
        rest = [{k: v for k, v in one.identity.items() if k not in ORDER} for one in (group, *(f[0] for f in families))]
        if group.is_log or not rest[0]:
            continue
        if rest[0] in rest[1:]:
            families[rest[1:].index(rest[0])].append(group)
        else:
            families.append([group])
    for family in families:
        if len(family) > 1:
            yield _order_table(family)


def _order_table(family: Sequence[Group]) -> Rows:
    rows = []
    for measure in MEASURES:
        each = {group.name: group.spread(measure) for group in family}
        means = {name: found.mean for name, found in each.items() if not math.isnan(found.mean)}
        if measure.better is None or len(means) < len(family):
            continue
        within = [found.std**2 for found in each.values() if not math.isnan(found.std)]
        worst, best = sorted(means, key=means.__getitem__, reverse=measure.better == "lower")[:: len(means) - 1]
        seeds = _cell(math.sqrt(fmean(within))) if within else "-"
        ends = [f"{_cell(means[name])} ({name})" for name in (worst, best)]
        rows.append([measure.title, _cell(fmean(means.values())), _cell(stdev(means.values())), seeds, *ends])
    names = ", ".join(group.name for group in family[:4]) + (", ..." if len(family) > 4 else "")
    header = ["measure", "mean", "deviation over orders", "over seeds of an order", "worst order", "best order"]
    return Rows(f"Over {len(family)} class orders ({names}), each the mean of its seeds; per cent", header, rows)


# ---- cells


def _cell(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{100 * value:{sign}.2f}"


def _mean(values: Sequence[float]) -> str:
    found = spread(values)
    return _cell(found.mean) + ("" if math.isnan(found.std) else f" ± {_cell(found.std)}")


def _difference(gap: Difference) -> str:
    exact = math.isnan(gap.low) or gap.constant
    return _cell(gap.mean, "+") + ("" if exact else f" [{_cell(gap.low, '+')}, {_cell(gap.high, '+')}]")
