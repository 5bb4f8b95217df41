"""A data set as a sequence of tasks: the order of its classes, and the images of each task."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from torch.utils.data import Dataset
from torchvision.transforms import Compose

from utils.data.decoded import DecodedImages
from utils.data.images import InputSpec, open_image, open_pixels, test_transform, thumbnail, train_transform
from utils.data.order import order_of_tasks, whole_order
from utils.data.resample import random_part
from utils.data.sources import ImageData, Part, Split
from utils.errors import ConfigError, DataError
from utils.metrics import MOST_TASKS

T = TypeVar("T")
Mode = Literal["train", "test", "part"]


class DataManager:
    """The first task has `init_cls` classes, each later one `increment`, and the last one what remains.

    The new label of a class is its position in the class order. Only this module knows the stored labels.

    Args:
        data: The data set.
        shuffle: Whether to draw the class order from `seed` (0 to 2**32 - 1); otherwise it is the stored one.
        max_tasks: Stop after this many tasks; None: all.
        class_order: All classes, as labels or names; None: as `shuffle` says.
        tasks: The classes of each task, used instead of `class_order`, `init_cls` and `increment`. Classes of no task
            have the last labels and are not learned.
        transient: Numbers of the transient tasks, in order.
        leave_out: Whether these are left out. Their classes then have the last labels.

    Attributes:
        transient: Those of the transient tasks that are not left out.
        head_rows: (C,) for each class, its place in the class order before tasks were left out.

    Raises:
        ConfigError: The data set has fewer classes than `init_cls`, the tasks are too many, or classes are listed that
            it does not have, or not as expected.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        shuffle: bool,
        seed: int,
        init_cls: int,
        increment: int,
        max_tasks: int | None = None,
        class_order: Sequence[int | str] | None = None,
        tasks: Sequence[Sequence[int | str]] | None = None,
        transient: Sequence[int] = (),
        leave_out: bool = False,
    ) -> None:
        self._data = data
        if tasks is None and init_cls > self.nb_classes:
            raise ConfigError(
                f"init_cls = {init_cls}: the data set has {self.nb_classes} classes; expected at most that"
            )
        ends = [*range(init_cls, self.nb_classes, increment), self.nb_classes]
        sizes: list[int] = np.diff(ends, prepend=0).tolist() if tasks is None else list(map(len, tasks))
        self._sizes = sizes[:max_tasks]
        if len(self._sizes) > MOST_TASKS:
            made = f"init_cls = {init_cls}, increment = {increment}" if tasks is None else "tasks"
            made += f": these are {len(self._sizes):,} tasks"
            raise ConfigError(f"{made}; expected at most {MOST_TASKS:,}, see max_tasks")
        self.class_order: list[int]
        if tasks is not None:
            self.class_order = order_of_tasks(tasks, data.class_names)
        elif class_order is not None:
            self.class_order = whole_order(class_order, data.class_names)
        elif shuffle:
            self.class_order = np.random.RandomState(seed).permutation(self.nb_classes).tolist()
        else:
            self.class_order = list(range(self.nb_classes))
        if transient and transient[-1] >= self.nb_tasks:
            one = self.nb_tasks == 1
            tasks_there = f"there {'is one task' if one else f'are {self.nb_tasks} tasks'}, counted from 0"
            raise ConfigError(f"transient = {transient[-1]}: {tasks_there}; expected one of them that is not the first")
        self.transient = [] if leave_out else list(transient)
        self.head_rows = list(range(self.nb_classes))
        if leave_out and transient:
            of_tasks = [self._of_task(self.head_rows, task) for task in range(self.nb_tasks)]
            core = [task for task in range(self.nb_tasks) if task not in transient]
            kept = [row for task in core for row in of_tasks[task]]
            self.head_rows = kept + [row for row in self.head_rows if row not in set(kept)]
            self.class_order = [self.class_order[row] for row in self.head_rows]
            self._sizes = [self._sizes[task] for task in core]
        self.class_names = tuple(data.class_names[label] for label in self.class_order)

    @property
    def nb_classes(self) -> int:
        """Number of classes of the data set, whatever `max_tasks` is."""
        return self._data.nb_classes

    @property
    def nb_tasks(self) -> int:
        """Number of tasks."""
        return len(self._sizes)

    def get_task_size(self, task: int) -> int:
        """Return the number of classes of a task."""
        return self._sizes[task]

    def nb_images(self, part: Part, task: int) -> int:
        """Return the number of training, validation or test images of a task."""
        return int(np.isin(self._data.part(part).labels, self._of_task(self.class_order, task)).sum())

    def names_of(self, task: int) -> Sequence[str]:
        """Return the names of the classes of a task."""
        return self._of_task(self.class_names, task)

    def _of_task(self, classes: Sequence[T], task: int) -> Sequence[T]:
        first = sum(self._sizes[:task])
        return classes[first : first + self._sizes[task]]

    def get_dataset(
        self,
        indices: Iterable[int],
        source: Part,
        mode: Mode,
        spec: InputSpec,
        decoded_gib: float = 0.0,
    ) -> "TaskImages":
        """Return the images of some classes, class after class.

        Args:
            indices: New labels of the classes.
            source: Which part of the data set.
            mode: "train" or "test": the transform of that name; "part": the part of the image that the train transform
                would resize, see `utils.data.resample`.
            spec: The network's input.
            decoded_gib: Memory for images that are decoded now if they are files, GiB.

        Raises:
            DataError: None of the classes has an image, or a file that is decoded now is not a readable image.
        """
        split = self._data.part(source)
        classes = list(indices)
        by_class = self._rows(split, classes)
        if not any(map(len, by_class)):
            names = ", ".join(self.class_names[label] for label in classes)
            raise DataError(f"there is no {source} image of any of these classes: {names}")
        labels = np.repeat(classes, [len(rows) for rows in by_class])
        images: Stored
        images, rows = split.images, np.concatenate(by_class)
        if decoded_gib and not isinstance(images, np.ndarray):
            images, rows = DecodedImages([images[row] for row in rows], decoded_gib), np.arange(len(rows))
        steps: dict[Mode, list[Callable[..., Any]]] = {
            "train": [open_image, train_transform(spec)],
            "test": [open_image, test_transform(spec)],
            "part": [open_pixels, random_part],
        }
        return TaskImages(images, rows, labels, Compose(steps[mode]))

    def thumbnails(
        self, indices: Iterable[int], positions: Iterable[int], part: Part = "test"
    ) -> list[tuple[str, bytes]]:
        """Return the names and thumbnails of some of the images of a part that `get_dataset` returns for these classes.

        The name of a file has its folder, that of an image in an array its row among the stored images of its half. The
        thumbnail is a JPEG file; it is empty, with a warning, if the image can no longer be read.
        """
        split, half = self._data.part(part), "test" if part == "test" else "training"
        rows = np.concatenate(self._rows(split, indices))
        return [thumbnail(split.images[row], f"{half} image {row}") for row in rows[list(positions)].tolist()]

    def _rows(self, split: Split, indices: Iterable[int]) -> list[np.ndarray]:
        """Return the rows of each class in a half of the data set."""
        return [np.flatnonzero(split.labels == self.class_order[label]) for label in indices]


class Stored(Protocol):
    """Files, or uint8 pixels (H, W) or (H, W, 3)."""

    def __getitem__(self, row: int, /) -> Path | np.ndarray: ...


class TaskImages(Dataset[tuple[int, Any, int]]):
    """A data set of (index, image, new label).

    Args:
        images: Stored images, shared with other tasks.
        rows: (n,) the rows of `images` that belong to this data set.
        labels: (n,) their new labels.
        look: Opens and transforms a stored image when it is requested.
    """

    def __init__(
        self, images: Stored, rows: np.ndarray, labels: np.ndarray, look: Callable[[Path | np.ndarray], Any]
    ) -> None:
        self.images, self.rows, self.labels, self.look = images, rows, labels, look

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any, int]:
        """Return one image; raise DataError if its file is not a readable image."""
        return index, self.look(self.images[self.rows[index]]), int(self.labels[index])
