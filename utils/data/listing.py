"""Find the image files that a user names. Imports no torch, so that a wrong path is reported at once."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from utils.errors import DataError
from utils.text import did_you_mean, writable

logger = logging.getLogger(__name__)

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision
NAMES_SHOWN = 5  # names in a message before "and n more"


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files that are named, whatever their endings, and the images in folders that are named and below them.

    Links are followed, hidden files and folders left out. Files of a folder without the ending of an image are counted
    in a warning.

    Raises:
        DataError: A path does not exist or cannot be read, or a folder holds no image.
    """
    return [file for path in paths for file in _images_at(Path(path))]


def _images_at(path: Path) -> list[Path]:
    try:
        if not path.exists():
            near = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
            raise DataError(writable(f"{path}: no such file or folder{did_you_mean(path.name, near)}"))
        if not path.is_dir():
            return [path]
        files = list(_files_in(path))
    except OSError as error:
        raise DataError(writable(f"{path}: cannot be read: {error.strerror}")) from error
    images = [file for file in files if file.suffix.lower() in ENDINGS]
    others = [str(file.relative_to(path)) for file in files if file.suffix.lower() not in ENDINGS]
    more = f" and {len(others) - NAMES_SHOWN} more" if len(others) > NAMES_SHOWN else ""
    listed = ", ".join(others[:NAMES_SHOWN]) + more
    if not images:
        expected = f"expected files with the endings {', '.join(ENDINGS)}"
        raise DataError(writable(f"{path}: no image in it; {expected}; found {listed or 'no file'}"))
    if others:
        logger.warning("%s", writable(f"{path}: files without the ending of an image left out: {listed}"))
    return images


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those below it in the order of their names; each folder once."""
    seen: set[str] = set()
    for where, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link into a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if not name.startswith("."))


def _raise(error: OSError) -> NoReturn:
    raise error
