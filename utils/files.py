"""Write files completely or not at all, and convert values to strict JSON."""

import errno
import fcntl
import json
import logging
import math
import os
import re
from argparse import ArgumentTypeError
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

NOT_SUPPORTED = {  # what file systems answer that cannot flush folders or lock files
    getattr(errno, name)
    for name in ("EACCES", "EBADF", "EINVAL", "EISDIR", "ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EPERM")
}
UNSYNCED = "cannot be flushed to the disk here; after a power failure the newest files can be missing or older ones"
UNLOCKED = "cannot be locked here; a second process that uses it at the same time is not noticed, so start only one"
_warned: set[tuple[str, int]] = set()


def expanded(path: str) -> str:
    """Return a path with the home directory for `~` and the values of environment variables, as a shell does.

    A file whose name has such characters is found if it exists as it is written.

    Raises:
        ValueError: A variable is not set, or there is no home directory.
    """
    at_home = os.path.expanduser(path)
    full = os.path.expandvars(at_home)
    unset = re.search(r"\$([A-Za-z_]\w*|\{\w+\})", full)
    if unset and os.path.lexists(at_home):
        return at_home
    if unset:
        raise ValueError(f"the environment variable {unset[1].strip('{}')} is not set; write the whole path")
    if full.startswith("~") and not os.path.lexists(full):
        raise ValueError(f"there is no home directory {full.split('/')[0]}; write the whole path")
    return full


def seen_from(path: str | Path) -> str:
    """Return a remark for messages on a missing file, empty for an absolute path."""
    return "" if os.path.isabs(path) else f" (a relative path starts at the working directory, {Path.cwd()})"


def existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(part for part in (path.absolute(), *path.absolute().parents) if os.path.exists(part))


def can_write(folder: Path) -> bool:
    """Return whether this user may make files in a folder, or make the folder."""
    return os.access(existing(folder), os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def path_argument(text: str) -> Path:
    """Return the path that an argument of a command names, see `expanded`; for the `type` of argparse."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise ArgumentTypeError(f"{text}: {error}") from None


def atomic_write(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step; create its folder if necessary.

    The bytes are written to a hidden file beside it and flushed to the disk before the file is renamed. A reader finds
    the old or the new content, even after a power failure.

    Raises:
        OSError: The file cannot be written; `path` is unchanged.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number separates two writers of one file; mkstemp would make the file readable only by its owner.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            with if_supported(path, UNSYNCED):
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with if_supported(path.parent, UNSYNCED):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name, too
        finally:
            os.close(descriptor)


def lock(file: IO[bytes], path: Path) -> None:
    """Lock an open file for this process, or warn where files cannot be locked. The lock ends with the process.

    Unlike with flock, child processes do not inherit the lock; but closing the file anywhere in this process ends it.

    Raises:
        BlockingIOError: Another process has locked it.
        OSError: An error of the disk.
    """
    with if_supported(path, UNLOCKED):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EACCES:  # some systems say so
                raise BlockingIOError(errno.EAGAIN, error.strerror) from None
            raise


@contextmanager
def if_supported(path: Path, lost: str) -> Iterator[None]:
    """Let network mounts and the like lack an operation: warn of what is `lost`, once for each file system.

    Raises:
        OSError: The disk is full or broken.
    """
    try:
        with naming(path):
            yield
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        where = (lost, os.stat(path.parent).st_dev)
        if where not in _warned:
            _warned.add(where)
            logger.warning("%s: %s (%s)", path, lost, error.strerror)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError without one, as the system does not name a file when a write fails."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def read_text(path: Path, most_bytes: int, errors: str = "strict") -> str:
    """Read UTF-8 text without its byte order mark.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has more than `most_bytes`, or is not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"larger than {most_bytes:,} bytes")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        wide = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        found = "is UTF-16" if wide else f"is not UTF-8 (byte {error.start})"
        raise ValueError(f"its text {found}; save it as UTF-8") from None


def plain(value: Any) -> Any:
    """Convert to strict JSON: tensors and arrays to lists, NaN and infinities to None."""
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and torch, without importing either
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def json_line(values: Mapping[str, Any]) -> str:
    """Return one line of JSON, or raise TypeError if a value cannot be JSON."""
    return json.dumps(plain(values), allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented JSON atomically; raise OSError as `atomic_write`, or TypeError if a value cannot be JSON."""
    text = json.dumps(plain(values), allow_nan=False, ensure_ascii=False, indent=2)
    atomic_write(path, f"{text}\n".encode())
