"""The time of training alone, without evaluations, telemetry and saving."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


def _nothing() -> None:
    pass


@dataclass
class Stopwatch:
    """Counts the seconds within `running`, but not those within `paused` inside it.

    Attributes:
        seconds: Those of the blocks that have ended, or that `restore` set.
        settle: Called before the time is taken: waits for a device that works on its own.
    """

    seconds: float = 0.0
    settle: Callable[[], object] = _nothing
    _since: float | None = None  # None while it does not run

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block."""
        with self._set(True):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of a block; outside of `running` this has no effect."""
        with self._set(False):
            yield

    def take(self) -> float:
        """Return the seconds so far, and begin again at 0."""
        taken, self.seconds = self.seconds, 0.0
        return taken

    @contextmanager
    def _set(self, runs: bool) -> Iterator[None]:
        before = self._since is not None
        self._turn(runs)
        try:
            yield
        finally:
            self._turn(before)

    def _turn(self, runs: bool) -> None:
        if runs == (self._since is not None):
            return
        self.settle()
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if runs else None
