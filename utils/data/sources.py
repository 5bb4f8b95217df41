"""Read a data set from its files, or explain what is missing and where to get it.

Shapes: N images, H height, W width.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torchvision.datasets import CIFAR100

from utils.data.contents import Content, of_array, of_files
from utils.data.listing import ENDINGS, NOT_TORCHVISIONS, files_within, is_hidden
from utils.data.npz import read_arrays
from utils.datasets import DATASETS, Source
from utils.errors import DataError
from utils.files import seen_from
from utils.progress import SOON, progress
from utils.text import NAMES_SHOWN, did_you_mean, listed, same_name, writable

logger = logging.getLogger(__name__)

OnBadImage = Literal["error", "skip"]
Half = Literal["train", "test"]
Part = Literal["train", "val", "test"]  # val: images of the training half that are not trained on
HALVES: tuple[Half, Half] = ("train", "test")
TEST_FOLDERS = ("test", "val", "valid", "validation")  # names of the folder with the test images, by preference


@dataclass(frozen=True)
class Split:
    """The training or the test half of a data set.

    Attributes:
        images: Files, or uint8 pixels (N, H, W) or (N, H, W, 3).
        labels: (N,) int64 stored labels.
        contents: What identifies each image.
    """

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray
    contents: tuple[Content, ...] = ()


class LeftOut(NamedTuple):
    """A file in a data set's folders that is no image of it, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class ImageData:
    """A data set as it is stored.

    Attributes:
        class_names: Names in the order of the stored labels.
        left_out: Files that are in its folders, but not in it.
        test_folder: The folder that the test images were read from; empty if they are not files.
        unused_folders: Other folders that could have been the one of the test images.
        validation: (N,) whether each image of the training half is a validation image; None: none is.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    test_folder: str = ""
    unused_folders: tuple[str, ...] = ()
    validation: np.ndarray | None = None

    @property
    def nb_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def summary(self) -> str:
        """The numbers of classes and images, and the files that were left out, on one line."""
        train, test = len(self.train.labels), len(self.test.labels)
        aside = 0 if self.validation is None else int(self.validation.sum())
        learned = f"{train - aside} training" + (f", {aside} validation" if aside else "")
        size = f"{self.nb_classes} classes, {learned} and {test} test images"
        if self.unused_folders or self.test_folder not in ("", "test"):
            size += f"; test images from {self.test_folder}/"
            size += "".join(f", {name}/ is not used" for name in self.unused_folders)
        files = [*self.train.images, *self.test.images] if self.test_folder else []
        rare = Counter(ending for file in files if (ending := Path(file).suffix.lower()) in NOT_TORCHVISIONS)
        size += "".join(f"; {count} end in {ending}, which torchvision leaves out" for ending, count in rare.items())
        if not self.left_out:
            return size
        reasons = Counter(left.reason for left in self.left_out)
        counted = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        return f"{size}; left out: {counted}: {listed([left.file for left in self.left_out])}"

    def rows(self, half: Half) -> list[tuple[str, Content]]:
        """Return class name and content of every image of a half, in the stored order."""
        split: Split = getattr(self, half)
        names = [self.class_names[label] for label in split.labels]
        return list(zip(names, split.contents, strict=True))

    def part(self, part: Part) -> Split:
        """Return the half of a part; images of it that are in another part have the label -1, which no class has."""
        split = self.test if part == "test" else self.train
        if part == "test" or (self.validation is None and part == "train"):
            return split
        aside = np.zeros(len(split.labels), bool) if self.validation is None else self.validation
        return replace(split, labels=np.where(aside == (part == "val"), split.labels, -1))


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
        if source.reader == "folders":
            data = _checked_files(data, path, on_bad_image)
    except OSError as error:
        raise DataError(f"data set {name}: {error}") from error
    _check_classes(data, path, source)
    _warn_of_contradictions(data, path)
    _warn_of_test_images(data, path)
    logger.info("data set %s in %s: %s", name, path, data.summary)
    return data


def _checked_files(data: ImageData, path: Path, on_bad_image: OnBadImage) -> ImageData:
    """Return the data set with the contents of its files, and without those that cannot be read."""
    contents, bad = of_files([*data.train.images, *data.test.images], path, decode=on_bad_image == "skip")
    if bad and on_bad_image == "error":
        more = [f"and {len(bad) - NAMES_SHOWN} more files"] if len(bad) > NAMES_SHOWN else []
        hint = "repair or remove these files, or set on_bad_image to skip to leave them out"
        raise DataError("\n".join([*list(bad.values())[:NAMES_SHOWN], *more, hint]))
    for problem in bad.values():
        logger.warning("%s; left out", problem)

    def known(split: Split) -> Split:
        kept = [row for row, file in enumerate(split.images) if file in contents]
        files = [split.images[row] for row in kept]
        return Split(files, split.labels[kept], tuple(contents[file] for file in files))

    unreadable = tuple(LeftOut(_below(path, file), "unreadable") for file in bad)
    return replace(data, train=known(data.train), test=known(data.test), left_out=data.left_out + unreadable)


def _check_classes(data: ImageData, path: Path, source: Source) -> None:
    """Refuse a wrong number of classes and classes without training images; warn of classes without test images."""
    if source.nb_classes not in (None, data.nb_classes):
        raise _incomplete(f"{path}: {data.nb_classes} classes instead of {source.nb_classes}", source)
    if untaught := np.setdiff1d(np.arange(data.nb_classes), data.train.labels).tolist():
        names = listed([data.class_names[label] for label in untaught])
        raise _incomplete(f"{path}: no training image of {names}", source)
    if untested := np.setdiff1d(np.arange(data.nb_classes), data.test.labels).tolist():
        logger.warning("%s: no test image of %s", path, listed([data.class_names[label] for label in untested]))


def _warn_of_contradictions(data: ImageData, path: Path) -> None:
    """Warn of images that are stored with the same content in several classes."""
    places: dict[str, dict[str, str]] = defaultdict(dict)  # of each content one image by class
    for half in HALVES:
        for name, content in data.rows(half):
            folder = data.test_folder if half == "test" and data.test_folder else half
            places[content.digest].setdefault(name, f"{folder}/{name}/{content.name}")
    if several := [sorted(images.values()) for images in places.values() if len(images) > 1]:
        first = " and ".join(several[0])
        logger.warning("%s: %d images are in more than one class, the first one as %s", path, len(several), first)


def _warn_of_test_images(data: ImageData, path: Path) -> None:
    """Warn of test images that are training images as well: links, copies."""
    learned = {content.digest: f"train/{name}/{content.name}" for name, content in reversed(data.rows("train"))}
    tested = [(f"test/{name}/{content.name}", content.digest) for name, content in data.rows("test")]
    if both := [(place, learned[digest]) for place, digest in tested if digest in learned]:
        counted = f"{len(both)} of {len(tested)} test images are training images, too"
        logger.warning("%s: %s; the first one, %s, is %s", path, counted, *both[0])


def _read_folders(path: Path, source: Source) -> ImageData:
    left_out: list[LeftOut] = []
    train = _class_folders(path, "train", source, left_out)
    name, *others = _test_folders(path, source)
    test = _class_folders(path, name, source, left_out)
    if train.keys() != test.keys():
        differences = {"train": train.keys() - test.keys(), name: test.keys() - train.keys()}
        only = [f"only in {half}: {listed(sorted(names))}" for half, names in differences.items() if names]
        only += [f"{other}/ is not used, as there is {name}/" for other in others]
        raise _incomplete(f"{path}: train and {name} hold different classes; {'; '.join(only)}", source)
    _refuse_folders_of_classes(train, source)
    images = [_list_images(path, folders.values(), left_out) for folders in (train, test)]
    return ImageData(images[0], images[1], tuple(train), tuple(left_out), name, tuple(others))


def _test_folders(path: Path, source: Source) -> list[str]:
    """Return the names of the folders that can hold the test images; those without a folder in them come last."""
    there = [name for name in TEST_FOLDERS if (path / name).is_dir()]
    if not there:
        raise _missing(path / TEST_FOLDERS[0], source)
    return sorted(there, key=lambda name: not _folders_in(path / name))


def _folders_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _refuse_folders_of_classes(train: Mapping[str, Path], source: Source) -> None:
    """Refuse a single class that holds nothing but folders: these are the classes."""
    if len(train) == 1:
        (folder,) = train.values()
        visible = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
        if visible and all(entry.is_dir() for entry in visible):
            inner = listed(_folders_in(folder))
            reason = f"the only class, and it holds only folders: {inner}; if these are the classes, move them up to"
            raise _incomplete(f"{folder}: {reason} {folder.parent}", source)


def _class_folders(path: Path, half: str, source: Source, left_out: list[LeftOut]) -> dict[str, Path]:
    """Return the folders of the classes by their names, in the order of the names; add the files beside them."""
    folder = path / half
    if not folder.is_dir():
        raise _missing(folder, source)
    folders: dict[str, Path] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: same_name(entry.name)):
        if is_hidden(entry.name):
            continue
        name = writable(same_name(entry.name))
        if name in folders:
            raise DataError(f"{folder}: two folders are named {name}, in different Unicode forms; rename one")
        if entry.is_dir():
            folders[name] = entry
        elif entry.is_symlink() and not entry.exists():
            raise DataError(f"{entry}: a link to {os.readlink(entry)}, which does not exist; expected a class folder")
        else:
            left_out.append(LeftOut(_below(path, entry), "in no class folder"))
    if not folders:
        raise _incomplete(f"{folder}: no folder in it", source)
    return folders


def _list_images(path: Path, folders: Collection[Path], left_out: list[LeftOut]) -> Split:
    files: list[Path] = []
    labels: list[int] = []
    halves = [half.stat() for half in {folder.parent for folder in folders}]
    above = frozenset((half.st_dev, half.st_ino) for half in halves)
    found = ((label, file) for label, folder in enumerate(folders) for file in files_within(folder, above))
    for label, file in progress(found, f"listing {path}", None, first=SOON):
        if file.suffix.lower() in ENDINGS:
            files.append(file)
            labels.append(label)
        elif file.is_symlink() and not file.exists():
            left_out.append(LeftOut(_below(path, file), "broken link"))
        else:
            left_out.append(LeftOut(_below(path, file), f"ending in {writable(file.suffix) or 'nothing'}"))
    return Split(files, np.array(labels, dtype=np.int64))


def _below(path: Path, file: Path) -> str:
    return writable(file.relative_to(path).as_posix())


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
    return ImageData(_of_arrays(train.data, train.targets), _of_arrays(test.data, test.targets), names)


def _read_npz(path: Path, source: Source) -> ImageData:
    if not path.exists():
        raise _missing(path, source)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if len(files) != 1:
        found = listed([file.name for file in files]) or "none"
        raise _incomplete(f"{path}: expected one .npz file in this folder, found {found}", source)
    arrays = read_arrays(files[0])
    train, test = (_of_arrays(arrays[f"x_{half}"], arrays[f"y_{half}"]) for half in ("train", "test"))
    return ImageData(train, test, tuple(map(same_name, arrays["class_names"].tolist())))


def _of_arrays(images: np.ndarray, labels: ArrayLike) -> Split:
    return Split(images, np.array(labels, dtype=np.int64), of_array(images))


def _missing(path: Path, source: Source) -> DataError:
    """Return the error for a missing path, with the content of the last folder that exists."""
    remark = seen_from(path)
    path = path.absolute()
    first = next(part for part in (*reversed(path.parents), path) if not part.is_dir())
    if first.exists():
        return _incomplete(f"{path}: {first} is not a folder", source)
    there = sorted(entry.name for entry in first.parent.iterdir() if not entry.name.startswith("."))
    above = first.parent.resolve().parent
    below = [first.parent / name for name in there if (first.parent / name / first.name).is_dir()]
    near = f"; did you mean the folder above, {above}?" if (above / first.name).is_dir() else ""
    near = near or (f"; did you mean {below[0]}?" if below else did_you_mean(first.name, there))
    found = f"{first.parent} holds {listed(there) or 'nothing'}{near}"
    return _incomplete(f"{path}: not found{remark}; {found}", source)


def _incomplete(problem: str, source: Source) -> DataError:
    also = f"; test may be called {' or '.join(TEST_FOLDERS[1:])}" if source.reader == "folders" else ""
    layout = f"<data_root>/{source.layout}{also}"
    return DataError(f"{problem}\nexpected layout: {layout}\nwhere to get it: {source.origin}")


READERS: dict[str, Callable[[Path, Source], ImageData]] = {
    "folders": _read_folders,
    "cifar100": _read_cifar100,
    "npz": _read_npz,
}
