"""How far a long command is: a bar on a terminal, elsewhere a line now and then."""

import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")
EVERY = 60.0  # seconds from one line to the next
SOON = 3.0  # seconds to the first line where nothing else tells that the command works
UNITS = {"h": 3600, "min": 60, "s": 1}


def progress(iterable: Iterable[T], what: str, total: int | None, done: int = 0, first: float = EVERY) -> Iterable[T]:
    """Iterate, and tell with the text `what` how far it is; begins at step `done` of `total` (None: not known).

    A terminal shows a bar. Elsewhere a line with an estimate of the time left appears after `first` seconds, and then
    once a minute.
    """
    if on_terminal():
        return _with_bar(iterable, tqdm(desc=what, total=total, initial=done, leave=False, dynamic_ncols=True))
    return _with_lines(iterable, what, total, done, first)


def on_terminal() -> bool:
    """Return whether standard error is a terminal that can show a bar."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _with_bar(iterable: Iterable[T], bar: tqdm) -> Iterator[T]:
    with bar:
        for step in iterable:
            yield step
            bar.update()


def _with_lines(iterable: Iterable[T], what: str, total: int | None, done: int, first: float) -> Iterator[T]:
    begun = time.monotonic()
    due = begun + first
    for number, step in enumerate(iterable, done + 1):
        yield step
        now = time.monotonic()
        if now < due or number == total:
            continue
        due = now + EVERY
        if total is None:
            _say(f"{what}: {number:,} so far")
        else:
            left = (now - begun) * (total - number) / (number - done)
            _say(f"{what}: {number} of {total}, about {duration(left)} left")


def _say(line: str) -> None:
    """Log a line, or print it if nothing takes the log, as before a run has a directory."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", line)
    elif sys.stderr is not None:
        print(line, file=sys.stderr)


def duration(seconds: float) -> str:
    """Return a time with its two largest units, such as `3 h 20 min`."""
    rest, parts = max(0, round(seconds)), list[str]()
    for unit, size in UNITS.items():
        count, rest = divmod(rest, size)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ") or part == parts[0])


def seconds_of(text: str) -> int:
    """Return the seconds of a text of `duration`."""
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(rf"(\d+) ({'|'.join(UNITS)})\b", text))
