"""Read many image files at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from utils.errors import DataError
from utils.progress import SOON, progress
from utils.text import writable

READERS = 8  # threads; PIL releases the GIL while it decodes

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_all(read: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """Return `read(item)` for all items in order, computed by threads under a progress bar with the text `what`.

    If several items fail, the error of the first one is raised.
    """
    pool = ThreadPoolExecutor(READERS)
    try:
        return list(progress(pool.map(read, items), what, len(items), first=SOON))
    finally:
        pool.shutdown(cancel_futures=True)  # otherwise Ctrl-C would wait for all files


def unreadable(files: Sequence[Path], read: Callable[[Path], object]) -> dict[Path, str]:
    """Return the files for which `read` raises DataError, in order, with the messages."""

    def problem(file: Path) -> str:
        try:
            read(file)
        except DataError as error:
            return writable(str(error))
        return ""

    problems = read_all(problem, files, "checking images")
    return {file: text for file, text in zip(files, problems, strict=True) if text}
