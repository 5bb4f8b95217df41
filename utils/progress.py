"""Progress bars on a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(iterable: Iterable[T], what: str, total: int, done: int = 0) -> Iterable[T]:
    """Iterate under a progress bar on a terminal, and silently elsewhere.

    Args:
        iterable: Left open when the loop is left early.
        what: Text before the bar.
        total: Steps in all.
        done: Steps made before this loop.
    """
    if not sys.stderr.isatty():
        return iterable  # a disabled tqdm would not do: it closes the generator under a loop that is left early
    return _with_bar(iterable, tqdm(desc=what, total=total, initial=done, leave=False, dynamic_ncols=True))


def _with_bar(iterable: Iterable[T], bar: tqdm) -> Iterator[T]:
    with bar:
        for step in iterable:
            yield step
            bar.update()
