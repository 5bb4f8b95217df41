"""Execute the runs of a sweep, each at most twice, and tell how far it is and which runs failed."""

import heapq
import shutil
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from tools.sweep.failures import Failure
from tools.sweep.launch import Job, Start, stop
from tools.sweep.plan import PlannedRun
from utils.progress import EVERY, duration, on_terminal
from utils.runs.forecast import last_forecast

ATTEMPTS = 2
POLL = 0.2  # seconds from one look at the jobs to the next
TAIL = 15  # lines of the log of a failed run to print
TAIL_BYTES = 2**14
LONGEST_ERROR = 300  # characters


@dataclass
class Attempt:
    """A run that was started. Attempts are counted from 1."""

    run: PlannedRun
    number: int
    log: Path
    job: Job
    started: float = field(default_factory=lambda: time.monotonic())
    _size: int = 0  # of the log when it was last read
    _forecast: tuple[int, float] | None = None  # seconds left, and when that was read

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def seconds_left(self) -> float | None:
        """Return the time left by the last forecast in the run's log; None if there is none."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if size != self._size:
            self._size, left = size, last_forecast("\n".join(self.tail()))
            if left is not None and (self._forecast is None or self._forecast[0] != left):
                self._forecast = left, time.monotonic()
        return None if self._forecast is None else max(0.0, sum(self._forecast) - time.monotonic())

    def tail(self) -> list[str]:
        """Return the last lines of its output."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()

    def failure(self) -> Failure:
        """Return why it failed."""
        lines = [line.strip() for line in self.tail() if line.strip()]
        error = lines[-1][:LONGEST_ERROR] if lines else "it wrote nothing"
        return Failure(self.run.member.name, self.run.seed, self.job.ended(), error, str(self.log))


class Execution:
    """Starts runs as slots become free, until all have ended.

    Args:
        runs: What to run.
        start: Starts a command.
        slots: Commands at a time.
        logs: Folder for the output of the runs: a folder for each, with a file for each attempt.
        kept: How many runs of the sweep have finished before.

    Attributes:
        failed: By the name of the run.
    """

    def __init__(self, runs: Sequence[PlannedRun], start: Start, slots: int, logs: Path, kept: int = 0) -> None:
        self._start, self._slots, self._logs = start, slots, logs
        self._total = kept + len(runs)
        self._waiting = deque((run, 1) for run in runs)
        self._running: dict[int, Attempt] = {}
        self._took: list[float] = []  # seconds of the runs that have finished
        self._told = time.monotonic()
        self.failed: dict[str, Failure] = {}

    def to_end(self) -> None:
        """Execute all runs. If an exception or Ctrl-C ends this early, the runs are stopped too."""
        try:
            with tqdm(bar_format="{desc}", leave=False, disable=not on_terminal()) as line:
                while self._waiting or self._running:
                    self._fill()
                    line.set_description_str(self.status()[: shutil.get_terminal_size().columns - 1])
                    time.sleep(POLL)
                    self._take_ended()
        finally:
            if self._running:
                _say(f"stopping the runs: {len(self._running)}")
                stop([attempt.job for attempt in self._running.values()])

    def _fill(self) -> None:
        for slot in range(self._slots):
            if self._waiting and slot not in self._running:
                run, number = self._waiting.popleft()
                folder = self._logs / run.name  # not a part of the file's name, which could become too long
                folder.mkdir(parents=True, exist_ok=True)
                log = folder / f"attempt{1 + len(list(folder.glob('attempt*.log')))}.log"
                self._running[slot] = Attempt(run, number, log, self._start(run.command(), log, slot))

    def _take_ended(self) -> None:
        ended = {slot: attempt for slot, attempt in self._running.items() if attempt.job.ended()}
        for slot, attempt in ended.items():
            del self._running[slot]
            self._end(attempt, f"{attempt.run.member.name}, seed {attempt.run.seed}")
        over = not (self._waiting or self._running)
        if ended and not on_terminal() and (over or time.monotonic() - self._told >= EVERY):
            self._told = time.monotonic()
            _say(self.status())

    def _end(self, attempt: Attempt, name: str) -> None:
        if attempt.run.finished():
            self._took.append(attempt.seconds)
            return _say(f"finished: {name} in {duration(attempt.seconds)}")
        failure, what = attempt.failure(), "failed"
        if attempt.number < ATTEMPTS:
            self._waiting.append((attempt.run, attempt.number + 1))
            what = "failed, will be tried again"
        else:
            self.failed[attempt.run.name] = failure
        _say("\n".join([f"{what}: {name}: {failure.ended}; the end of {failure.log}:", *_indented(attempt.tail())]))

    def status(self) -> str:
        """Return the number of runs that are done, running, left and failed, and an estimate of the time left."""
        running, left, failed = len(self._running), len(self._waiting), len(self.failed)
        counts = f"{self._total - running - left - failed} of {self._total} runs done, {running} running, {left} left"
        seconds = self._seconds_left()
        estimate = f"; about {duration(seconds)} to go" if seconds and seconds >= 1 else ""
        return counts + (f", {failed} failed" if failed else "") + estimate

    def _seconds_left(self) -> float | None:
        """Return the time until all runs have ended, if the runs that wait take as long as the others on average."""
        forecasts = [(attempt.seconds, attempt.seconds_left()) for attempt in self._running.values()]
        whole = self._took + [passed + left for passed, left in forecasts if left is not None]
        if not whole:
            return None
        mean = sum(whole) / len(whole)
        free = [max(0.0, mean - passed) if left is None else left for passed, left in forecasts]
        free += [0.0] * (self._slots - len(free))
        heapq.heapify(free)
        for _ in self._waiting:
            heapq.heapreplace(free, free[0] + mean)
        return max(free)


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines[-TAIL:]]


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
