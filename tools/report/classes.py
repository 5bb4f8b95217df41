"""What a configuration answered on the test images of each class after the last task, from the predictions on record.

Shapes: C classes.
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tools.compare.comparison import Group
from tools.compare.tables import Table
from tools.finished.reader import Run
from tools.plots.charts import bar_chart, confusion_map
from tools.plots.drawing import Drawing, Numbers
from tools.report.figures import of_group
from utils.errors import RunError
from utils.runs.predictions import WHOLE, Answers, predictions_file, read_mistakes, read_predictions

MOST_ROWS = 500  # of the table behind a confusion matrix
CONFUSION = ["true class", "taken for", "images", "of the class (%)"]
CONFUSIONS, EXTREMES, FEW = 10, 5, 12  # largest confusions; worst and best classes; classes that one table shows


@dataclass(frozen=True)
class Classes:
    """The answers of one or several runs of a configuration, added up."""

    runs: Sequence[Run]
    names: list[str]
    counts: np.ndarray  # (C, C) test images by true and by predicted class
    tasks: np.ndarray | None  # (C,) the task of each class; None where the runs have different class orders

    @property
    def images(self) -> np.ndarray:
        """Test images of each class, (C,)."""
        return self.counts.sum(axis=1)

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy on each class, 0 to 1, (C,); NaN without test images."""
        return np.diag(self.shares)

    @property
    def shares(self) -> np.ndarray:
        """Of the images of each true class, the share that was taken for each class, (C, C)."""
        with np.errstate(invalid="ignore"):
            return self.counts / self.images[:, None]

    @property
    def confusions(self) -> list[tuple[int, int]]:
        """The true and the predicted class of all confusions, the largest first."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
        return [(int(true), int(taken)) for true, taken in zip(*np.unravel_index(order, wrong.shape), strict=True)]


def class_names(run: Run) -> list[str] | None:
    """Return the names of the classes learned, in the order of their labels; None if the run does not say them."""
    names, count = run.results.get("class_names"), sum(run.matrix.task_sizes)
    if not isinstance(names, list) or len(names) < count or not all(isinstance(name, str) for name in names):
        return None
    return names[:count] if len(set(names[:count])) == count else None


def shown_names(run: Run) -> list[str]:
    """Return the names of the classes learned, or their numbers."""
    return class_names(run) or [f"class {label}" for label in range(sum(run.matrix.task_sizes))]


def last_answers(run: Run) -> Answers | None:
    """Return the predictions after the last task; None if the run has none.

    Raises:
        RunError: They are damaged.
    """
    file = predictions_file(run.path, run.tasks[-1])
    if run.is_log or not file.exists():
        return None
    found, count = read_predictions(file), sum(run.matrix.task_sizes)
    if any(
        array.size and not 0 <= array.min() <= array.max() < count for array in (found.labels, found.answers[WHOLE])
    ):
        raise RunError(f"{file}: expected classes from 0 to {count - 1}")
    return found


def classes_of(group: Group) -> Classes | None:
    """Add up the answers of all runs of a configuration, class by class; None if none has predictions.

    Without names, classes of runs with different orders cannot be told apart; then it is of the first run only.
    """
    answered = [(run, answers) for run in group.runs if (answers := last_answers(run))]
    if not answered:
        return None
    first = answered[0][0]
    if not all(class_names(run) or _order(run) == _order(first) for run, _ in answered):
        answered = answered[:1]
    orders = [shown_names(run) for run, _ in answered]
    same = all(order == orders[0] for order in orders)
    names = orders[0] if same else sorted({name for order in orders for name in order})
    place, counts = {name: number for number, name in enumerate(names)}, np.zeros((len(names), len(names)), np.int64)
    for order, (_, answers) in zip(orders, answered, strict=True):
        new = np.array([place[name] for name in order])
        np.add.at(counts, (new[answers.labels], new[answers.answers[WHOLE]]), 1)
    sizes = first.matrix.task_sizes
    return Classes(
        [run for run, _ in answered], names, counts, np.repeat(np.arange(len(sizes)), sizes) if same else None
    )


def _order(run: Run) -> object:
    """Return what the class order depends on."""
    config = run.config
    seed = run.seed if config.get("class_order_seed") is None else config["class_order_seed"]
    given = config.get("tasks") or config.get("class_order")
    return (config.get("dataset"), given or (seed if config.get("shuffle", True) else None))


# ---- tables


def class_table(title: str, found: Classes, rows: Sequence[int]) -> Table:
    """Return a row for each of some classes."""
    confused = dict[int, int]()  # the class for which each was most often taken
    for true, taken in found.confusions:
        confused.setdefault(true, taken)
    task = [] if found.tasks is None else ["task"]
    header = ["class", *task, "test images", "right", "accuracy (%)", "most often taken for"]
    return Table(title, header, [_class_row(found, row, confused.get(row)) for row in rows])


def _class_row(found: Classes, row: int, taken: int | None) -> list[str]:
    task = [] if found.tasks is None else [str(found.tasks[row])]
    images, right = int(found.images[row]), int(found.counts[row, row])
    other = "-" if taken is None else f"{found.names[taken]} ({found.counts[row, taken]})"
    return [found.names[row], *task, str(images), str(right), f"{100 * right / images:.1f}" if images else "-", other]


def class_tables(found: Classes) -> tuple[list[Table], list[Table]]:
    """Return the tables that a reader sees first, and those that can be opened."""
    tested = np.flatnonzero(found.images)
    order = [int(row) for row in tested[np.argsort(found.accuracy[tested], kind="stable")]]
    whole = class_table("All classes", found, range(len(found.names)))
    confusions = Table("Largest confusions", CONFUSION, _confusion_rows(found, CONFUSIONS))
    if len(found.names) <= FEW:
        return [whole, confusions], []
    worst = class_table("Worst classes", found, order[:EXTREMES])
    return [worst, class_table("Best classes", found, order[::-1][:EXTREMES]), confusions], [whole]


def _confusion_rows(found: Classes, most: int) -> list[list[str]]:
    return [
        [
            found.names[true],
            found.names[taken],
            str(found.counts[true, taken]),
            f"{100 * found.shares[true, taken]:.1f}",
        ]
        for true, taken in found.confusions[:most]
    ]


# ---- drawings


def class_drawings(group: Group, found: Classes) -> Iterator[Drawing]:
    """Draw the confusion matrix, and the accuracy on each class."""
    bounds = [] if found.tasks is None else (np.flatnonzero(np.diff(found.tasks)) + 1).tolist()
    order = "in alphabetical order" if found.tasks is None else "in the order learned; lines divide the tasks"
    rows = _confusion_rows(found, MOST_ROWS)
    left = len(found.confusions) - len(rows)
    text = f"Of the test images of each true class, the share taken for each class. Classes are {order}. "
    text += f"Its numbers are the confusions, largest first{f', without the {left} smallest' if left else ''}."
    matrix = partial(confusion_map, found.shares, found.names, bounds)
    yield of_group(group.name, "confusion matrix", text, matrix, Numbers(CONFUSION, rows))
    tested = [int(row) for row in np.argsort(found.accuracy, kind="stable") if found.images[row]]
    values, names = [100 * float(found.accuracy[row]) for row in tested], [found.names[row] for row in tested]
    text = "Accuracy on the test images of each class after the last task, from the worst to the best."
    table, bars = class_table("", found, tested), partial(bar_chart, values, names, "accuracy (%)")
    yield of_group(group.name, "accuracy by class", text, bars, Numbers(table.header, table.rows))


# ---- mistakes


@dataclass(frozen=True)
class Picture:
    """A thumbnail with what it shows."""

    address: str  # a data URL of a JPEG file; empty if the image could not be read
    name: str
    true: str
    predicted: str
    confidence: str


def pictures(run: Run) -> list[Picture]:
    """Return the most confident mistakes of a run; none if it was written by an earlier version.

    Raises:
        RunError: A file is damaged.
    """
    answers, mistakes, names = last_answers(run), read_mistakes(run.path), shown_names(run)
    if answers is None or answers.confidence is None or mistakes is None:
        return []
    if not all(0 <= mistake.position < len(answers.labels) for mistake in mistakes):
        raise RunError(f"{run.path}: the mistakes are not of the predictions of task {run.tasks[-1]}")
    return [
        Picture(
            f"data:image/jpeg;base64,{b64encode(jpeg).decode()}" if jpeg else "",
            name,
            names[answers.labels[at]],
            names[answers.answers[WHOLE][at]],
            f"{100 * answers.confidence[at]:.1f} %",
        )
        for at, name, jpeg in mistakes
    ]
