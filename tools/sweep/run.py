"""Execute the runs of a sweep, each at most twice, and report every run that ends."""

import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from tools.sweep.launch import Job, Start, stop
from tools.sweep.plan import PlannedRun

ATTEMPTS = 2
POLL = 0.2  # seconds from one look at the jobs to the next
TAIL = 15  # lines of the log of a failed run to print
STATUS = "{n_fmt} of {total_fmt} runs done [{elapsed}<{remaining}]"


@dataclass
class Attempt:
    """A run that was started. Attempts are counted from 1."""

    run: PlannedRun
    number: int
    log: Path
    job: Job
    started: float = field(default_factory=time.monotonic)

    def tail(self) -> str:
        """Return how it ended, and the last lines of its output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"{self.job.ended()}; the end of {self.log}:", *(f"    {line}" for line in lines[-TAIL:])])


class Execution:
    """Starts runs as slots become free, until all have ended.

    Args:
        runs: What to run.
        start: Starts a command.
        slots: Commands at a time.
        logs: Folder for the output of the runs.
        kept: How many runs of the sweep have finished before.

    Attributes:
        failed: The last attempts of the runs that failed.
    """

    def __init__(self, runs: Sequence[PlannedRun], start: Start, slots: int, logs: Path, kept: int = 0) -> None:
        self._start, self._slots, self._logs, self._kept = start, slots, logs, kept
        self._total, self._started = kept + len(runs), time.monotonic()
        self._waiting = deque((run, 1) for run in runs)
        self._running: dict[int, Attempt] = {}
        self.failed: list[Attempt] = []

    def to_end(self) -> None:
        """Execute all runs. If an exception or Ctrl-C ends this early, the runs are stopped too."""
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            with tqdm(bar_format="{desc}", leave=False, disable=None) as line:
                while self._waiting or self._running:
                    self._fill()
                    line.set_description_str(self.status())
                    time.sleep(POLL)
                    for slot, attempt in list(self._running.items()):
                        if attempt.job.ended():
                            del self._running[slot]
                            self._end(attempt, f"{attempt.run.member.name}, seed {attempt.run.seed}")
        finally:
            if self._running:
                _say(f"stopping {len(self._running)} runs")
                stop([attempt.job for attempt in self._running.values()])

    def _fill(self) -> None:
        for slot in range(self._slots):
            if self._waiting and slot not in self._running:
                run, number = self._waiting.popleft()
                log = self._logs / f"{run.name}-attempt{number}.log"
                self._running[slot] = Attempt(run, number, log, self._start(run.command(), log, slot))

    def _end(self, attempt: Attempt, name: str) -> None:
        if attempt.run.finished():
            _say(f"finished: {name} in {time.monotonic() - attempt.started:.0f} s; {self.status()}")
        elif attempt.number < ATTEMPTS:
            self._waiting.append((attempt.run, attempt.number + 1))
            _say(f"failed, will be tried again: {name}: {attempt.tail()}")
        else:
            self.failed.append(attempt)
            _say(f"failed: {name}: {attempt.tail()}")

    def status(self) -> str:
        """Return the number of runs that have ended, the time passed and the time left, as tqdm estimates it."""
        done, elapsed = self._total - len(self._waiting) - len(self._running), time.monotonic() - self._started
        return str(tqdm.format_meter(done, self._total, elapsed, bar_format=STATUS, initial=self._kept))


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
