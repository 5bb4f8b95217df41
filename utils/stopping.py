"""When a run saves its state, and how it ends when the process is asked to stop."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from utils.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PARENT = "SEMA_PARENT"  # environment variable: the process number of a sweep, for its runs
LOOK = 1.0  # seconds from one look at the parent process to the next
PATIENCE = 8.0  # seconds for a run to save its state when its sweep has ended


class StopRequest:
    """Whether the process was asked to stop.

    Attributes:
        signal: The first signal; None: none so far.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._ending = False

    def _note(self, number: int, _: FrameType | None) -> None:
        """Handle a signal. A second one ends the process at once, as an exception might wait for a hanging worker."""
        if self.signal is None:
            self.signal = signal.Signals(number)
            _say(f"{self.signal.name}: stopping at the next step; once more stops at once")
        elif not self._ending:
            self._ending = True
            _say(f"{signal.Signals(number).name} again: ended at once; what was saved is still there")
            _end(number)


def _end(number: int) -> NoReturn:
    try:
        for child in multiprocessing.active_children():  # they would print an error otherwise
            child.kill()
    finally:
        os._exit(128 + number)


def _say(text: str) -> None:
    """Write to stderr without Python's buffers, which may be in use when a signal arrives."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def follow(parent: int, end: Callable[[], object]) -> None:
    """Call a function, in a thread, when the parent of this process has ended, even by SIGKILL.

    Args:
        parent: Its process number.
        end: Ends this process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        end()

    threading.Thread(target=watch, name="follows its parent", daemon=True).start()


def stop_with_sweep() -> None:
    """Let a run that a sweep started save its state and stop when the sweep has ended without asking for it."""
    if parent := os.environ.pop(PARENT, None):
        follow(int(parent), _stop)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    _end(signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note Ctrl-C and SIGTERM instead of ending at once; outside the main thread, which gets no signals, do nothing.

    After a first signal the handlers stay, so that a second one ends the process whenever it comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._note) for number in SIGNALS}
    try:
        yield request
    finally:
        if request.signal is None:
            for number, handler in before.items():
                signal.signal(number, handler)


class StateKeeper:
    """Saves a run's state as configured, and when the process is asked to stop.

    Args:
        every: The key checkpoint_every.
        save: Saves the state.
        request: Whether the process was asked to stop.
        how_to_go_on: How to continue the run, for the message when it stops.
    """

    def __init__(self, every: int, save: Callable[[], None], request: StopRequest, how_to_go_on: str) -> None:
        self._every, self._save, self._request, self._how = every, save, request, how_to_go_on
        self._epochs = 0
        self._saved = False  # whether nothing has changed since the state was saved

    def __call__(self, point: str) -> None:
        """Note that the run has reached a point: "task" after a task, or one of `models.protocol.Keeper`.

        At "wait" the state is that of the previous point, as in an evaluation, which a continued run repeats.

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
            raise StoppedError(asked, f"stopped by {asked.name}, the state is saved; {self._how}")

    def _is_due(self, point: str) -> bool:
        if point == "epoch":
            return self._every > 0 and self._epochs % self._every == 0
        return point == "task" or (point == "stage" and self._every > 0)
