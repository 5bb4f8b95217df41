"""Images and labels in one .npz file, checked when it is read.

Shapes: N images, H height, W width, C classes.
"""

import math
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy

from utils.data.images import LONGEST
from utils.errors import DataError
from utils.memory import memory
from utils.text import did_you_mean

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NAMES = (*ARRAYS, "class_names")
ENDING = ".npy"
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file without unpickling anything.

    Returns:
        x_train, x_test: uint8 (N, H, W) or (N, H, W, 3). y_train, y_test: integers (N,) in [0, C).
        class_names: text (C,); "0", "1", ... if the file has none.

    Raises:
        DataError: The file is damaged, or an array is missing or not as expected.
    """
    try:
        with ZipFile(path) as archive:
            arrays = _load(archive)
        _check(arrays)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # zip, zlib and numpy raise many kinds of errors on damaged files
        raise DataError(f"{path}: not a readable .npz file: {error}") from error
    return arrays


def _load(archive: ZipFile) -> dict[str, np.ndarray]:
    stored = [name.removesuffix(ENDING) for name in archive.namelist() if name.endswith(ENDING)]
    for name in ARRAYS:
        if name not in stored:
            found = ", ".join(stored) or "nothing"
            raise DataError(f"no array {name}; it holds {found}{did_you_mean(name, stored)}")
    wanted = [name for name in NAMES if name in stored]
    needed = sum(_checked_size(archive, name) for name in wanted)
    if needed > memory():
        raise DataError(f"its arrays would take {needed:,} bytes, more than the {memory():,} of this machine's memory")
    arrays: dict[str, np.ndarray] = {}
    for name in wanted:
        with archive.open(name + ENDING) as file:
            arrays[name] = npy.read_array(file, allow_pickle=False)
    return arrays


def _checked_size(archive: ZipFile, name: str) -> int:
    """Return the bytes of an array, after checking its own header against the size in the archive."""
    with archive.open(name + ENDING) as file:
        shape, _, dtype = HEADERS[npy.read_magic(file)](file)
        held = archive.getinfo(name + ENDING).file_size - file.tell()
    if dtype.hasobject:
        expected = "integers" if name in ARRAYS else "text, such as class_names.astype(str)"
        raise DataError(f"{name} holds Python objects, expected {expected}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != held or min(shape, default=1) < 0 or dtype.itemsize == 0:
        raise DataError(f"{name} says it is {dtype} of shape {shape}, {claimed:,} bytes; stored are {held:,}")
    return held


def _check(arrays: dict[str, np.ndarray]) -> None:
    for name in ARRAYS:
        array, split = arrays[name], name[2:]
        if name.startswith("x"):
            bad = array.dtype != np.uint8 or array.ndim < 3 or array.shape[3:] not in ((), (3,)) or array.size == 0
            expected = "uint8 of shape (N, H, W) or (N, H, W, 3), none of them 0"
        else:
            images = len(arrays[f"x_{split}"])
            bad = array.dtype.kind not in "iu" or array.shape != (images,)
            expected = f"integers of shape ({images},), one for each image"
        if bad:
            raise _unexpected(name, array, expected)
        if name.startswith("x") and max(array.shape[1:3]) > LONGEST * min(array.shape[1:3]):
            raise _unexpected(name, array, f"images with sides of a ratio up to {LONGEST}")
    names = arrays.setdefault("class_names", np.arange(len(np.unique(arrays["y_train"]))).astype(str))
    if names.dtype.kind != "U" or names.ndim != 1:
        raise _unexpected("class_names", names, "text of shape (C,)")
    try:
        "".join(names.tolist()).encode()
    except (UnicodeEncodeError, SystemError):  # half a surrogate pair, or a number beyond all characters
        raise DataError("class_names holds text that is not valid Unicode") from None
    if len(set(names.tolist())) < len(names):
        raise DataError("class_names holds a name twice; expected a name of its own for each class")
    for name in ("y_train", "y_test"):
        low, high = arrays[name].min(), arrays[name].max()
        if low < 0 or high >= len(names):
            expected = f"0 to {len(names) - 1}, as there are {len(names)} classes"
            raise DataError(f"{name} holds labels from {low} to {high}, expected {expected}")


def _unexpected(name: str, array: np.ndarray, expected: str) -> DataError:
    return DataError(f"{name} is {array.dtype} of shape {array.shape}, expected {expected}")
