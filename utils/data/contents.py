"""What identifies an image wherever it lies: its name, size and a hash of its content.

The hashes of files are kept in a cache folder, and used again while a file has the same size and times. The folder is
SEMA_CACHE, or nested-sema in XDG_CACHE_HOME or ~/.cache.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.data.images import check_header, open_image
from utils.data.readable import read_all
from utils.errors import DataError
from utils.files import atomic_write
from utils.text import same_name, writable

RECENT = 2.0  # seconds; a file that is younger could be changed without a change of its times
Stamp = list[int]  # size in bytes, times of the last change of content and of attributes in nanoseconds


class Content(NamedTuple):
    """An image as it is compared.

    Attributes:
        name: Path below the folder of its class; for an array its row.
        size: Bytes of the file, or of the pixels.
        digest: Hash of the file or of the pixels, 16 hexadecimal digits of BLAKE2b.
    """

    name: str
    size: int
    digest: str


def of_array(images: np.ndarray) -> tuple[Content, ...]:
    """Return the contents of images in an array, (N, ...)."""
    rows = np.ascontiguousarray(images)
    return tuple(Content(str(row), pixels.nbytes, _hash(pixels.data)) for row, pixels in enumerate(rows))


def of_files(files: Sequence[Path], root: Path, decode: bool) -> tuple[dict[Path, Content], dict[Path, str]]:
    """Check and hash image files.

    Args:
        files: Files below `root`.
        root: Folder of the data set.
        decode: Whether to decode the images; otherwise only their headers are checked.

    Returns:
        The content of every file that is an image, by the path below `root`, and what is wrong with the others.
    """
    cache = _cache_file(root)
    known = _read_cache(cache)

    def look(file: Path) -> tuple[Stamp, str, int] | str:
        try:
            (stamp, kept) = _stamp(file), known.get(str(file.relative_to(root)))
            if kept and kept[0] == stamp and kept[2] >= decode:
                return stamp, kept[1], kept[2]
            open_image(file) if decode else check_header(file)
            return stamp, _hash(file.read_bytes()), int(decode)
        except OSError as error:
            return writable(f"{file}: not a readable image: {error}")
        except DataError as error:
            return writable(str(error))

    found = dict(zip(files, read_all(look, files, "checking images"), strict=True))
    good = {file: entry for file, entry in found.items() if not isinstance(entry, str)}
    _write_cache(cache, known, {str(file.relative_to(root)): entry for file, entry in good.items()})
    contents = {file: Content(_name(file, root), stamp[0], digest) for file, (stamp, digest, _) in good.items()}
    return contents, {file: entry for file, entry in found.items() if isinstance(entry, str)}


def _name(file: Path, root: Path) -> str:
    return writable(same_name("/".join(file.relative_to(root).parts[2:])))  # below <half>/<class>


def _hash(content: bytes | memoryview) -> str:
    return blake2b(content, digest_size=8).hexdigest()


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _cache_file(root: Path) -> Path | None:
    own, shared = os.environ.get("SEMA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(own) if own else Path(shared or Path.home() / ".cache") / "nested-sema"
    except RuntimeError:  # there is no home directory
        return None
    return folder / f"images-{_hash(os.fsencode(root.absolute()))}.json"


def _read_cache(file: Path | None) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        kept = json.loads(file.read_bytes()) if file else {}
        if isinstance(kept, dict) and all(map(_is_entry, kept.values())):
            return kept
    return {}


def _is_entry(entry: object) -> bool:
    match entry:
        case [[int(), int(), int()], str(), int()]:
            return True
    return False


def _write_cache(file: Path | None, known: dict[str, Any], entries: dict[str, tuple[Stamp, str, int]]) -> None:
    old = (time.time() - RECENT) * 1e9
    kept = {name: list(entry) for name, entry in entries.items() if max(entry[0][1:]) < old}
    if file and kept != known:
        with suppress(OSError):  # a read-only home directory
            atomic_write(file, json.dumps(kept).encode())
