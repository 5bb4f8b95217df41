"""Images and labels in one .npz file, checked before anything uses them.

Shapes: N images, H height, W width, C classes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy

from utils.errors import DataError
from utils.memory import memory
from utils.text import did_you_mean

SPLITS = ("train", "test")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NAMES = (*ARRAYS, "class_names")
ENDING = ".npy"
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read and check the arrays of a file, without unpickling anything.

    Returns:
        x_train, x_test: uint8 (N, H, W) or (N, H, W, 3). y_train, y_test: whole numbers (N,) in [0, C).
        class_names: text (C,); the labels as text if the file holds none.

    Raises:
        DataError: Names the file, the array and what was expected of it.
    """
    try:
        arrays = _load(path)
        for split in SPLITS:
            _check_images(f"x_{split}", arrays[f"x_{split}"])
            _check_labels(f"y_{split}", arrays[f"y_{split}"], len(arrays[f"x_{split}"]))
        arrays.setdefault("class_names", _numbers(arrays["y_train"]))
        _check_classes(arrays)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__
    return arrays


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with ZipFile(path) as archive:
            stored = [name.removesuffix(ENDING) for name in archive.namelist() if name.endswith(ENDING)]
            _check_names(stored)
            wanted = [name for name in NAMES if name in stored]
            _check_sizes(archive, wanted)
            return {name: _read(archive, name) for name in wanted}
    except DataError:
        raise
    except Exception as error:  # a damaged archive fails in zip, zlib or array headers, each with exceptions of its own
        raise DataError(f"not a readable .npz file: {error}") from error


def _check_names(stored: Sequence[str]) -> None:
    for name in ARRAYS:
        if name not in stored:
            raise DataError(f"no array {name}; it holds {', '.join(stored) or 'nothing'}{did_you_mean(name, stored)}")


def _check_sizes(archive: ZipFile, names: Iterable[str]) -> None:
    """Refuse what a few bytes can claim, before memory is taken for it: sizes that are not there, or a thousandfold."""
    needed = sum(_checked_size(archive, name) for name in names)
    if needed > memory():
        raise DataError(f"its arrays would take {needed:,} bytes, more than the memory here, {memory():,}")


def _checked_size(archive: ZipFile, name: str) -> int:
    """Bytes that an array takes, once its own header and the archive's directory agree about them."""
    with archive.open(name + ENDING) as file:
        shape, _, dtype = HEADERS[npy.read_magic(file)](file)
        held = archive.getinfo(name + ENDING).file_size - file.tell()
    claimed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (claimed != held or min(shape, default=1) < 0 or dtype.itemsize == 0):
        raise DataError(f"{name} says it is {dtype} of shape {shape}, {claimed:,} bytes; stored are {held:,}")
    return held


def _read(archive: ZipFile, name: str) -> np.ndarray:
    with archive.open(name + ENDING) as file:
        array: np.ndarray = npy.read_array(file, allow_pickle=False)
    return array


def _check_images(name: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[3:] not in ((), (3,)) or images.size == 0:
        expected = "uint8 of shape (N, H, W) or (N, H, W, 3), none of them 0"
        raise DataError(f"{name} is {_shown(images)}, expected {expected}")


def _check_labels(name: str, labels: np.ndarray, images: int) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise DataError(f"{name} is {_shown(labels)}, expected whole numbers of shape ({images},), one for each image")


def _check_classes(arrays: Mapping[str, np.ndarray]) -> None:
    names = arrays["class_names"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"class_names is {_shown(names)}, expected text of shape (C,)")
    if not _is_unicode(names):
        raise DataError("class_names holds what is no Unicode text, and could never be written into a log")
    for split in SPLITS:
        low, high = arrays[f"y_{split}"].min(), arrays[f"y_{split}"].max()
        if low < 0 or high >= len(names):
            expected = f"0 to {len(names) - 1}, as there are {len(names)} classes"
            raise DataError(f"y_{split} holds labels from {low} to {high}, expected {expected}")


def _is_unicode(names: np.ndarray) -> bool:
    try:
        return all(name.encode() is not None for name in names.tolist())
    except (UnicodeEncodeError, SystemError):  # half a surrogate pair; a number beyond all characters
        return False


def _numbers(labels: np.ndarray) -> np.ndarray:
    """Names of classes that have none: as many as there are different training labels."""
    return np.arange(len(np.unique(labels))).astype(str)


def _shown(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
