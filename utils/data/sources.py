"""Read a data set from its files, or explain what is missing and where to get it.

Shapes: N images, H height, W width.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from torchvision.datasets import CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.data.images import check_header, open_image
from utils.data.npz import read_arrays
from utils.data.readable import unreadable
from utils.datasets import DATASETS, Source
from utils.errors import DataError
from utils.progress import progress
from utils.text import did_you_mean, writable

logger = logging.getLogger(__name__)

OnBadImage = Literal["error", "skip"]
NAMES_SHOWN = 8  # names in a message before "and n more"


@dataclass(frozen=True)
class Split:
    """The training or the test half of a data set.

    Attributes:
        images: Files, or uint8 pixels (N, H, W) or (N, H, W, 3).
        labels: (N,) int64 stored labels.
    """

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray

    @property
    def files(self) -> list[Path]:
        """The images if they are files; otherwise an empty list."""
        return [] if isinstance(self.images, np.ndarray) else list(self.images)

    def without(self, bad: set[Path]) -> "Split":
        """Return the split without some of its files."""
        if not bad:
            return self
        kept = [row for row, file in enumerate(self.images) if file not in bad]
        return Split([self.images[row] for row in kept], self.labels[kept])


@dataclass(frozen=True)
class ImageData:
    """A data set as it is stored.

    Attributes:
        class_names: Names in the order of the stored labels.
        left_out: Files that cannot be read and were left out.
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
        """The numbers of classes and images, and the files that were left out."""
        train, test = len(self.train.labels), len(self.test.labels)
        size = f"{self.nb_classes} classes, {train} training and {test} test images"
        names = writable(", ".join(map(str, self.left_out)))
        return f"{size}; {len(self.left_out)} unreadable files left out: {names}" if names else size


def load_dataset(name: str, data_root: Path, on_bad_image: OnBadImage = "error") -> ImageData:
    """Read a data set's labels and the paths of its images, or its pixels if they are stored as arrays.

    Args:
        name: Key of `DATASETS`.
        data_root: Folder of the data sets.
        on_bad_image: "error" checks the header of every file and refuses the data set if one is not an image; a file
            damaged behind its header raises when it is loaded. "skip" decodes every file and leaves out those that
            cannot be read.

    Raises:
        DataError: The data set is missing or incomplete, or a file is not an image.
    """
    source = DATASETS[name]
    path = data_root / source.folder
    try:
        data = READERS[source.reader](path, source)
        files = data.train.files + data.test.files
        bad = unreadable(files, check_header if on_bad_image == "error" else open_image)
    except OSError as error:
        raise DataError(f"data set {name}: {error}") from error
    if bad and on_bad_image == "error":
        more = [f"and {len(bad) - NAMES_SHOWN} more files"] if len(bad) > NAMES_SHOWN else []
        hint = "repair or remove these files, or set on_bad_image to skip to leave them out"
        raise DataError("\n".join([*list(bad.values())[:NAMES_SHOWN], *more, hint]))
    for problem in bad.values():
        logger.warning("%s; left out", problem)
    splits = {half: getattr(data, half).without(set(bad)) for half in ("train", "test")}
    data = replace(data, **splits, left_out=tuple(bad))
    _check_classes(data, path, source)
    logger.info("data set %s in %s: %s", name, path, data.summary)
    return data


def _check_classes(data: ImageData, path: Path, source: Source) -> None:
    """Refuse a wrong number of classes and classes without training images; warn of classes without test images."""
    if source.nb_classes not in (None, data.nb_classes):
        raise _incomplete(f"{path}: {data.nb_classes} classes instead of {source.nb_classes}", source)
    if untaught := np.setdiff1d(np.arange(data.nb_classes), data.train.labels).tolist():
        names = _listed([data.class_names[label] for label in untaught])
        raise _incomplete(f"{path}: no training image of {names}", source)
    if untested := np.setdiff1d(np.arange(data.nb_classes), data.test.labels).tolist():
        logger.warning("%s: no test image of %s", path, _listed([data.class_names[label] for label in untested]))


def _read_folders(path: Path, source: Source) -> ImageData:
    train, test = (_class_folders(path / half, source) for half in ("train", "test"))
    if train != test:
        differences = {"train": set(train) - set(test), "test": set(test) - set(train)}
        only = [f"only in {half}: {_listed(sorted(names))}" for half, names in differences.items() if names]
        raise _incomplete(f"{path}: train and test hold different classes; {'; '.join(only)}", source)
    return ImageData(_list_images(path / "train", train), _list_images(path / "test", train), tuple(train))


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
    for label, name in enumerate(progress(names, f"listing {path}", len(names))):
        for entry in sorted(path.joinpath(name).iterdir()):
            if entry.suffix.lower() in IMG_EXTENSIONS and not entry.name.startswith("."):
                files.append(entry)
                labels.append(label)
            elif not entry.name.startswith("."):
                ignored.append(f"{name}/{entry.name}")
    if ignored:
        logger.warning("%s: files without the ending of an image ignored: %s", path, _listed(ignored))
    return Split(files, np.array(labels, dtype=np.int64))


def _read_cifar100(path: Path, source: Source) -> ImageData:
    """Read CIFAR-100's pickles. torchvision unpickles a file only if its MD5 is that of the published one.

    MD5 suffices here: an attacker would need a second preimage, which is not known to be feasible.
    """
    if not path.is_dir():
        raise _missing(path, source)
    try:
        train, test = CIFAR100(path.parent, train=True), CIFAR100(path.parent, train=False)
    except RuntimeError as error:  # a file is missing, or its checksum is wrong
        raise _incomplete(f"{path}: a file in it is missing or damaged", source) from error
    names = tuple(train.classes)
    train, test = (Split(half.data, np.array(half.targets, dtype=np.int64)) for half in (train, test))
    return ImageData(train, test, names)


def _read_npz(path: Path, source: Source) -> ImageData:
    if not path.exists():
        raise _missing(path, source)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if len(files) != 1:
        found = _listed([file.name for file in files]) or "none"
        raise _incomplete(f"{path}: expected one .npz file in this folder, found {found}", source)
    arrays = read_arrays(files[0])
    train, test = (Split(arrays[f"x_{half}"], arrays[f"y_{half}"].astype(np.int64)) for half in ("train", "test"))
    return ImageData(train, test, tuple(arrays["class_names"].tolist()))


def _missing(path: Path, source: Source) -> DataError:
    """Return the error for a missing path, with the content of the last folder that exists."""
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
