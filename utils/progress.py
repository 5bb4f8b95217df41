"""Progress bars on a terminal."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(iterable: Iterable[T], what: str, total: int, done: int = 0) -> Iterable[T]:
    """Iterate, on a terminal with a bar that has the text `what` and begins at step `done` of `total`."""
    if not (sys.stderr and sys.stderr.isatty()) or os.environ.get("TERM") == "dumb":
        return iterable  # even a disabled tqdm would close a generator when the loop ends early
    return _with_bar(iterable, tqdm(desc=what, total=total, initial=done, leave=False, dynamic_ncols=True))


def _with_bar(iterable: Iterable[T], bar: tqdm) -> Iterator[T]:
    with bar:
        for step in iterable:
            yield step
            bar.update()
