"""When a run saves its state, and how it ends when the process is asked to stop."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from utils.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the process was asked to stop.

    Attributes:
        signal: The signal that asked; None so far.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._ending = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            _say(f"{self.signal.name}: stopping at the next step; once more stops at once")
        elif not self._ending:
            self._ending = True
            _say(f"{signal.Signals(number).name} again: ended at once; what was saved is still there")
            _end_at_once(128 + number)


def _say(text: str) -> None:
    """Write a line on the console, past every buffer: a handler may come while the log is being written."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _end_at_once(code: int) -> NoReturn:
    """End as a killed process does, after which a run can go on; an exception might wait for a worker that hangs."""
    try:
        for child in multiprocessing.active_children():  # which would complain of it on the console
            child.kill()
    finally:
        os._exit(code)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of Ctrl-C and SIGTERM instead of ending at once; outside the main thread, which gets none, nothing.

    After a first one the process is to end, so that to the second, whenever it comes, the answer stays the same.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items() if request.signal is None else ():
            signal.signal(number, handler)


class StateKeeper:
    """Saves a run's state where the configuration says, and where the process was asked to stop, which it then does.

    What a run does between two points where it can be saved is either a training step or a scanned batch, which change
    it, or something that a run that goes on does anew, such as an evaluation.

    Args:
        every: The key checkpoint_every.
        save: Saves the state.
        request: Whether the process was asked to stop.
        how_to_go_on: For the message to whoever asked.
    """

    def __init__(self, every: int, save: Callable[[], None], request: StopRequest, how_to_go_on: str) -> None:
        self._every, self._save, self._request, self._how = every, save, request, how_to_go_on
        self._epochs = 0
        self._saved = False  # whether what is on disk is what there is

    def __call__(self, point: str) -> None:
        """Note that the run is at a point; see `models.base.Keeper`, whose points these are, with "task" after a task.

        Raises:
            StoppedError: The process was asked to stop, and the state is saved.
        """
        self._epochs += point == "epoch"
        asked = self._request.signal
        if point != "wait":
            self._saved = point != "last step" and (self._is_due(point) or asked is not None)
            if self._saved:
                self._save()
        if asked is not None and self._saved:
            raise StoppedError(asked, f"stopped by {asked.name}, nothing is lost; {self._how}")

    def _is_due(self, point: str) -> bool:
        if point == "epoch":
            return self._every > 0 and self._epochs % self._every == 0
        return point == "task" or (point == "stage" and self._every > 0)
