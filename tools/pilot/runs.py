"""The runs in a PILOT-style log file, in the form that comparisons know, and where a log contradicts itself.

A log gives percentages to two decimals and no counts. They enter the matrix as right answers of 10,000 images, so that
forgetting, BWT and the diagonal follow by `utils.metrics` as for a run of this project; A_t is the `total` of the log.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from tools.finished.reader import Run, RunError, digest
from tools.pilot.log import LARGEST, MOST_TASKS, Group, Log, Row, parse
from utils.files import read_text
from utils.metrics import AccuracyMatrix

MOST_BYTES = 2**25  # ten times the log of a long run, progress bars and all
IMAGES = 10_000  # stand for 100.00 per cent
HALF = 0.0051  # two printed percentages closer than this may be the same number
NO_EFFECT = ("config", "prefix", "seed", "device", "num_workers", "debug", "nb_classes", "nb_tasks", "print_forget")


def read_log(path: Path) -> list[Run]:
    """Read every run of a log file. Of several with one configuration and seed, one counts, and a note says which.

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
        hint = "; a run of this project is named by its directory" if (path.parent / "config.json").exists() else ""
        raise RunError(f"{path}: has no accuracy lines such as `CNN top1 curve: [...]` or `CNN: {{...}}`{hint}")
    equal: dict[tuple[str, int | None], list[Log]] = {}
    for log in logs:
        equal.setdefault((digest(_identity(path, log)), _seed(log)), []).append(log)
    return [_run(path, seed, group) for (_, seed), group in equal.items()]


def _seed(log: Log) -> int | None:
    match log.config.get("seed"):
        case int(seed) | [int(seed)]:
            return seed
        case _:
            return None


def _identity(path: Path, log: Log) -> dict[str, Any]:
    """What is known to change the results; a log that does not say is a configuration of its own."""
    return {key: value for key, value in log.config.items() if key not in NO_EFFECT} or {"log": str(path)}


def _run(path: Path, seed: int | None, logs: Sequence[Log]) -> Run:
    """The longest of some runs of one configuration and seed, the last of those."""
    log = max(reversed(logs), key=lambda log: max(len(log.curve), len(log.rows)))
    remarks = notes(tasks := Tasks(log))
    if len(logs) > 1:
        same = all(other.rows == log.rows and other.curve == log.curve for other in logs)
        lines, what = ", ".join(str(other.line) for other in logs), "the same" if same else "different"
        of = f"{len(logs)} runs of {'an unstated seed' if seed is None else f'seed {seed}'} (from lines {lines})"
        remarks = [f"has {of} with {what} results; the one from line {log.line} counts", *remarks]
    return Run(
        path=path,
        label="_".join(part for part in path.stem.split("_") if part != str(seed)) or path.stem,
        seed=seed,
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
        log: The run's lines.
        ends: One behind the last class of every task; empty if the groups cannot be told apart by task.
        rows: The row after every task; None where the log has none.
        surplus: Rows that fit no task.
        accuracy: [t, i], accuracy on task i after task t, per cent; NaN where the log does not say.
    """

    def __init__(self, log: Log) -> None:
        self.log, self.ends = log, _task_ends(log)
        nb_tasks = max(len(self.ends) or len(log.rows), len(log.curve))
        self.rows: list[Row | None] = [None] * nb_tasks
        self.surplus: list[Row] = []
        self.accuracy = np.full((nb_tasks, nb_tasks), np.nan)
        task = -1
        for row in log.rows:
            task = max(task + 1, max(self.by_task(row), default=len(row.curve or [0]) - 1))
            if task >= nb_tasks:
                self.surplus.append(row)
                continue
            self.rows[task] = row
            for i, accuracy in self._accuracies(task, row).items():
                self.accuracy[task, i] = accuracy

    @property
    def present(self) -> list[tuple[int, Row]]:
        """Every row with its task."""
        return [(task, row) for task, row in enumerate(self.rows) if row]

    @property
    def curve(self) -> tuple[float, ...]:
        """A_t as fractions: the `total` after task t, or else the point of the curve; NaN without either."""
        totals = dict(enumerate(self.log.curve))
        totals |= {task: row.total for task, row in self.present if row.total is not None}
        return tuple(totals.get(task, math.nan) / 100 for task in range(len(self.rows)))

    @property
    def matrix(self) -> AccuracyMatrix:
        """The accuracies after every task; a row that the log does not give, or not task by task, is not measured."""
        ends = [min(end, self.log.nb_classes or end) for end in self.ends]
        sizes = [end - begin for begin, end in pairwise([0, *ends])] + [0] * (len(self.rows) - len(ends))
        hits = [row[: t + 1] / 100 * IMAGES for t, row in enumerate(self.accuracy)]
        rows = [None if np.isnan(row).any() else [round(value) for value in row.tolist()] for row in hits]
        return AccuracyMatrix(sizes, [IMAGES] * len(rows), rows)

    def by_task(self, row: Row) -> dict[int, list[Group]]:
        """The groups of every task; none if they cannot be told apart by task."""
        tasks: dict[int, list[Group]] = {}
        for group in row.groups if self.ends else ():
            tasks.setdefault(bisect_right(self.ends, group.first), []).append(group)
        return tasks

    def _accuracies(self, task: int, row: Row) -> dict[int, float]:
        """Accuracy on every task.

        Several groups of one task (PyCIL cuts a large first task into several) count by their classes, if that is how
        the row's total comes about. Where the new classes have no group, `new` is their accuracy.
        """
        known = {task: _number(row.new)} if self.ends else {}
        balanced = self.is_balanced(row)
        for i, groups in self.by_task(row).items():
            known[i] = self._mean(row, groups) if balanced or len(groups) == 1 else math.nan
        return known

    def _mean(self, row: Row, groups: Sequence[Group]) -> float:
        """Mean accuracy of groups, each weighted by its classes."""
        if len(groups) == 1:
            return _number(row.groups[groups[0]])
        last = (self.log.nb_classes or math.inf) - 1
        weights = [min(group.last, last) - group.first + 1 for group in groups]
        return fmean([_number(row.groups[group]) for group in groups], weights) if sum(weights) else math.nan

    def is_balanced(self, row: Row) -> bool:
        """Whether the total is the groups' mean by classes: then every class has as many test images."""
        return abs(self._mean(row, list(row.groups)) - _number(row.total)) < 2 * HALF


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _steps(log: Log) -> tuple[int, int] | None:
    """Classes of the first task and of each later one, as the configuration says."""
    match log.config.get("init_cls"), log.config.get("increment"):
        case int(first), int(step) if step > 0 and max(first, step) <= LARGEST:
            return first if first > 0 else step, step
        case _:
            return None


def _nb_tasks(first: int, step: int, nb_classes: int) -> int:
    return 1 + max(0, -(-(nb_classes - first) // step))


def _task_ends(log: Log) -> list[int]:
    """Where tasks end in the order of the classes: by the configuration, or else by the groups themselves."""
    ends = [group.last + 1 for group in log.groups]
    if steps := _steps(log):
        nb_tasks = max(len(log.curve) or len(log.rows), _nb_tasks(*steps, max(ends, default=0)))
        stated = [steps[0] + steps[1] * task for task in range(nb_tasks)] if nb_tasks <= MOST_TASKS else []
        if stated and all(bisect_right(stated, g.first) == bisect_right(stated, g.last) for g in log.groups):
            return stated
    if len(ends) in (len(log.curve), len(log.rows)):
        return ends  # one group a task
    row_ends = [max((group.last + 1 for group in row.groups), default=0) for row in log.rows]
    if all(a < b for a, b in pairwise([0, *row_ends])) and len(row_ends) == (len(log.curve) or len(row_ends)):
        return row_ends  # every row adds the groups of its task
    last_is_lost = ends and len(ends) == len(log.rows) - 1 and row_ends[-2:-1] == row_ends[-1:]
    return [*ends, ends[-1] + 1] if last_is_lost else []


# ---- where a log contradicts itself


def notes(tasks: Tasks) -> list[str]:
    """Everything in one run of a log that does not fit together, a sentence each."""
    nme = ["also has accuracies by nearest mean of exemplars (NME), which are not read"] if tasks.log.has_nme else []
    of_rows = (f"task {t} (line {row.line}): {note}" for t, row in tasks.present for note in _of_row(tasks, t, row))
    return [*tasks.log.notes, *_of_tasks(tasks), *of_rows, *_of_curves(tasks.log), *_of_matrix(tasks), *nme]


def _of_tasks(tasks: Tasks) -> Iterator[str]:
    log, steps, before = tasks.log, _steps(tasks.log), set[Group]()
    if missing := [str(task) for task, row in enumerate(tasks.rows) if row is None]:
        yield f"no accuracies by group after task {', '.join(missing)}"
    if tasks.surplus:
        lines = ", ".join(str(row.line) for row in tasks.surplus)
        yield f"more rows than tasks, as when two runs write into one file: line {lines}"
    if steps and log.nb_classes and len(tasks.rows) < (expected := _nb_tasks(*steps, log.nb_classes)):
        yield f"ends after {len(tasks.rows)} of {expected} tasks: the run is not finished"
    if log.rows and not tasks.ends:
        yield "its groups of classes cannot be told apart by task, so nothing that needs the matrix is given"
    for task, row in tasks.present:
        if lost := before - row.groups.keys():
            yield f"task {task} (line {row.line}): group {_spelled(lost)} of an earlier task is not there"
        before |= row.groups.keys()
    if log.nb_classes and (beyond := [group for group in log.groups if group.last >= log.nb_classes]):
        yield f"group {_spelled(beyond)} goes beyond the last class, {log.nb_classes - 1}"


def _spelled(groups: Iterable[Group]) -> str:
    return ", ".join(group.name for group in sorted(groups))


def _of_row(tasks: Tasks, t: int, row: Row) -> Iterator[str]:
    by_task, accuracy = tasks.by_task(row), tasks.accuracy[t]
    split = len(by_task) < len(row.groups)
    if tasks.ends and split and not tasks.is_balanced(row):
        yield "a task's groups do not add up to the total by their classes, so its accuracy is not known"
    if tasks.ends and t not in by_task:
        yield "the new classes have no group; their accuracy is taken from `new`"
    values = [value for value in (*row.groups.values(), row.total, row.old, row.new) if value is not None]
    if not all(0 <= value <= 100 for value in values):
        yield "percentages outside 0 to 100"
    slack = 2 * HALF if split else HALF  # a mean of printed percentages is half a digit off too
    parts = {
        "total": (row.total, accuracy[: t + 1]),
        "old": (row.old, accuracy[:t]),
        "new": (row.new, accuracy[t : t + 1]),
    }
    for name, (printed, of) in parts.items():
        if printed is not None and of.size and (printed < of.min() - slack or printed > of.max() + slack):
            yield f"{name} {printed} lies outside its groups, {of.min():.2f} to {of.max():.2f}"
    if row.curve and row.total is not None and abs(row.curve[-1] - row.total) > HALF:
        yield f"the curve ends with {row.curve[-1]}, the groups' total is {row.total}, which counts"
    if row.curve and tasks.ends and len(row.curve) != t + 1:
        yield f"the curve has {len(row.curve)} points instead of {t + 1}"


def _of_curves(log: Log) -> Iterator[str]:
    for (_, before), (line, now) in pairwise(log.top1):
        if now[: len(before)] != before:
            yield f"line {line}: the curve does not go on from the one before: a resumed run, or two runs in one file"
    for (line, top1), (_, top5) in zip(log.top1, log.top5, strict=False):
        if len(top1) == len(top5) and any(b < a - HALF for a, b in zip(top1, top5, strict=True)):
            yield f"line {line}: top-5 below top-1"
    if log.average is not None and log.curve and abs(log.average - fmean(log.curve)) > HALF:
        yield f"prints average accuracy {log.average:.2f}, but the mean of its curve is {fmean(log.curve):.2f}"


def _of_matrix(tasks: Tasks) -> Iterator[str]:
    """Such a code base puts the groups of every row in order, by number or by mistake as text, with zeros behind.

    Its forgetting is the maximum over all rows, the last one too, minus the last; ours leaves the last row out.
    """
    log, printed, rows = tasks.log, tasks.log.matrix, [row.groups for _, row in tasks.present]
    incomplete = len(rows) < len(tasks.rows) or any(None in groups.values() for groups in rows)
    if incomplete or not 0 < max(map(len, rows)) <= len(rows):
        return
    by_number, as_text = np.zeros((2, len(rows), len(rows)))  # [group, task]
    for t, groups in enumerate(rows):
        by_number[: len(groups), t] = [groups[group] for group in sorted(groups)]
        as_text[: len(groups), t] = [groups[group] for group in sorted(groups, key=attrgetter("name"))]
    by_name = sorted(log.groups, key=attrgetter("name"))
    swapped = next((f"({a.name} before {b.name})" for a, b in pairwise(by_name) if a > b), "")
    if printed and not _is_table(printed, by_number):
        if _is_table(printed, as_text):
            yield f"prints its accuracy matrix with the groups sorted as text {swapped}"
        else:
            yield "prints an accuracy matrix that is not the one of its `CNN: {...}` lines"
    if log.forgetting is None or len(rows) < 2:
        return
    theirs, wrong = ((table.max(axis=1) - table[:, -1])[:-1].mean() for table in (by_number, as_text))
    ours = 100 * tasks.matrix.forgetting
    if min(abs(log.forgetting - theirs), abs(log.forgetting - ours)) > HALF:
        why = "does not follow from its groups: its"
        if abs(log.forgetting - wrong) <= HALF:
            why = f"comes of sorting the groups as text {swapped}; sorted by number its"
        yield f"prints forgetting {log.forgetting:.2f}, which {why} formula gives {theirs:.2f}, ours {ours:.2f}"


def _is_table(printed: Sequence[Sequence[float]], table: np.ndarray) -> bool:
    """Whether a printed matrix is the table: as it is, or with tasks as rows, with or without the zeros."""
    size = len(table)
    if len(printed) != size or max(map(len, printed)) > size:
        return False
    padded = np.array([[*row, *[0.0] * (size - len(row))] for row in printed])
    return any(np.allclose(padded, form, rtol=0, atol=HALF) for form in (table, table.T))
