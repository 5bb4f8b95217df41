"""The accuracy matrix of a PILOT-style log, under our definitions.

A log gives percentages to two decimals and no counts. They enter the matrix as hits in 10,000 images, so that
forgetting, BWT and the diagonal follow by `utils.metrics` as for a run of ours; A_t is the `total` that the log prints.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tools.pilot.log import MOST_TASKS, Row, Segment
from utils.metrics import AccuracyMatrix

HALF = 0.0051  # two printed percentages closer than this may be the same number
WHOLE = 10_000  # images that stand for 100.00 per cent

Label = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """One run of a log, its rows and groups assigned to tasks.

    Attributes:
        segment: The run's lines.
        ends: One behind the last class of every task; empty if the groups cannot be told apart by task.
        rows: The row after every task; None where the log has none.
        surplus: Rows that fit no task.
    """

    segment: Segment
    ends: list[int]
    rows: list[Row | None]
    surplus: list[Row]

    @classmethod
    def of(cls, segment: Segment) -> "Reading":
        """Assign the rows of a run to tasks."""
        ends = _task_ends(segment)
        nb_tasks = max(len(ends) or len(segment.rows), len(segment.curve))
        rows: list[Row | None] = [None] * nb_tasks
        surplus, task = [], -1
        for row in segment.rows:
            task = max(task + 1, _row_task(row, ends))
            if task < nb_tasks:
                rows[task] = row
            else:
                surplus.append(row)
        return cls(segment, ends, rows, surplus)

    @property
    def present(self) -> list[tuple[int, Row]]:
        """Every row with its task."""
        return [(task, row) for task, row in enumerate(self.rows) if row]

    @property
    def curve(self) -> tuple[float, ...]:
        """A_t as fractions: the `total` after task t, or else the point of the curve; NaN without either."""
        drawn = dict(enumerate(self.segment.curve))
        totals = [row.total if row and row.total is not None else drawn.get(t) for t, row in enumerate(self.rows)]
        return tuple(math.nan if total is None else total / 100 for total in totals)

    @property
    def matrix(self) -> AccuracyMatrix:
        """The accuracies after every task; a row that the log does not give, or not task by task, is not measured."""
        cells = [[self.accuracy(t, i) for i in range(t + 1)] if self.ends else [None] for t in range(len(self.rows))]
        rows = [[round(v / 100 * WHOLE) for v in row if v is not None] for row in cells]
        known = [row if None not in cell else None for row, cell in zip(rows, cells, strict=True)]
        return AccuracyMatrix(self.sizes, [WHOLE] * len(self.rows), list(known))

    @property
    def sizes(self) -> list[int]:
        """Classes of every task; of unknown ones 0."""
        ends = [min(end, self.segment.nb_classes or end) for end in self.ends]
        sizes = [end - begin for begin, end in pairwise([0, *ends])]
        return [*sizes, *[0] * (len(self.rows) - len(sizes))]

    def accuracy(self, t: int, i: int) -> float | None:
        """Accuracy on task i after task t, per cent; None if the log does not say.

        Several groups of one task (PyCIL cuts a large first task into several) count by their classes, if that is how
        the row's total comes about. A task that has lost its group is what `new` says, when it has just been learned.
        """
        row = self.rows[t]
        if row is None:
            return None
        labels = self._labels[t].get(i, [])
        if not labels:
            return row.new if t == i else None
        if len(labels) == 1:
            return row.groups[labels[0]]
        return self.mean(row, labels) if self._balanced[t] else None

    @cached_property
    def _labels(self) -> list[dict[int, list[Label]]]:
        """For every row its groups by task."""
        by_row: list[dict[int, list[Label]]] = []
        for row in self.rows:
            by_row.append({})
            for label in row.groups if row else ():
                by_row[-1].setdefault(self.task_of(label), []).append(label)
        return by_row

    @cached_property
    def _balanced(self) -> list[bool]:
        return [row is not None and self.is_balanced(row) for row in self.rows]

    def task_of(self, label: Label) -> int:
        """The task that a group of classes belongs to."""
        return bisect_right(self.ends, label[0])

    def mean(self, row: Row, labels: Sequence[Label]) -> float | None:
        """Mean accuracy of groups, each weighted by its classes; None if one is not given."""
        values = [row.groups[label] for label in labels]
        last = (self.segment.nb_classes or math.inf) - 1
        weights = [min(end, last) - begin + 1 for begin, end in labels]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or not sum(weights):
            return None
        return sum(w * value for w, value in zip(weights, known, strict=True)) / sum(weights)

    def is_balanced(self, row: Row) -> bool:
        """Whether the total is the groups' mean by classes: then every class has as many test images."""
        mean = self.mean(row, list(row.groups))
        return mean is not None and row.total is not None and abs(mean - row.total) < 2 * HALF


def _task_ends(segment: Segment) -> list[int]:
    """Where tasks end in the order of the classes: by the configuration, or else by the groups themselves."""
    ends, labels = _declared_ends(segment), segment.labels
    if ends and all(bisect_right(ends, first) == bisect_right(ends, last) for first, last in labels):
        return ends
    ends = [last + 1 for _, last in labels]
    if len(ends) in (len(segment.curve), len(segment.rows)):
        return ends  # one group a task
    row_ends = [max((last + 1 for _, last in row.groups), default=0) for row in segment.rows]
    if all(a < b for a, b in pairwise([0, *row_ends])) and len(row_ends) == (len(segment.curve) or len(row_ends)):
        return row_ends  # every row adds the groups of its task
    lost_last = len(ends) == len(segment.rows) - 1 and row_ends[-2:-1] == row_ends[-1:]
    return [*ends, ends[-1] + 1] if lost_last and ends else []


def _declared_ends(segment: Segment) -> list[int]:
    first, step = (segment.config.get(key) for key in ("init_cls", "increment"))
    if not isinstance(first, int) or not isinstance(step, int) or step < 1:
        return []
    highest = max((end + 1 for _, end in segment.labels), default=0)
    ends = [first if first > 0 else step]
    while ends[-1] < highest or len(ends) < (len(segment.curve) or len(segment.rows)):
        ends.append(ends[-1] + step)
        if len(ends) > MOST_TASKS:
            return []
    return ends


def _row_task(row: Row, ends: list[int]) -> int:
    if ends and row.groups:
        return bisect_right(ends, max(begin for begin, _ in row.groups))
    return len(row.curve) - 1 if row.curve else 0
