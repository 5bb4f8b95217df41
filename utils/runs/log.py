"""Write the directory of a run: its configuration, its environment, its events and its results.

    <output_dir>/<configuration>-<hash>-s<seed>/
        config.json        every key, resolved
        environment.json   versions, commit, device, command line, start
        log.txt            the lines of the console
        metrics.jsonl      one JSON object per event, see `utils.runs.events`
        resume/            saved states of an unfinished run
        results.json       written last, so a run that has it is finished

Equal runs write equal metrics.jsonl and results.json, except for what is under the key `run`. NaN and infinities, which
JSON does not have, are null in all files.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from utils.files import json_line, naming, plain, write_json
from utils.json_file import read_object
from utils.runs import directory as run_dir
from utils.runs.checksums import checksums
from utils.runs.directory import CONFIG, ENVIRONMENT, RESULTS, RunPlan
from utils.runs.environment import environment, reproduce_line
from utils.runs.events import FILE as METRICS
from utils.runs.events import Event

logger = logging.getLogger(__name__)


class RunLog:
    """Writes one run's directory and sends the log there and to the console. Made by `opened`.

    Attributes:
        path: The run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = _now()

    @classmethod
    @contextmanager
    def opened(cls, plan: RunPlan) -> Iterator[Self]:
        """The log of a run. Its directory is locked and, unless the plan continues a run, emptied.

        The handlers are removed at the end, so that no run writes into another's log. An error that ends the run is
        logged with its traceback.

        Raises:
            RunDirError: Another process uses the directory, or it cannot be made or emptied.
        """
        with run_dir.locked(plan.path):
            done = run_dir.clear(plan)
            with _logging_to(plan.path / "log.txt"):
                logger.info("run directory %s%s", plan.path, f" ({done})" if done else "")
                yield cls(plan.path)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write config.json: the resolved configuration."""
        write_json(self.path / CONFIG, values)

    def write_environment(self, device: str, extra: Mapping[str, Any]) -> None:
        """Write environment.json: versions, machine, command line.

        Args:
            device: The device's name.
            extra: What else the run started from, such as the backbone's weights.
        """
        values = {**environment(), "device": device, "started": self._started, **extra}
        write_json(self.path / ENVIRONMENT, values)

    def event(self, event: Event) -> None:
        """Append an event to metrics.jsonl; its line is in the file when this returns."""
        path = self.path / METRICS
        with naming(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json_line(event.to_json()))

    def events_written(self) -> int:
        """The length of metrics.jsonl in bytes, all of them flushed to the disk."""
        file = self.path / METRICS
        if not file.exists():
            return 0
        with naming(file), file.open("rb") as opened:
            os.fsync(opened.fileno())
            return os.fstat(opened.fileno()).st_size

    def forget_events_after(self, length: int) -> None:
        """Cut metrics.jsonl to a length that `events_written` gave: the events after it will be repeated."""
        if self.events_written() > length:
            os.truncate(self.path / METRICS, length)

    def results(self, values: Mapping[str, Any]) -> None:
        """Write results.json, which marks the run as finished, and remove the saved states.

        Added under `run` are the time of the end, the command that repeats the run, and the checksums of its files.
        """
        begun, _ = read_object(self.path / ENVIRONMENT)
        results = plain(values)
        ended = {"finished": _now(), "reproduce": reproduce_line(begun), "sha256": checksums(self.path, results)}
        run = {**results.get("run", {}), **ended}
        write_json(self.path / RESULTS, {**results, "run": run})
        run_dir.forget_states(self.path)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send every logger's lines to a file and to the console."""
    root = logging.getLogger()
    level = root.level
    file, console = FullDiskHandler(path, encoding="utf-8"), ConsoleHandler()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for handler in (file, console):
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        root.removeHandler(console)  # first: who catches the error prints it
        file.last_words("the run stopped before its end", error)
        raise
    finally:
        root.removeHandler(console)
        root.removeHandler(file)
        file.close()
        root.setLevel(level)


@dataclass
class RunClock:
    """How long a run took, over all processes that worked on it.

    Attributes:
        starts: When each of them started.
        tasks: Seconds of every finished task.
        before: Seconds of the current task in earlier processes.
    """

    starts: list[str] = field(default_factory=lambda: [_now()])
    tasks: list[float] = field(default_factory=list)
    before: float = 0.0
    _since: float = field(default_factory=lambda: time.perf_counter())

    def end_task(self) -> None:
        """The current task is finished, the next one starts."""
        self.tasks.append(self._current())
        self.before, self._since = 0.0, time.perf_counter()

    def report(self) -> dict[str, Any]:
        """What results.json holds under `run`."""
        seconds = sum(self.tasks) + self._current()
        return {
            "started": self.starts[0],
            "resumed": self.starts[1:],
            "seconds": seconds,
            "seconds_per_task": self.tasks,
        }

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"starts": self.starts, "tasks": self.tasks, "before": self._current()}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Continue in another process."""
        return cls([*state["starts"], _now()], list(state["tasks"]), state["before"])

    def _current(self) -> float:
        return self.before + time.perf_counter() - self._since


class FullDiskHandler(logging.FileHandler):
    """Writes a log file; an error such as a full disk ends the run, where logging would only print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise what went wrong."""
        error = sys.exception()
        if isinstance(error, OSError):
            with naming(Path(self.baseFilename)):
                raise error
        super().handleError(record)

    def last_words(self, message: str, error: BaseException) -> None:
        """Write why the run stops, if that is possible."""
        try:
            logger.error(message, exc_info=error)
        except OSError:
            return

    def close(self) -> None:
        """Close the file, even if a full disk leaves lines unwritten."""
        try:
            super().close()
        except OSError:
            self.stream = None


class ConsoleHandler(logging.Handler):
    """Writes lines to standard error, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a console that was closed does not end the run."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
