"""A data set as a sequence of tasks: the order of its classes, and the images of the classes of a task.

Shapes: S image side.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch.utils.data import Dataset
from torchvision.transforms import Compose

from utils.data.decoded import DecodedImages
from utils.data.images import InputSpec, open_image, open_pixels, test_transform, train_transform
from utils.data.resample import random_part
from utils.data.sources import ImageData
from utils.errors import ConfigError, DataError

Mode = Literal["train", "test", "part"]
TRANSFORMS = {"train": train_transform, "test": test_transform}


class DataManager:
    """Tasks of `init_cls`, then `increment` classes; the last one keeps what remains.

    A class is known by its position in the class order (its new label), and by nothing else outside this file.

    Args:
        data: The data set.
        shuffle: Whether the class order is drawn from `seed`; otherwise it is the stored one.
        seed: Of the class order, 0 to 2**32 - 1.
        init_cls: Classes of the first task.
        increment: Classes of each later task.
        max_tasks: Stop after that many tasks; None: all.

    Raises:
        ConfigError: The data set has fewer classes than `init_cls`.
    """

    def __init__(
        self, data: ImageData, *, shuffle: bool, seed: int, init_cls: int, increment: int, max_tasks: int | None = None
    ) -> None:
        self._data = data
        self._sizes = _task_sizes(data.nb_classes, init_cls, increment)[:max_tasks]
        self.class_order = _class_order(data.nb_classes, seed if shuffle else None)
        self.class_names = tuple(data.class_names[stored] for stored in self.class_order)

    @property
    def nb_classes(self) -> int:
        """Classes of the whole data set, whatever `max_tasks` is."""
        return self._data.nb_classes

    @property
    def nb_tasks(self) -> int:
        """Number of tasks."""
        return len(self._sizes)

    def get_task_size(self, task: int) -> int:
        """Number of classes of a task."""
        return self._sizes[task]

    def train_images(self, task: int) -> int:
        """Number of training images of a task."""
        first = sum(self._sizes[:task])
        stored = self.class_order[first : first + self._sizes[task]]
        return int(np.isin(self._data.train.labels, stored).sum())

    def get_dataset(
        self,
        indices: Iterable[int],
        source: Literal["train", "test"],
        mode: Mode,
        spec: InputSpec,
        decoded_gib: float = 0.0,
    ) -> "TaskImages":
        """The images of some classes, class after class.

        Args:
            indices: New labels of the classes.
            source: Which half of the data set.
            mode: What to make of an image: the random transform of training, the fixed one of testing, or only the
                part of it that the random one would resize, see utils.data.resample.
            spec: What the network wants to see.
            decoded_gib: How much of them to decode now, once and for all, if they are files; GiB.

        Raises:
            DataError: There is no image of any of the classes, or a file to decode now is not a readable image.
        """
        split = {"train": self._data.train, "test": self._data.test}[source]
        classes = list(indices)
        rows = [np.flatnonzero(split.labels == self.class_order[label]) for label in classes]
        if not any(map(len, rows)):
            names = ", ".join(self.class_names[label] for label in classes)
            raise DataError(f"there is no {source} image of any of these classes: {names}")
        labels = np.repeat(classes, [len(of_class) for of_class in rows])
        images, places = _decoded(split.images, np.concatenate(rows), decoded_gib)
        return TaskImages(images, places, labels, _look(mode, spec))


def _look(mode: Mode, spec: InputSpec) -> Callable[[Path | np.ndarray], Any]:
    """What is made of an image as it is stored."""
    return Compose([open_pixels, random_part] if mode == "part" else [open_image, TRANSFORMS[mode](spec)])


class Stored(Protocol):
    """Files, or uint8 pixels (H, W) or (H, W, 3)."""

    def __getitem__(self, row: int, /) -> Path | np.ndarray: ...


def _decoded(images: Sequence[Path] | np.ndarray, rows: np.ndarray, limit_gib: float) -> tuple[Stored, np.ndarray]:
    """Some of a split's images and where they are in what is returned: arrays as they are, files decoded."""
    if isinstance(images, np.ndarray) or not limit_gib:
        return images, rows
    return DecodedImages([images[row] for row in rows], limit_gib), np.arange(len(rows))


class TaskImages(Dataset[tuple[int, Any, int]]):
    """(index, image, new label) of some images, opened and transformed when asked for.

    Args:
        images: Those of a split are shared with the other tasks, not copied.
        rows: (n,) where among them this data set's are.
        labels: (n,) their new labels.
        look: Makes of a stored image what is asked for, (3, S, S) or a `Part`.
    """

    def __init__(
        self, images: Stored, rows: np.ndarray, labels: np.ndarray, look: Callable[[Path | np.ndarray], Any]
    ) -> None:
        self.images, self.rows, self.labels, self.look = images, rows, labels, look

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any, int]:
        """Image number `index`.

        Raises:
            DataError: Its file is not a readable image.
        """
        return index, self.look(self.images[self.rows[index]]), int(self.labels[index])


def _class_order(nb_classes: int, seed: int | None) -> list[int]:
    """Stored labels by new label: as stored, or the permutation numpy's legacy generator draws from the seed."""
    stored = np.arange(nb_classes) if seed is None else np.random.RandomState(seed).permutation(nb_classes)
    return [int(label) for label in stored]


def _task_sizes(nb_classes: int, init_cls: int, increment: int) -> list[int]:
    if init_cls > nb_classes:
        raise ConfigError(f"init_cls = {init_cls}: the data set has {nb_classes} classes; expected at most that")
    starts = [0, *range(init_cls, nb_classes, increment)]
    return [end - start for start, end in zip(starts, [*starts[1:], nb_classes], strict=True)]
