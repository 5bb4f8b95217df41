"""What the stream of tasks does to an accuracy: the harm of a transient task, and the spread over class orders."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from tools.compare.comparison import Family, Group
from tools.compare.measures import MAIN, MEASURES, Measure
from tools.compare.paired import LEVEL, Difference, difference, holm, p_text, spread
from tools.finished.reader import Run
from utils.metrics import AccuracyMatrix
from utils.timescales.scales import NEITHER

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
    pairs = dict(transient_pairs(groups))
    for group in groups:
        if group.runs[0].matrix.transient:
            without = pairs.get(group.name)
            if without:
                yield _core_table(group, without)
            yield _branch_table(group, without)


def transient_pairs(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    """Return the names of configurations with transient tasks, each with the one that differs in leaving them out."""
    return [
        (group.name, other)
        for group in groups
        if group.runs[0].matrix.transient
        for other in groups
        if other is not group and _key(other) == _key(group) and group.pairs(other)
    ]


def _key(group: Group) -> Mapping[str, Any]:
    return {key: value for key, value in group.identity.items() if key != "leave_out_transient"}


def transient_sentences(groups: Sequence[Group]) -> Iterator[str]:
    """Yield for each transient task the harm, the recovery, what is left of it, and which branch took it up."""
    pairs = dict(transient_pairs(groups))
    for group in groups:
        for task in group.runs[0].matrix.transient:
            without = pairs.get(group.name)
            parts = [*([_harm(group, without, task)] if without else []), _left(group, task)]
            yield f"{group.name}, transient task {task}: {' '.join(parts)}"
            if branches := list(_uptake(group, without, task)):
                yield f"{group.name}, transient task {task}, by branch: {' '.join(branches)}"


def _harm(group: Group, without: Group, task: int) -> str:
    """Return what a transient task did to the core right after it, and how much of that is recovered at the end."""
    gaps = _gaps(group, without)
    last = len(group.runs[0].matrix.count) - 1
    (gap, p), (end, _) = gaps[task], gaps[last]
    match p:
        case _ if gap.count == 1:
            said = "of one seed, any difference can be chance"
        case _ if p <= LEVEL:
            said = f"it {'harmed' if gap.mean < 0 else 'helped'} the core (corrected p {p_text(p)})"
        case _ if math.isnan(p):
            said = "the same on every seed"
        case _:
            said = f"the seeds cannot tell whether it changed the core (corrected p {p_text(p)})"
    after = f"Right after it, core accuracy differs from that without it by {_difference(gap)} points: {said}."
    if task == last:
        return f"{after} No task follows."
    zero = [at for at in gaps if at > task and all(g.low <= 0 <= g.high for t, (g, _) in gaps.items() if t >= at)]
    gone = "all" if end.mean >= 0 else f"{100 * (1 - end.mean / gap.mean):.0f} %" if gap.mean else ""
    share = f"; {gone} of the difference is gone" if gap.mean < min(0, end.mean) else ""
    within = f"; from task {zero[0]} on, the interval contains 0" if zero else ""
    later = f"{last - task} task{'s' * (last - task > 1)} later, at the end,"
    return f"{after} {later} it is {_difference(end)} points{share}{within}."


def _left(group: Group, task: int) -> str:
    found = [(run.matrix.matrix[task, task], run.matrix.matrix[-1, task]) for run in group.runs]
    learned, left = (_cell(fmean(float(pair[side]) for pair in found)) for side in (0, 1))
    return f"Accuracy on its own classes is {learned} % when learned, {left} % at the end."


def _uptake(group: Group, without: Group | None, task: int) -> Iterator[str]:
    """Yield what each branch alone adds to neither branch, on the transient task and to the harm at the end."""
    names = _branches(group)
    alone = [name for name in names if name != NEITHER and "+" not in name]
    if not alone or NEITHER not in names:
        return
    twin = without if without and set(names) <= {*_branches(without)} else None
    learned = {name: [float(run.branches[name].matrix[task, task]) for run in group.runs] for name in names}
    last = len(group.runs[0].matrix.count) - 1
    harm = {name: _gap(group, twin, last, name) for name in names} if twin else {}
    core = f", and its harm to the core at the end is {_difference(harm[NEITHER])} points" if twin else ""
    yield f"With neither, accuracy on it is {_cell(fmean(learned[NEITHER]))} % when learned{core}."
    verdicts = []
    for name in alone:
        gain = difference(learned[name], learned[NEITHER])
        more = difference(harm[name].gaps, harm[NEITHER].gaps) if twin else None
        added = f" to the first and {_difference(more)} points to the second" if more else ""
        yield f"{name} alone adds {_difference(gain)} points{added}."
        verdicts.append(f"{name} {_verdict(gain, more)}")
    if len(group.runs) > 1:
        yield f"By 95 % intervals over seeds, {'; '.join(verdicts)}."


def _verdict(gain: Difference, more: Difference | None) -> str:
    took, harms = gain.low > 0, more is not None and more.high < 0
    if more is not None and not took and not harms:
        return "shows neither uptake nor added harm"
    uptake = "took the task up" if took else "shows no uptake"
    return uptake if more is None else f"{uptake} and {'adds to the harm' if harms else 'shows no added harm'}"


def _core_table(group: Group, without: Group) -> Rows:
    """Return A_t with and without the transient tasks, from the task before the first of them on."""
    matrix = group.runs[0].matrix
    rows = []
    for task, (gap, corrected) in _gaps(group, without).items():
        last = ", the last" if task == len(matrix.count) - 1 else ""
        name = f"task {task}{', transient' if task in matrix.transient else ''}{last}"
        values = [_mean([run.curve[task] for run in group.runs]), _mean(_before(without, matrix, task))]
        p = "-" if math.isnan(corrected) else f"{gap.p:.3f} ({corrected:.3f})"
        rows.append([name, *values, _difference(gap), p])
    numbers = ", ".join(map(str, matrix.transient))
    title = f"Core accuracy with and without transient task {numbers}; {group.name} and {without.name}; per cent"
    return Rows(title, ["after", "with", "without", "difference", "p (corrected p)"], rows)


def _gaps(group: Group, without: Group) -> dict[int, tuple[Difference, float]]:
    """Return the difference after each task, from the one before the first transient task on, with its corrected p."""
    matrix = group.runs[0].matrix
    gaps = {task: _gap(group, without, task) for task in range(matrix.transient[0] - 1, len(matrix.count))}
    tested = [task for task, gap in gaps.items() if not math.isnan(gap.p)]
    corrected = dict(zip(tested, holm([gaps[task].p for task in tested]), strict=True))
    return {task: (gap, corrected.get(task, math.nan)) for task, gap in gaps.items()}


def _before(without: Group, whole: AccuracyMatrix, task: int) -> list[float]:
    """Return the core accuracy of each run without transient tasks, after the last task until `task` that it has."""
    return [run.curve[_place(whole, task)] for run in without.runs]


def _place(whole: AccuracyMatrix, task: int) -> int:
    return sum(other not in whole.transient for other in range(task + 1)) - 1


def _gap(group: Group, without: Group, task: int, branch: str = WHOLE) -> Difference:
    """Return the paired difference of the core accuracy after a task, with the transient tasks minus without."""
    pairs, place = [pair for unit in group.pairs(without) for pair in unit], _place(group.runs[0].matrix, task)
    ours = [_of(run, branch).average_accuracy(task) for run, _ in pairs]
    return difference(ours, [_of(run, branch).average_accuracy(place) for _, run in pairs])


def _of(run: Run, branch: str) -> AccuracyMatrix:
    return run.matrix if branch == WHOLE else run.branches[branch]


def _branch_table(group: Group, without: Group | None) -> Rows:
    """Return, for each subset of branches, the transient task itself and the core around it."""
    whole = group.runs[0].matrix
    alone = [WHOLE, *(name for name in _branches(group) if any(_of(run, name) != run.matrix for run in group.runs))]
    rows = [
        [str(task), name.replace("+", " + "), *_branch_cells(group, without, name, task)]
        for task in whole.transient
        for name in alone
    ]
    header = ["task", "answers of", "it, when learned", "it, at the end", "core before it", "core after it"]
    header += ["core at the end", "difference after it", "difference at the end"]
    return Rows(f"Transient tasks of {group.name}, by branch; accuracies in per cent", header, rows)


def _branches(group: Group) -> list[str]:
    return [name for name in group.runs[0].branches if all(name in run.branches for run in group.runs)]


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


def order_tables(families: Sequence[Family]) -> Iterator[Rows]:
    """Yield, for configurations that differ in nothing but the class order, how much depends on it."""
    for family in families:
        spreads = [
            (measure, found) for measure in MEASURES if measure.better and (found := _over_orders(family, measure))
        ]
        rows = [
            [measure.title, *map(_cell, found[:3]), *(f"{_cell(mean)} ({name})" for mean, name in found[3:])]
            for measure, found in spreads
        ]
        header = ["measure", "mean", "deviation over orders", "over seeds of an order", "worst order", "best order"]
        title = f"{family.name} over {len(family.members)} class orders, each the mean of its seeds; per cent"
        yield Rows(title, header, rows)


def order_sentences(families: Sequence[Family]) -> Iterator[str]:
    """Yield the same of the main measures in words."""
    for family in families:
        spreads = [(m, found) for m in MEASURES if m.key in MAIN and (found := _over_orders(family, m))]
        said = " ".join(_in_words(measure, found) for measure, found in spreads)
        yield f"{family.name} over {len(family.members)} class orders: {said}"


def _in_words(measure: Measure, found: "_Spread") -> str:
    worst, best = (f"{_cell(mean)} % ({name})" for mean, name in (found.worst, found.best))
    seeds = "" if math.isnan(found.seeds) else f" and {_cell(found.seeds)} over the seeds of an order"
    return (
        f"{measure.title[0].upper()}{measure.title[1:]}: {_cell(found.mean)} % on average, with a standard deviation "
        f"of {_cell(found.orders)} points over orders{seeds}; worst {worst}, best {best}."
    )


class _Spread(NamedTuple):
    mean: float
    orders: float
    seeds: float
    worst: tuple[float, str]
    best: tuple[float, str]


def _over_orders(family: Family, measure: Measure) -> _Spread | None:
    """Return mean and deviation of the orders' means, deviation over seeds, worst and best; None if one is unknown."""
    spreads = [group.spread(measure) for group in family.members]
    means = [found.mean for found in spreads]
    if any(map(math.isnan, means)):
        return None
    variances = [found.std**2 for found in spreads if not math.isnan(found.std)]
    names = map(family.own, family.members)
    worst, *_, best = sorted(zip(means, names, strict=True), reverse=measure.better == "lower")
    return _Spread(fmean(means), stdev(means), math.sqrt(fmean(variances)) if variances else math.nan, worst, best)


# ---- cells


def _cell(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{100 * value:{sign}.2f}"


def _mean(values: Sequence[float]) -> str:
    found = spread(values)
    return _cell(found.mean) + ("" if math.isnan(found.std) else f" ± {_cell(found.std)}")


def _difference(gap: Difference) -> str:
    exact = math.isnan(gap.low) or gap.constant
    return _cell(gap.mean, "+") + ("" if exact else f" [{_cell(gap.low, '+')}, {_cell(gap.high, '+')}]")
