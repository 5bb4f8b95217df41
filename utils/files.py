"""Files that are there whole or not at all, and the JSON that goes into them."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def atomic_write(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step, making its folder if need be.

    The bytes go to a hidden file beside it, are flushed to the disk, and take its name only then: whoever reads `path`,
    even after a power cut, finds the old content or the new.

    Raises:
        OSError: The disk is full, the folder cannot be written to; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number keeps two writers of one file apart; no mkstemp, whose files only their owner can read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error say which file it is about: when a write fails, the system does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def read_text(path: Path, most_bytes: int, errors: str = "strict") -> str:
    """The text of a file, a byte order mark left out.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than `most_bytes`, of which no more are read, or no UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"larger than {most_bytes:,} bytes")
    return content.decode("utf-8-sig", errors)


def _sync_folder(folder: Path) -> None:
    """Make the new name as lasting as the bytes, where folders can be opened (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any) -> Any:
    """The value as strict JSON can hold it: tensors and arrays as lists, NaN and infinities as None."""
    if hasattr(value, "tolist"):  # numpy's and torch's arrays and scalars, without importing either
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def json_line(values: Mapping[str, Any]) -> str:
    """One line of JSON, with its line end.

    Raises:
        TypeError: A value is nothing JSON knows.
    """
    return json.dumps(plain(values), allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an indented JSON file atomically.

    Raises:
        OSError: As `atomic_write`.
        TypeError: A value is nothing JSON knows.
    """
    text = json.dumps(plain(values), allow_nan=False, ensure_ascii=False, indent=2)
    atomic_write(path, f"{text}\n".encode())
