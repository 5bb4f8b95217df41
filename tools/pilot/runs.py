"""The runs in a log file of PILOT or a related code base, and where a log contradicts itself.

A log prints percentages with two decimals and no counts. They enter the matrix as correct predictions out of 10,000
images, so that `utils.metrics` computes forgetting and BWT as for any run. A_t is the `total` of the log.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from tools.finished.reader import Run, RunError, digest
from tools.pilot.log import LARGEST, MOST_TASKS, Log, Row, parse, span
from utils.files import read_text
from utils.metrics import AccuracyMatrix

MOST_BYTES = 2**25  # ten times the log of a long run with progress bars
IMAGES = 10_000  # 100.00 per cent
HALF = 0.0051  # numbers closer than this can print as the same two decimals
NO_EFFECT = ("config", "prefix", "seed", "device", "num_workers", "debug", "nb_classes", "nb_tasks", "print_forget")


def read_log(path: Path) -> list[Run]:
    """Read every run of a log file. If several have the same configuration and seed, the longest is used.

    Raises:
        RunError: The file cannot be read, or has no accuracies.
    """
    if not path.is_file():
        raise RunError(f"{path}: neither a run directory nor a log file")
    try:
        logs = parse(read_text(path, MOST_BYTES, errors="replace"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    if not logs:
        hint = "; to name a run of this project, give its directory" if (path.parent / "config.json").exists() else ""
        raise RunError(f"{path}: has no accuracy lines such as `CNN top1 curve: [...]` or `CNN: {{...}}`{hint}")
    equal: dict[tuple[str, int | None], list[Log]] = {}
    for log in logs:
        equal.setdefault((digest(_identity(path, log)), log.seed), []).append(log)
    return [_run(path, group) for group in equal.values()]


def _identity(path: Path, log: Log) -> dict[str, Any]:
    """The keys that can change the results. A log without any is a configuration of its own."""
    return {key: value for key, value in log.config.items() if key not in NO_EFFECT} or {"log": str(path)}


def _run(path: Path, logs: Sequence[Log]) -> Run:
    log = max(reversed(logs), key=lambda log: max(len(log.curve), len(log.rows)))
    remarks = notes(tasks := Tasks(log))
    if len(logs) > 1:
        same = all(other.rows == log.rows and other.curve == log.curve for other in logs)
        what, lines = "the same" if same else "different", ", ".join(str(other.line) for other in logs)
        several = f"{len(logs)} runs of one configuration and seed (from lines {lines})"
        remarks = [f"has {several} with {what} results; the one from line {log.line} is used", *remarks]
    return Run(
        path=path,
        label="_".join(part for part in path.stem.split("_") if part != str(log.seed)) or path.stem,
        seed=log.seed,
        config=log.config,
        identity=_identity(path, log),
        matrix=tasks.matrix,
        curve=tasks.curve,
        seconds=log.seconds,
        notes=tuple(remarks),
    )


class Tasks:
    """The rows and groups of one run, assigned to tasks.

    Attributes:
        ends: The last class of every task, plus one; empty if the groups cannot be assigned to tasks.
        rows: The row after each task, without the tasks for which the log has none.
        accuracy: (T, T) [t, i], accuracy on task i after task t in per cent; NaN where it is not known.
        notes: On rows and groups that are missing, or belong to no task.
    """

    def __init__(self, log: Log) -> None:
        self.log, self.ends = log, _task_ends(log)
        nb_tasks = max(len(self.ends) or len(log.rows), len(log.curve))
        self.rows: dict[int, Row] = {}
        self.accuracy = np.full((nb_tasks, nb_tasks), np.nan)
        self.notes: list[str] = []
        task = -1
        for row in log.rows:
            known = self._accuracies(row)
            task = max(task + 1, max(known, default=len(row.curve or [0]) - 1))
            if task < nb_tasks:
                self._add(task, row, known)
            else:
                self.notes.append(f"line {row.line}: more rows than tasks, as when two runs write into one file")

    def _accuracies(self, row: Row) -> dict[int, float]:
        """The accuracy of every task that has a group.

        PyCIL splits a large first task into several groups. Their mean, weighted by classes, is the accuracy of the
        task if all classes have as many test images. This is so if the same mean over all groups is the total.
        """
        if not (self.ends and row.groups):
            return {}
        first, last = np.array([span(group) for group in row.groups]).T
        classes = np.maximum(np.minimum(last, (self.log.nb_classes or math.inf) - 1) - first + 1, 1)
        tasks, hits = np.searchsorted(self.ends, first, side="right"), classes * [*row.groups.values()]
        balanced = abs(hits.sum() / classes.sum() - row["total"]) < 2 * HALF
        nb_groups, classes, hits = (np.bincount(tasks, weights) for weights in (None, classes, hits))
        known = {i: hits[i] / classes[i] for i in tasks.tolist()}
        return {i: mean if balanced or nb_groups[i] == 1 else math.nan for i, mean in known.items()}

    def _add(self, task: int, row: Row, known: dict[int, float]) -> None:
        self.rows[task] = row
        if not self.ends:
            return
        if task not in known:
            known[task] = row["new"]
            self.notes.append(f"task {task} (line {row.line}): the new classes have no group; `new` is used for them")
        self.accuracy[task, list(known)] = list(known.values())
        if unknown := ", ".join(map(str, np.flatnonzero(np.isnan(self.accuracy[task, : task + 1])))):
            why = "its groups are missing, or their mean is not the total"
            self.notes.append(f"task {task} (line {row.line}): no accuracy on task {unknown}: {why}")

    @property
    def curve(self) -> tuple[float, ...]:
        """A_t as fractions: the `total` after task t, or else the point of the curve; NaN without either."""
        points = dict(enumerate(self.log.curve))
        points |= {task: row["total"] for task, row in self.rows.items() if not math.isnan(row["total"])}
        return tuple(points.get(task, math.nan) / 100 for task in range(len(self.accuracy)))

    @property
    def matrix(self) -> AccuracyMatrix:
        """The accuracy matrix. A row that is not known for every task counts as not measured."""
        ends = [min(end, self.log.nb_classes or end) for end in self.ends]
        sizes = [end - begin for begin, end in pairwise([0, *ends])] + [0] * (len(self.accuracy) - len(ends))
        hits = [row[: t + 1] / 100 * IMAGES for t, row in enumerate(self.accuracy)]
        rows = [None if np.isnan(row).any() else [round(value) for value in row.tolist()] for row in hits]
        return AccuracyMatrix(sizes, [IMAGES] * len(rows), rows)


def _task_ends(log: Log) -> list[int]:
    """The ends of tasks by the configuration, or else by the groups."""
    spans = sorted({span(group) for row in log.rows for group in row.groups})
    ends = [last + 1 for _, last in spans]
    stated = _stated_ends(log, len(log.curve) or len(log.rows), max(ends, default=0))
    if stated and all(bisect_right(stated, first) == bisect_right(stated, last) for first, last in spans):
        return stated
    if len(ends) in (len(log.curve), len(log.rows)):
        return ends  # one group a task
    row_ends = [max((span(group)[1] + 1 for group in row.groups), default=0) for row in log.rows]
    if len(row_ends) > 1 and row_ends[-1] == row_ends[-2]:
        row_ends[-1] += 1  # the last class has no group
    adds = all(a < b for a, b in pairwise([0, *row_ends])) and len(row_ends) == (len(log.curve) or len(row_ends))
    return row_ends if adds else []  # every row adds the groups of its task


def _stated_ends(log: Log, nb_tasks: int, nb_classes: int) -> list[int]:
    """The ends that the configuration gives to at least so many tasks and classes; empty if it does not say."""
    match log.config.get("init_cls"), log.config.get("increment"):
        case int(first), int(step) if step > 0 and max(first, step) <= LARGEST:
            first = first if first > 0 else step
            nb_tasks = max(nb_tasks, 1 + math.ceil(max(0, nb_classes - first) / step))
            return [first + step * task for task in range(nb_tasks)] if nb_tasks <= MOST_TASKS else []
    return []


class Check(NamedTuple):
    """A printed number, and the range that other numbers of the log give for it."""

    what: str
    printed: float
    low: float
    high: float
    source: str
    slack: float = HALF

    def contradiction(self) -> str:
        """Return what is wrong, with both numbers; empty if nothing is wrong, or a number is not known."""
        if not (self.printed < self.low - self.slack or self.printed > self.high + self.slack):
            return ""
        low, high = (f"{round(value, 2):g}" for value in (self.low, self.high))
        return (
            f"{self.what} is {round(self.printed, 2):g}, but {self.source} {low if low == high else f'{low} to {high}'}"
        )


def notes(tasks: Tasks) -> list[str]:
    """Return everything in one run that does not fit together, a sentence each."""
    log, found = tasks.log, [*tasks.log.notes, *tasks.notes]
    if missing := [str(task) for task in range(len(tasks.accuracy)) if task not in tasks.rows]:
        found.append(f"no accuracies by group after task {', '.join(missing)}")
    if log.nb_classes and len(tasks.accuracy) < (expected := len(_stated_ends(log, 1, log.nb_classes))):
        found.append(f"ends after {len(tasks.accuracy)} of {expected} tasks: the run is not finished")
    if log.rows and not tasks.ends:
        found.append("the groups of classes cannot be assigned to tasks, so there is no accuracy matrix")
    if log.has_nme:
        found.append("also has accuracies by nearest mean of exemplars (NME), which are not read")
    wrong = {check.what: text for check in _checks(tasks) if (text := check.contradiction())}
    return [*found, *wrong.values(), *_of_matrix(tasks)]


def _checks(tasks: Tasks) -> Iterator[Check]:
    """What must hold between the numbers of a log."""
    log = tasks.log
    for t, row in tasks.rows.items():
        place, total = f"task {t} (line {row.line}): ", row["total"]
        for key, value in row.values.items():
            yield Check(f"{place}{key}", value, 0, 100, "a percentage is")
            if key in row.groups and log.nb_classes:
                yield Check(f"the last class of {key}", span(key)[1], 0, log.nb_classes - 1, "the classes are")
        slack = HALF if len(row.groups) <= t + 1 else 2 * HALF  # a mean of rounded numbers is less exact
        for key, of in (("total", slice(t + 1)), ("old", slice(t)), ("new", slice(t, t + 1))):
            if (groups := tasks.accuracy[t, of]).size:
                yield Check(f"{place}{key}", row[key], groups.min(), groups.max(), "its groups give", slack)
        if row.curve:
            yield Check(f"{place}the end of the curve", row.curve[-1], total, total, "the total, which is used, is")
            length = t + 1 if tasks.ends else math.nan
            yield Check(f"{place}the length of the curve", len(row.curve), length, length, "it should be")
    for (_, before), (line, now) in pairwise(log.top1):
        for printed, point in zip(now, before, strict=False):
            source = "the curve before it (of another run, or of a resumed one) has"
            yield Check(f"line {line}: a point of the curve", printed, point, point, source)
    for (line, top1), (_, top5) in zip(log.top1, log.top5, strict=False):
        for low, printed in zip(top1, top5, strict=False):
            yield Check(f"line {line}: top-5 accuracy", printed, low, 100, "the top-1 accuracy allows")
    mean = fmean(log.curve or [math.nan])
    yield Check("average accuracy", log.average, mean, mean, "the mean of the curve is")


def _of_matrix(tasks: Tasks) -> Iterator[str]:
    """Check the printed matrix and forgetting, which some code bases compute with groups sorted as text.

    Their matrix has the groups of every row in order, then zeros. Their forgetting is the maximum over all rows minus
    the last row; ours leaves the last row out of the maximum.
    """
    log, rows = tasks.log, [row.groups for row in tasks.rows.values()]
    incomplete = len(rows) < len(tasks.accuracy) or any(math.isnan(value) for row in rows for value in row.values())
    if incomplete or not 0 < max(map(len, rows)) <= len(rows):
        return
    right, as_text = np.zeros((2, len(rows), len(rows)))  # [group, task]
    for t, groups in enumerate(rows):
        right[: len(groups), t] = [groups[name] for name in sorted(groups, key=span)]
        as_text[: len(groups), t] = [groups[name] for name in sorted(groups)]
    swaps = [pair for pair in pairwise(sorted({name for row in rows for name in row})) if span(pair[0]) > span(pair[1])]
    why = f": it sorts the groups as text ({' before '.join(swaps[0])})" if swaps else ""
    if log.matrix:
        printed = np.array(list(zip_longest(*log.matrix, fillvalue=0.0)))
        if not _is_one_of(printed, right, right.T):
            yield "the accuracy matrix is not that of the groups" + why * _is_one_of(printed, as_text, as_text.T)
    if not math.isnan(log.forgetting) and len(rows) > 1:
        theirs, wrong = ((table.max(axis=1) - table[:, -1])[:-1].mean() for table in (right, as_text))
        ours = 100 * tasks.matrix.forgetting
        if not _is_one_of(log.forgetting, theirs, ours):
            formulas = f"the groups give {theirs:.2f} by its formula and {ours:.2f} by ours"
            yield f"forgetting is {log.forgetting:.2f}, but {formulas}" + why * _is_one_of(log.forgetting, wrong)


def _is_one_of(printed: np.ndarray | float, *expected: np.ndarray | float) -> bool:
    return any(np.shape(printed) == np.shape(e) and np.allclose(printed, e, rtol=0, atol=HALF) for e in expected)
