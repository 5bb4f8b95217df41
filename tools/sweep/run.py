"""Runs until all are finished or have failed twice, with a line for each end and an estimate of the time left."""

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from tools.sweep.launch import Job, Start, stop
from tools.sweep.plan import PlannedRun
from utils.json_file import read_object
from utils.runs.directory import RESULTS

ATTEMPTS = 2
POLL = 0.2  # seconds between two looks at the jobs
TAIL = 15  # lines of a failed run's log that are shown


@dataclass
class Attempt:
    """A run that was started; attempts are counted from 1."""

    run: PlannedRun
    job: Job
    log: Path
    number: int
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def tail(self) -> str:
        """How it ended, and the last lines it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"{self.job.ended()}; the end of {self.log}:", *(f"    {line}" for line in lines[-TAIL:])])


class Execution:
    """Works off runs.

    Args:
        runs: What to run.
        start: Starts a command.
        slots: Commands at a time.
        logs: Folder of what the runs print.
        kept: Directories of runs that had finished before; their times serve until one of these runs has finished.

    Attributes:
        failed: The last attempts of runs that failed as often as they may.
    """

    def __init__(
        self, runs: Sequence[PlannedRun], start: Start, slots: int, logs: Path, kept: Sequence[Path] = ()
    ) -> None:
        self._start, self._slots, self._logs = start, slots, logs
        self._waiting = deque((run, 1) for run in runs)
        self._running: dict[int, Attempt] = {}
        self._done, self._total = len(kept), len(kept) + len(runs)
        self._kept, self._seconds = [seconds for path in kept for seconds in _seconds(path)], list[float]()
        self.failed: list[Attempt] = []

    def to_end(self) -> None:
        """Start what waits as slots fall free, until nothing is left; whatever ends this early stops the runs too."""
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            with tqdm(bar_format="{desc}", leave=False, disable=not sys.stderr.isatty()) as line:
                while self._waiting or self._running:
                    self._fill()
                    line.set_description_str(self.status())
                    time.sleep(POLL)
                    self._collect()
        finally:
            if self._running:
                _say(f"stopping {len(self._running)} runs")
                stop([attempt.job for attempt in self._running.values()])

    def _fill(self) -> None:
        for slot in range(self._slots):
            if self._waiting and slot not in self._running:
                run, number = self._waiting.popleft()
                log = self._logs / f"{run.name}-attempt{number}.log"
                self._running[slot] = Attempt(run, self._start(run.command(), log, slot), log, number)

    def _collect(self) -> None:
        for slot, attempt in list(self._running.items()):
            if attempt.job.ended():
                del self._running[slot]
                self._note_end(attempt, f"{attempt.run.member.name}, seed {attempt.run.seed}")

    def _note_end(self, attempt: Attempt, name: str) -> None:
        if attempt.run.finished():
            self._done += 1
            self._seconds.append(attempt.seconds)
            _say(f"finished: {name} in {attempt.seconds:.0f} s; {self.status()}")
        elif attempt.number < ATTEMPTS:
            self._waiting.append((attempt.run, attempt.number + 1))
            _say(f"failed, to be tried again: {name}: {attempt.tail()}")
        else:
            self.failed.append(attempt)
            _say(f"failed: {name}: {attempt.tail()}")

    def status(self) -> str:
        """How many runs are done, running and waiting, and how long they will take."""
        text = f"{self._done} of {self._total} runs done, {len(self._running)} running, {len(self._waiting)} waiting"
        if not (self._waiting or self._running):
            return text
        known = self._seconds or self._kept  # those kept may come from another machine
        running = [attempt.seconds for attempt in self._running.values()]
        return f"{text}; {duration(estimate(known, len(self._waiting), running, self._slots))}"


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _seconds(path: Path) -> list[float]:
    match read_object(path / RESULTS)[0]:
        case {"run": {"seconds": int(seconds) | float(seconds)}}:
            return [seconds]
        case _:
            return []


def estimate(known: Sequence[float], waiting: int, running: Sequence[float], slots: int) -> float:
    """Seconds until all runs are done, should each take as long as those before did; NaN if none has ended.

    Args:
        known: Seconds that runs took.
        waiting: Runs not begun.
        running: Seconds since the start of each of the others.
        slots: Runs at a time.
    """
    if not known:
        return math.nan
    mean = sum(known) / len(known)
    work = [mean] * waiting + [max(0.0, mean - seconds) for seconds in running]
    return max([sum(work) / slots, *work])


def duration(seconds: float) -> str:
    """Seconds in words: `about 5 min left`."""
    if math.isnan(seconds):
        return "no estimate yet"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit} left"
    return f"about {seconds:.0f} s left"
