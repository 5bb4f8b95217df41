"""Data sets read from their files, or refused with what was expected and where to get it.

Shapes: N images, H height, W width.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from torchvision.datasets import CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.data.images import InputSpec as InputSpec
from utils.data.images import open_image
from utils.data.images import test_transform as test_transform
from utils.data.images import train_transform as train_transform
from utils.data.npz import read_arrays
from utils.data.readable import refuse_unreadable, unreadable
from utils.datasets import DATASETS, Source
from utils.errors import DataError as DataError
from utils.text import did_you_mean, writable

logger = logging.getLogger(__name__)

OnBadImage = Literal["error", "skip"]
NAMES_SHOWN = 8  # names that a message lists before it says how many more there are


@dataclass(frozen=True)
class Split:
    """The training or the test half of a data set.

    Attributes:
        images: Files, or uint8 pixels (N, H, W) or (N, H, W, 3).
        labels: (N,) int64, numbers of the stored classes.
    """

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ImageData:
    """A data set as it is stored, its classes in stored order.

    Attributes:
        left_out: Files that are none of its images, as they cannot be read.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    left_out: tuple[Path, ...] = ()

    @property
    def nb_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def summary(self) -> str:
        """How large it is, and by name what was left out."""
        train, test = len(self.train.labels), len(self.test.labels)
        size = f"{self.nb_classes} classes, {train} training and {test} test images"
        names = writable(", ".join(map(str, self.left_out)))
        return f"{size}; left out, as they cannot be read, {len(self.left_out)}: {names}" if names else size


def load_dataset(name: str, data_root: Path, on_bad_image: OnBadImage = "error") -> ImageData:
    """Read a data set's labels, and its pixels if they are stored as arrays.

    Args:
        name: Which one.
        data_root: Where data sets lie.
        on_bad_image: "error" refuses a data set with a file that is no image by its first bytes; one that turns out to
            be damaged behind them is an error where it is loaded. "skip" decodes every file, which takes as long as an
            epoch's loading, and leaves out those that cannot be read: whatever follows knows the others alone.

    Raises:
        DataError: It is not there or not complete; the message names the path, the layout and where to get it. Or a
            file is no image; the message names it.
    """
    source = DATASETS[name]
    path = data_root / source.folder
    try:
        data = ON_BAD_IMAGE[on_bad_image](READERS[source.reader](path, source))
    except OSError as error:
        raise DataError(f"data set {name}: {error}") from error
    _check_classes(data, path, source)
    logger.info("data set %s in %s: %s", name, path, data.summary)
    return data


def _files(data: ImageData) -> list[Path]:
    return [
        file for split in (data.train, data.test) if not isinstance(split.images, np.ndarray) for file in split.images
    ]


def _refuse_bad(data: ImageData) -> ImageData:
    """The data set itself, unless the first bytes of a file tell that it is no image."""
    refuse_unreadable(_files(data))
    return data


def _without_bad(data: ImageData) -> ImageData:
    """The data set without the files that cannot be decoded, each named in a warning."""
    bad = unreadable(_files(data), open_image)
    for problem in bad.values():
        logger.warning("%s; left out", problem)
    train, test = (_without(split, bad) for split in (data.train, data.test))
    return replace(data, train=train, test=test, left_out=tuple(bad))


def _without(split: Split, bad: Collection[Path]) -> Split:
    if isinstance(split.images, np.ndarray):
        return split
    kept = [row for row, file in enumerate(split.images) if file not in bad]
    return Split([split.images[row] for row in kept], split.labels[kept])


ON_BAD_IMAGE: dict[OnBadImage, Callable[[ImageData], ImageData]] = {"error": _refuse_bad, "skip": _without_bad}


def _check_classes(data: ImageData, path: Path, source: Source) -> None:
    """Refuse a wrong number of classes or one that cannot be learnt; warn of one that cannot be tested."""
    if source.nb_classes not in (None, data.nb_classes):
        raise _incomplete(f"{path}: {data.nb_classes} classes instead of {source.nb_classes}", source)
    if untaught := _classes_without_images(data.train, data.class_names):
        raise _incomplete(f"{path}: no training image of {_listed(untaught)}", source)
    if untested := _classes_without_images(data.test, data.class_names):
        logger.warning("%s: no test image of %s", path, _listed(untested))


def _classes_without_images(split: Split, names: Sequence[str]) -> list[str]:
    return [names[label] for label in np.setdiff1d(np.arange(len(names)), split.labels)]


def _read_folders(path: Path, source: Source) -> ImageData:
    train, test = _class_folders(path / "train", source), _class_folders(path / "test", source)
    if train != test:
        only = [f"only in {split}: {_listed(sorted(names))}" for split, names in _differences(train, test) if names]
        raise _incomplete(f"{path}: train and test hold different classes; {'; '.join(only)}", source)
    return ImageData(_list_images(path / "train", train), _list_images(path / "test", train), tuple(train))


def _differences(train: list[str], test: list[str]) -> list[tuple[str, set[str]]]:
    return [("train", set(train) - set(test)), ("test", set(test) - set(train))]


def _class_folders(path: Path, source: Source) -> list[str]:
    if not path.is_dir():
        raise _missing(path, source)
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise _incomplete(f"{path}: no folder in it", source)
    return names


def _list_images(path: Path, names: Sequence[str]) -> Split:
    files: list[Path] = []
    labels: list[int] = []
    ignored: list[str] = []
    for label, name in enumerate(names):
        for entry in sorted(path.joinpath(name).iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.suffix.lower() in IMG_EXTENSIONS:
                files.append(entry)
                labels.append(label)
            else:
                ignored.append(f"{name}/{entry.name}")
    if ignored:
        logger.warning("%s: ignored, for their names do not end like an image's: %s", path, _listed(ignored))
    return Split(files, np.array(labels, dtype=np.int64))


def _read_cifar100(path: Path, source: Source) -> ImageData:
    """CIFAR-100's files are pickles; torchvision unpickles none that has not the MD5 of the published one.

    That keeps strangers' files out: nobody can make another file of a given MD5, only two of their own with the same.
    """
    if not path.is_dir():
        raise _missing(path, source)
    try:
        train, test = CIFAR100(path.parent, train=True), CIFAR100(path.parent, train=False)
    except RuntimeError as error:  # torchvision's word for files that are missing or do not have their checksum
        raise _incomplete(f"{path}: a file in it is missing or damaged", source) from error
    labels = [np.array(half.targets, dtype=np.int64) for half in (train, test)]
    return ImageData(Split(train.data, labels[0]), Split(test.data, labels[1]), tuple(train.classes))


def _read_npz(path: Path, source: Source) -> ImageData:
    if not path.exists():
        raise _missing(path, source)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if len(files) != 1:
        found = _listed([file.name for file in files]) or "none"
        raise _incomplete(f"{path}: expected one .npz file in this folder, found {found}", source)
    arrays = read_arrays(files[0])
    train = Split(arrays["x_train"], arrays["y_train"].astype(np.int64))
    test = Split(arrays["x_test"], arrays["y_test"].astype(np.int64))
    return ImageData(train, test, tuple(arrays["class_names"].tolist()))


def _missing(path: Path, source: Source) -> DataError:
    """The error for a path that is not there: what is where it begins to be missing."""
    path = path.absolute()
    first = next(part for part in (*reversed(path.parents), path) if not part.is_dir())
    if first.exists():
        return _incomplete(f"{path}: {first} is not a folder", source)
    there = sorted(entry.name for entry in first.parent.iterdir() if not entry.name.startswith("."))
    found = f"{first.parent} holds {_listed(there) or 'nothing'}{did_you_mean(first.name, there)}"
    return _incomplete(f"{path}: not found; {found}", source)


def _incomplete(problem: str, source: Source) -> DataError:
    return DataError(f"{problem}\nexpected layout: <data_root>/{source.layout}\nwhere to get it: {source.origin}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


READERS: dict[str, Callable[[Path, Source], ImageData]] = {
    "folders": _read_folders,
    "cifar100": _read_cifar100,
    "npz": _read_npz,
}
