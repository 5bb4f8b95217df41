"""The share of a run that is done, and an estimate of the time left."""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence

from utils.progress import EVERY, duration, seconds_of
from utils.runs.events import Epoch, Event, Task

logger = logging.getLogger(__name__)

LINE = "{:.0f} % of the run is done, about {} left"
LINE_READ = re.compile(r"\d+ % of the run is done, about (.+) left")


class Forecast:
    """Estimates the time left from the time taken: a task counts by its training images, an epoch as a share of it.

    A task with more than one cycle takes longer than that, and one without an rd phase is shorter.

    Args:
        images: Training images of every task.
        epochs: Epochs of a func and of an rd phase, by their names.
        seconds: Returns the time that the run has taken so far.
        tasks: Number of tasks that are done.
    """

    def __init__(
        self, images: Sequence[int], epochs: Mapping[str, int], seconds: Callable[[], float], tasks: int = 0
    ) -> None:
        self._images, self._epochs, self._seconds = images, epochs, seconds
        self._done = float(sum(images[:tasks]))
        self._said = time.monotonic()

    def note(self, event: Event) -> None:
        """Take notice of an event; log the time left after every task, and once a minute after an epoch."""
        if isinstance(event, Epoch):
            before = self._epochs["func"] if event.phase == "rd" else 0
            share = (before + event.epoch + 1) / sum(self._epochs.values())
            self._done = sum(self._images[: event.task]) + share * self._images[event.task]
        elif isinstance(event, Task):
            self._done = float(sum(self._images[: event.task + 1]))
        due = isinstance(event, Task) or time.monotonic() - self._said >= EVERY
        if due and 0 < self._done < sum(self._images):
            self.say()

    def say(self) -> None:
        """Log the share that is done and the time left, if anything is done."""
        if left := self.left():
            self._said = time.monotonic()
            logger.info("%s", LINE.format(100 * self._done / sum(self._images), left))

    def left(self) -> str:
        """Return the time left, such as `12 min 5 s`; empty if nothing is done."""
        if not self._done:
            return ""
        return duration(self._seconds() * (sum(self._images) / self._done - 1))


def last_forecast(log: str) -> int | None:
    """Return the seconds left by the last line of `Forecast.say` in a log; None if there is none."""
    found = LINE_READ.findall(log)
    return seconds_of(found[-1]) if found else None
