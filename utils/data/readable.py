"""Image files read many at a time, and which of a data set cannot be, found out before anything is trained."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from utils.data.images import check_header
from utils.errors import DataError
from utils.progress import progress
from utils.text import writable

SHOWN = 8  # files that a message names before it says how many more there are
READERS = 8  # threads; PIL decodes without holding Python's lock

Item = TypeVar("Item")
Result = TypeVar("Result")


def unreadable(files: Sequence[Path], read: Callable[[Path], object]) -> dict[Path, str]:
    """The files that cannot be read, in their order, with what is wrong with each.

    Args:
        files: What to look at.
        read: `check_header` for a look at the first bytes, `open_image` to decode every pixel.
    """
    problems = read_all(partial(_problem, read), files, "checking images")
    return {file: problem for file, problem in zip(files, problems, strict=True) if problem}


def read_all(read: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """What `read` makes of every item, in their order, made by several threads which end with this call.

    Args:
        read: May raise; the error of the first item in their order is the one that ends it.
        items: What to read.
        what: Text before the progress bar.
    """
    pool = ThreadPoolExecutor(READERS)
    try:
        return list(progress(pool.map(read, items), what, len(items)))
    finally:
        pool.shutdown(cancel_futures=True)  # or an interrupt would have to wait for the whole data set


def refuse_unreadable(files: Sequence[Path]) -> None:
    """Look at the first bytes of all files.

    Raises:
        DataError: Some are no images; the message names them, a line for each.
    """
    if bad := list(unreadable(files, check_header).values()):
        more = [f"and {len(bad) - SHOWN} more files"] if len(bad) > SHOWN else []
        hint = "mend or remove them, or let on_bad_image be skip, which leaves out what cannot be read"
        raise DataError("\n".join([*bad[:SHOWN], *more, hint]))


def _problem(read: Callable[[Path], object], file: Path) -> str:
    """What is wrong with a file, which the text names; empty if nothing is."""
    try:
        read(file)
    except DataError as error:
        return writable(str(error))
    return ""
