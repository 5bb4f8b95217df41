"""Find the image files that a user names. Imports no torch, so that a wrong path is reported at once."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.errors import DataError
from utils.files import seen_from
from utils.text import did_you_mean, listed, same_name, writable

logger = logging.getLogger(__name__)

NOT_TORCHVISIONS = (".jfif", ".jpe")  # of JPEG files, too
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", *NOT_TORCHVISIONS)
# Folders that systems make by themselves: thumbnails of a Synology, leavings of macOS archives, bins, a disk's own.
SYSTEM_FOLDERS = {"@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle", "System Volume Information", "lost+found"}


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
            raise DataError(writable(f"{path}: no such file or folder{seen_from(path)}{did_you_mean(path.name, near)}"))
        if not path.is_dir():
            return [path]
        files = list(files_within(path))
    except OSError as error:
        raise DataError(writable(f"{path}: cannot be read: {error.strerror}")) from error
    images = [file for file in files if file.suffix.lower() in ENDINGS]
    others = [str(file.relative_to(path)) for file in files if file.suffix.lower() not in ENDINGS]
    if not images:
        expected = f"expected files with the endings {', '.join(ENDINGS)}"
        raise DataError(writable(f"{path}: no image in it; {expected}; found {listed(others) or 'no file'}"))
    if others:
        logger.warning("%s", writable(f"{path}: files without the ending of an image left out: {listed(others)}"))
    return images


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is of a system and not of its user."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def files_within(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the files in a folder and below it in the order of their names, as torchvision's ImageFolder does.

    Hidden files and folders are left out, and links to a folder in `above` (device and inode) are not followed.
    """
    found = folder.stat()
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
    for entry in sorted(visible, key=lambda entry: same_name(entry.name)):
        if entry.is_dir():
            yield from files_within(folder / entry.name, above | {here})
        else:
            yield folder / entry.name
