"""From predictions to the accuracy matrix, and from the matrix to averages, forgetting and backward transfer.

Tasks are counted from 0; T is the last task learned. `R[t][i]` is the accuracy on the test images of task i after
learning task t, a fraction from 0 to 1, unrounded; NaN where it is not defined (i > t, a row never measured, a task
without test images). Only `grouped_accuracy` and `format_table`, which are for reading, speak in rounded per cent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean
from typing import Any, Self

import numpy as np

MOST_TASKS = 2000  # the matrix of that many takes 32 MB; a file of a few bytes a task can claim any number


def group_labels(sizes: Sequence[int]) -> list[str]:
    """First and last class of every task, in the order of the tasks: `00-09`, `10-19`, ..., `100-104`, `105-105`."""
    ends = accumulate(sizes)
    return [f"{end - size:02d}-{end - 1:02d}" for size, end in zip(sizes, ends, strict=True)]


def grouped_accuracy(predictions: np.ndarray, labels: np.ndarray, sizes: Sequence[int], known: int) -> dict[str, float]:
    """Accuracy in per cent, to two decimals, under SEMA's keys: `total`, one group of classes a task, `old`, `new`.

    Args:
        predictions: (n,) predicted classes.
        labels: (n,) true classes.
        sizes: Classes of every task so far.
        known: Classes before the current task; `old` are those below it.

    Returns:
        NaN for a group without images; but `old` is 0 in the first task, as the public implementation prints it.

    Raises:
        ValueError: As `count_hits`.
    """
    correct, count = count_hits(predictions, labels, sizes)
    old, old_count = count_hits(predictions[labels < known], labels[labels < known], sizes)
    groups = zip(group_labels(sizes), correct, count, strict=True)
    return {
        "total": _per_cent(sum(correct), sum(count)),
        **{label: _per_cent(hits, images) for label, hits, images in groups},
        "old": _per_cent(sum(old), sum(old_count)) if known else 0.0,
        "new": _per_cent(sum(correct) - sum(old), sum(count) - sum(old_count)),
    }


def count_hits(predictions: np.ndarray, labels: np.ndarray, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Correct predictions and test images of every task.

    Args:
        predictions: (n,) predicted classes.
        labels: (n,) true classes.
        sizes: Classes of every task so far.

    Raises:
        ValueError: The lengths differ, or a label belongs to none of these tasks.
    """
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"{predictions.shape} predictions do not go with {labels.shape} labels; expected one each")
    if labels.size and not 0 <= labels.min() <= labels.max() < sum(sizes):
        raise ValueError(f"labels from {labels.min()} to {labels.max()}; expected 0 to {sum(sizes) - 1}")
    tasks = np.searchsorted(np.cumsum(sizes), labels, side="right")
    hits = tasks[predictions == labels]
    return np.bincount(hits, minlength=len(sizes)).tolist(), np.bincount(tasks, minlength=len(sizes)).tolist()


def _per_cent(hits: int, images: int) -> float:
    return float(np.around(hits * 100 / images, 2)) if images else math.nan


@dataclass
class AccuracyMatrix:
    """Raw counts of a run, one row a task learned, and what follows from them.

    A task without test images takes part in no mean. A row that was never measured (a checkpoint may carry only its
    own) makes everything that needs it NaN.

    Attributes:
        task_sizes: Classes of every task.
        count: Test images of every task.
        correct: `correct[t][i]`, i <= t: right answers on task i after learning task t; None for a row never measured.
    """

    task_sizes: list[int] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    correct: list[list[int] | None] = field(default_factory=list)

    def add_row(self, predictions: np.ndarray, labels: np.ndarray, sizes: Sequence[int]) -> None:
        """Add the row of task `len(sizes) - 1`; rows left out before it count as never measured.

        Args:
            predictions: (n,) predicted classes of the test images of all tasks so far.
            labels: (n,) their true classes.
            sizes: Classes of every task so far.

        Raises:
            ValueError: The row is there already, earlier tasks' classes or test images are not those of the row before,
                or as `count_hits`.
        """
        row = len(sizes) - 1
        if row < len(self.correct):
            raise ValueError(f"row {row} is there already, the matrix has {len(self.correct)}")
        correct, count = count_hits(predictions, labels, sizes)
        for what, before, now in (("classes", self.task_sizes, list(sizes)), ("test images", self.count, count)):
            if now[: len(before)] != before:
                raise ValueError(f"{what} of the tasks were {before} in the row before, and are {now} now")
        self.task_sizes, self.count = list(sizes), count
        self.correct += [None] * (row - len(self.correct)) + [correct]

    def without_last(self) -> Self:
        """A copy as it was before the last task was learned."""
        return type(self)(self.task_sizes[:-1], self.count[:-1], self.correct[:-1])

    @property
    def matrix(self) -> np.ndarray:
        """R, (T + 1, T + 1)."""
        values = np.full((len(self.count), len(self.count)), np.nan)
        for t, row in enumerate(self.correct):
            for i, hits in enumerate(row or ()):
                values[t, i] = _fraction(hits, self.count[i])
        return values

    def average_accuracy(self, t: int) -> float:
        """A_t: accuracy over the test images of all classes seen after task t. Every image weighs the same."""
        row = self.correct[t]
        return math.nan if row is None else _fraction(sum(row), sum(self.count[: t + 1]))

    @property
    def average_accuracies(self) -> list[float]:
        """A_0, ..., A_T: the accuracy curve."""
        return [self.average_accuracy(t) for t in range(len(self.correct))]

    @property
    def avg_inc_acc(self) -> float:
        """Average incremental accuracy: mean over t of A_t (iCaRL, arXiv 1611.07725)."""
        return _mean(self.average_accuracies)

    @property
    def last_acc(self) -> float:
        """A_T: the last point of the accuracy curve."""
        return self.average_accuracy(len(self.correct) - 1) if self.correct else math.nan

    @property
    def forgetting(self) -> float:
        """F = mean over i < T of (max over t in [i, T - 1] of R[t][i]) - R[T][i].

        Every task counts the same. The maximum leaves the last row out, so F is negative where tasks got better to the
        end (arXiv 1801.10112). NaN after the first task.
        """
        values, last = self.matrix, len(self.correct) - 1
        return _mean(float(values[i:last, i].max() - values[last, i]) for i in self._earlier())

    @property
    def bwt(self) -> float:
        """Backward transfer: mean over i < T of R[T][i] - R[i][i] (arXiv 1706.08840). NaN after the first task."""
        values = self.matrix
        return _mean(float(values[-1, i] - values[i, i]) for i in self._earlier())

    @property
    def learning_accuracy(self) -> float:
        """Mean over i of R[i][i]: how well tasks were known when just learned (arXiv 1810.11910)."""
        values = self.matrix
        return _mean(float(values[i, i]) for i in self._tested())

    def _tested(self) -> list[int]:
        return [i for i, images in enumerate(self.count) if images]

    def _earlier(self) -> list[int]:
        """Tasks before the last that have test images."""
        return [i for i in self._tested() if i < len(self.count) - 1]

    def summary(self) -> dict[str, Any]:
        """All that follows from the matrix, as fractions: R's last row, the curve A_t, one number for each measure."""
        return {
            "task_accuracy": self.matrix[-1:].flatten().tolist(),
            "average_accuracy": self.average_accuracies,
            "avg_inc_acc": self.avg_inc_acc,
            "last_acc": self.last_acc,
            "forgetting": self.forgetting,
            "bwt": self.bwt,
            "learning_accuracy": self.learning_accuracy,
        }

    def to_json(self) -> dict[str, Any]:
        """The raw counts, as `from_json` reads them."""
        return {"task_sizes": list(self.task_sizes), "count": list(self.count), "correct": [*self.correct]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: The values are no accuracy matrix; the message says what is wrong.
        """
        if not isinstance(values, Mapping) or not all(isinstance(values.get(key), list) for key in _KEYS):
            raise ValueError(f"an accuracy matrix has lists under {', '.join(_KEYS)}")
        sizes, count, correct = (values[key] for key in _KEYS)
        if not len(sizes) == len(count) == len(correct):
            raise ValueError(
                f"{len(sizes)} task sizes, {len(count)} counts, {len(correct)} rows; expected as many of each"
            )
        if len(sizes) > MOST_TASKS:
            raise ValueError(f"{len(sizes)} tasks; expected at most {MOST_TASKS}")
        if not all(_is_int(size) and size >= 1 for size in sizes) or not all(_is_int(n) and n >= 0 for n in count):
            raise ValueError("task sizes are integers >= 1, counts integers >= 0")
        for t, row in enumerate(correct):
            if row is not None and not _is_row(row, count[: t + 1]):
                raise ValueError(f"row {t} of correct must be null or hold {t + 1} integers, none above its count")
        return cls(list(sizes), list(count), [row if row is None else list(row) for row in correct])


_KEYS = ("task_sizes", "count", "correct")


def _is_int(value: object) -> bool:
    """Whether it is an integer, and one that can count something."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_row(row: object, count: list[int]) -> bool:
    if not isinstance(row, list) or len(row) != len(count):
        return False
    return all(_is_int(hits) and 0 <= hits <= images for hits, images in zip(row, count, strict=True))


def _fraction(hits: int, images: int) -> float:
    return hits / images if images else math.nan


def _mean(values: Iterable[float]) -> float:
    """The mean, the same whatever the order; NaN of nothing."""
    listed = list(values)
    return fmean(listed) if listed else math.nan


def format_table(matrix: AccuracyMatrix) -> str:
    """R in per cent as plain text: a line for each task learned, a column for each task, then A_t; measures below."""
    header = ["after task", *group_labels(matrix.task_sizes), "all"]
    rows = [
        [str(t), *(_cell(value) for value in row[: t + 1]), *[""] * (len(row) - t - 1), _cell(average)]
        for t, (row, average) in enumerate(zip(matrix.matrix, matrix.average_accuracies, strict=True))
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    measures = {
        "average incremental": matrix.avg_inc_acc,
        "last": matrix.last_acc,
        "forgetting": matrix.forgetting,
        "BWT": matrix.bwt,
    }
    return "\n".join([*lines, ", ".join(f"{name} {_cell(value)}" for name, value in measures.items())])


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
