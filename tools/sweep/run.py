"""Runs until all are finished or have failed twice, with a line for each end and an estimate of the time left."""

import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from tools.sweep.launch import Job, Launcher
from tools.sweep.plan import PlannedRun
from utils.json_file import read_object
from utils.runs.directory import RESULTS

ATTEMPTS = 2
POLL = 0.2  # seconds between two looks at the jobs
TAIL = 15  # lines of a failed run's log that are shown


@dataclass
class Attempt:
    """A run that was started.

    Attributes:
        run: Which.
        log: What it prints.
        number: Counted from 1.
        started: On the monotonic clock.
    """

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
        return "\n".join([f"{self.job.where()}; the end of {self.log}:", *(f"    {line}" for line in lines[-TAIL:])])


class Progress:
    """What a user sees: a line for each end and, on a terminal, a bar."""

    def __init__(self, total: int, slots: int, kept: Sequence[Path]) -> None:
        self._slots = slots
        self._kept = [seconds for path in kept if (seconds := _seconds(path)) is not None]
        self._measured: list[float] = []
        self._bar = tqdm(
            total=total,
            initial=len(kept),
            bar_format="{n}/{total} runs |{bar}| {elapsed}{postfix}",
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def line(self, text: str) -> None:
        """A line of its own, above the bar."""
        tqdm.write(text, file=sys.stderr)

    def measured(self, seconds: float) -> None:
        """A run took so long."""
        self._measured.append(seconds)
        self._bar.update()

    def left(self, waiting: int, running: Iterable[float]) -> float:
        """Seconds until all are done, should each take as long as those before did; NaN while none has ended.

        Args:
            waiting: Runs not begun.
            running: Seconds since the start of each of the others.
        """
        known = self._measured or self._kept  # those kept may come from another machine
        if not known:
            return math.nan
        mean = sum(known) / len(known)
        work = [mean] * waiting + [max(0.0, mean - seconds) for seconds in running]
        return max([sum(work) / self._slots, *work])

    def show(self, text: str) -> None:
        """Write beside the bar."""
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def _seconds(path: Path) -> float | None:
    run = read_object(path / RESULTS)[0].get("run")
    seconds = run.get("seconds") if isinstance(run, dict) else None
    return seconds if isinstance(seconds, int | float) else None


def duration(seconds: float) -> str:
    """Seconds in words: `about 5 min left`."""
    if math.isnan(seconds):
        return "no estimate yet"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit} left"
    return f"about {seconds:.0f} s left"


class Execution:
    """Works off runs with a launcher.

    Attributes:
        failed: The last attempts of runs that failed as often as they may.
    """

    def __init__(self, runs: Sequence[PlannedRun], launcher: Launcher, logs: Path, progress: Progress) -> None:
        self._waiting = deque((run, 1) for run in runs)
        self._running: dict[int, Attempt] = {}
        self._launcher, self._logs, self._progress = launcher, logs, progress
        self.failed: list[Attempt] = []

    def to_end(self) -> None:
        """Start what waits as slots fall free, until nothing is left; whatever ends this early ends the runs too."""
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            while self._waiting or self._running:
                self._fill()
                self._progress.show(f"{len(self._running)} at work{self._estimate()}")
                time.sleep(POLL)
                self._collect()
        finally:
            self._progress.close()
            if self._running:
                self._progress.line(f"ending {len(self._running)} runs")
                self._launcher.stop([attempt.job for attempt in self._running.values()])

    def _fill(self) -> None:
        for slot in range(self._launcher.slots):
            if self._waiting and slot not in self._running:
                run, number = self._waiting.popleft()
                log = self._logs / f"{run.name}-attempt{number}.log"
                job = self._launcher.start(run.command(), log, slot)
                self._running[slot] = Attempt(run, job, log, number)

    def _collect(self) -> None:
        for slot, attempt in list(self._running.items()):
            if attempt.job.ended():
                del self._running[slot]
                self._note_end(attempt)

    def _note_end(self, attempt: Attempt) -> None:
        name = f"{attempt.run.member.name}, seed {attempt.run.seed}"
        if attempt.run.finished():
            self._progress.measured(attempt.seconds)
            self._progress.line(f"finished: {name} in {attempt.seconds:.0f} s{self._estimate()}")
        elif attempt.number < ATTEMPTS:
            self._waiting.append((attempt.run, attempt.number + 1))
            self._progress.line(f"failed, to be tried again: {name}: {attempt.tail()}")
        else:
            self.failed.append(attempt)
            self._progress.line(f"failed: {name}: {attempt.tail()}")

    def _estimate(self) -> str:
        """To be put behind a sentence; empty at the end."""
        if not (self._waiting or self._running):
            return ""
        running = [attempt.seconds for attempt in self._running.values()]
        return "; " + duration(self._progress.left(len(self._waiting), running))
