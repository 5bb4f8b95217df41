"""Accuracy matrix of a run, and the averages, forgetting and backward transfer computed from it.

Tasks are counted from 0; T is the last task learned. `R[t][i]` is the accuracy on the test images of task i after
learning task t, a fraction from 0 to 1, not rounded. It is NaN where it is not defined: for i > t, for a row that was
not measured, and for a task without test images. Only `grouped_accuracy` and `format_table` return rounded per cent.

`predictions` and `labels` are classes, (n,); `sizes` is the number of classes of every task so far.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import gt
from statistics import fmean
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.json_file import faults
from utils.readouts import OFF, parts_of
from utils.text import listed, shown

MOST_TASKS = 2000  # a matrix of that size takes 32 MB; a small file could claim any number


def number_with(left_out: Iterable[int], task: int) -> int:
    """Return the number of a task where the tasks left out count, too: of tasks 0, 2, 3 the second has number 2."""
    for other in sorted(left_out):
        task += other <= task
    return task


def group_labels(sizes: Sequence[int]) -> list[str]:
    """Return the first and last class of every task: `00-09`, `10-19`, ..., `100-104`, `105-105`."""
    ends = accumulate(sizes)
    return [f"{end - size:02d}-{end - 1:02d}" for size, end in zip(sizes, ends, strict=True)]


def grouped_accuracy(predictions: np.ndarray, labels: np.ndarray, sizes: Sequence[int], known: int) -> dict[str, float]:
    """Return the accuracy in per cent with two decimals: `total`, one group of classes per task, `old` and `new`.

    `old` are the classes below `known`. The accuracy of a group without images is NaN, except that `old` is 0 in the
    first task, as in the public implementation.
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
    """Return the number of correct predictions and of test images for every task.

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


def without_adapters(on: np.ndarray, off: np.ndarray, labels: np.ndarray, sizes: Sequence[int]) -> dict[str, Any]:
    """Return what a run keeps of its predictions `off`, with all adapters off, beside those with them, `on`.

    `correct` are the hits of `off` on every task, `changed` is the number of predictions that differ, of `images`.
    """
    correct, count = count_hits(off, labels, sizes)
    return {"correct": correct, "changed": int((on != off).sum()), "images": sum(count)}


def _per_cent(hits: int, images: int) -> float:
    return float(np.around(hits * 100 / images, 2)) if images else math.nan


@dataclass
class AccuracyMatrix:
    """Counts of correct predictions, one row for each task learned, and the measures computed from them.

    Tasks without test images, and transient tasks, are left out of A_t and all means. Measures that need a row that was
    not measured are NaN (a checkpoint may have only its own row).

    Attributes:
        task_sizes: Classes of every task.
        count: Test images of every task.
        correct: `correct[t][i]`, i <= t: correct predictions on task i after learning task t; None: row not measured.
        transient: Numbers of the tasks whose classes are not asked for later; the classes of the others are the core.
    """

    task_sizes: list[int] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    correct: list[list[int] | None] = field(default_factory=list)
    transient: list[int] = field(default_factory=list)

    def add_row(self, predictions: np.ndarray, labels: np.ndarray, sizes: Sequence[int]) -> None:
        """Add the row of task `len(sizes) - 1`. Missing rows before it count as not measured.

        Raises:
            ValueError: The row exists, or classes or test images of earlier tasks differ from those of the row before.
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
        """Return a copy without the last row and task."""
        return type(self)(self.task_sizes[:-1], self.count[:-1], self.correct[:-1], self.transient)

    @property
    def matrix(self) -> np.ndarray:
        """R, (T + 1, T + 1)."""
        values = np.full((len(self.count), len(self.count)), np.nan)
        for t, row in enumerate(self.correct):
            values[t, : len(row or ())] = [_fraction(*pair) for pair in zip(row or (), self.count, strict=False)]
        return values

    def average_accuracy(self, t: int) -> float:
        """Return A_t: the accuracy over the test images of tasks 0 to t, of the core, after learning task t."""
        row, core = self.correct[t], [i for i in range(t + 1) if i not in self.transient]
        return math.nan if row is None else _fraction(sum(row[i] for i in core), sum(self.count[i] for i in core))

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
        """F = mean over i < T of (max over t in [i, T - 1] of R[t][i]) - R[T][i] (arXiv 1801.10112).

        F is negative if tasks improve in the last row, which the maximum leaves out. NaN after the first task.
        """
        values, last = self.matrix, len(self.correct) - 1
        return _mean(float(values[i:last, i].max() - values[last, i]) for i in self.averaged if i < last)

    @property
    def bwt(self) -> float:
        """Backward transfer: mean over i < T of R[T][i] - R[i][i] (arXiv 1706.08840). NaN after the first task."""
        values = self.matrix
        return _mean(float(values[-1, i] - values[i, i]) for i in self.averaged if i < len(values) - 1)

    @property
    def learning_accuracy(self) -> float:
        """Mean over i of R[i][i], the accuracy on each task right after learning it (arXiv 1810.11910)."""
        values = self.matrix
        return _mean(float(values[i, i]) for i in self.averaged)

    @property
    def averaged(self) -> list[int]:
        """The tasks in the means: those of the core that have test images."""
        return [i for i, images in enumerate(self.count) if images and i not in self.transient]

    @property
    def transient_learned(self) -> list[float]:
        """R[i][i] of each transient task i; NaN before it."""
        return [float(self.matrix[i, i]) if i < len(self.count) else math.nan for i in self.transient]

    @property
    def transient_left(self) -> list[float]:
        """R[T][i] of each transient task i: what is left of it; NaN before it."""
        return [float(self.matrix[-1, i]) if i < len(self.count) else math.nan for i in self.transient]

    def summary(self) -> dict[str, Any]:
        """Return R's last row, the curve A_t, and every measure, as fractions."""
        of_transient = {"transient_learned": self.transient_learned, "transient_left": self.transient_left}
        return {
            "task_accuracy": self.matrix[-1:].flatten().tolist(),
            "average_accuracy": self.average_accuracies,
            "avg_inc_acc": self.avg_inc_acc,
            "last_acc": self.last_acc,
            "forgetting": self.forgetting,
            "bwt": self.bwt,
            "learning_accuracy": self.learning_accuracy,
            **(of_transient if self.transient else {}),
        }

    def measures(self) -> dict[str, float]:
        """Return the last and the average incremental accuracy and forgetting, as fractions."""
        return {"last_acc": self.last_acc, "avg_inc_acc": self.avg_inc_acc, "forgetting": self.forgetting}

    def to_json(self) -> dict[str, Any]:
        """Return the counts, as `from_json` reads them."""
        counts = {"task_sizes": list(self.task_sizes), "count": list(self.count), "correct": [*self.correct]}
        return counts | ({"transient": list(self.transient)} if self.transient else {})

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Read what `to_json` returned.

        Raises:
            ValueError: The values are not an accuracy matrix.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"not an accuracy matrix but {shown(values)}")
        try:
            counts = _Counts.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"not an accuracy matrix: {faults(error)}") from None
        matrix = cls(counts.task_sizes, counts.count, counts.correct, counts.transient)
        lengths = len(matrix.task_sizes), len(matrix.count), len(matrix.correct)
        if len(set(lengths)) > 1:
            raise ValueError("{} task sizes, {} counts, {} rows; expected as many of each".format(*lengths))
        for t, row in enumerate(matrix.correct):
            if row is not None and (len(row) != t + 1 or any(map(gt, row, matrix.count))):
                raise ValueError(f"row {t} of correct must be null or hold {t + 1} integers, none above its count")
        return matrix


class _Counts(BaseModel):
    model_config = ConfigDict(strict=True)
    task_sizes: Annotated[list[Annotated[int, Field(ge=1, lt=2**53)]], Field(max_length=MOST_TASKS)]
    count: list[Annotated[int, Field(ge=0, lt=2**53)]]
    correct: list[list[Annotated[int, Field(ge=0)]] | None]
    transient: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=MOST_TASKS)] = []


def _fraction(hits: int, images: int) -> float:
    return hits / images if images else math.nan


def _mean(values: Iterable[float]) -> float:
    """Return the mean, independent of the order; NaN if there are no values."""
    listed = list(values)
    return fmean(listed) if listed else math.nan


def format_table(matrix: AccuracyMatrix) -> str:
    """Return R in per cent as a text table: a line per task learned, a column per task, A_t, and the measures."""
    header = ["after task", *group_labels(matrix.task_sizes), "core" if matrix.transient else "all"]
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
    left = [
        f"transient task {task}: {_cell(learned)} after learning it, {_cell(last)} now"
        for task, learned, last in zip(matrix.transient, matrix.transient_learned, matrix.transient_left, strict=True)
        if task < len(matrix.count)
    ]
    return "\n".join([*lines, *left, ", ".join(f"{name} {_cell(value)}" for name, value in measures.items())])


def readout_lines(matrices: Mapping[str, AccuracyMatrix]) -> list[str]:
    """Return the last and average incremental accuracy of readouts in per cent, a line for each side.

    Args:
        matrices: By label, see `utils.readouts`.
    """
    sides: dict[str, list[str]] = {}
    for label, matrix in matrices.items():
        name, side = parts_of(label)
        numbers = f"{name} {_cell(matrix.last_acc)} ({_cell(matrix.avg_inc_acc)})"
        sides.setdefault(side, []).append(numbers)
    where = {"": "", OFF: ", all adapters off"}
    return [
        f"readouts{where.get(side, f', {side} alone')}, last (average): {', '.join(numbers)}"
        for side, numbers in sides.items()
    ]


def effect_of_adapters(found: Mapping[str, Any]) -> str:
    """Return the result of `without_adapters` in words."""
    alone, changed, images = sum(found["correct"]), found["changed"], found["images"]
    return f"with all adapters off top-1 {_per_cent(alone, images):.2f}; they change {changed} of {images} answers"


def class_legend(names: Sequence[str], sizes: Sequence[int]) -> str:
    """Return a line for each task with the names of its classes, under the labels of the columns of `format_table`."""
    starts = np.cumsum([0, *sizes])
    groups = [names[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    return "\n".join(f"{label}: {listed(group)}" for label, group in zip(group_labels(sizes), groups, strict=True))


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
