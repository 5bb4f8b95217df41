"""Read many image files at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from utils.progress import progress

READERS = 8  # threads; PIL releases the GIL while it decodes

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_all(read: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """Return `read(item)` for all items in order, computed by threads under a progress bar with the text `what`.

    If several items fail, the error of the first one is raised.
    """
    pool = ThreadPoolExecutor(READERS)
    try:
        return list(progress(pool.map(read, items), what, len(items)))
    finally:
        pool.shutdown(cancel_futures=True)  # otherwise Ctrl-C would wait for all files
