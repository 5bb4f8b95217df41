"""Write the directory of a run: its configuration, environment, events and results.

    <output_dir>/<configuration>-<hash>-s<seed>/
        config.json        every key with its value
        environment.json   versions, commit, device, command line, start
        log.txt            the lines of the console
        metrics.jsonl      one JSON object per event, see `utils.runs.events`
        times.jsonl        what was measured by a clock at an event
        resume/            saved states of an unfinished run
        results.json       written last: a run that has it is finished

Equal runs write equal metrics.jsonl, byte for byte, and equal results.json, except for its key `run`. NaN and
infinities are null in all files.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from utils.files import UNSYNCED, if_supported, json_line, naming, plain, write_json
from utils.json_file import read_object
from utils.runs import directory as run_dir
from utils.runs.directory import CONFIG, ENVIRONMENT, RESULTS, RunPlan, checksums
from utils.runs.environment import environment, reproduce_line
from utils.runs.events import FILE as METRICS
from utils.runs.events import TIMES, Event
from utils.text import shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLog:
    """Writes the directory of a run. Use `opened`, which also sends the log there and to the console."""

    path: Path

    @classmethod
    @contextmanager
    def opened(cls, plan: RunPlan) -> Iterator[Self]:
        """Lock the run's directory, empty it unless the plan continues a run, and log into it.

        An error that ends the run is logged with its traceback. The log handlers are removed at the end, so that no run
        writes into the log of another.

        Raises:
            RunDirError: Another process uses the directory, or it cannot be made or emptied.
        """
        with run_dir.locked(plan.path):
            done = run_dir.clear(plan)
            with _logging_to(plan.path / "log.txt"):
                logger.info("run directory %s%s", plan.path, f" ({done})" if done else "")
                yield cls(plan.path)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write config.json."""
        write_json(self.path / CONFIG, values)

    def write_environment(self, device: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Write environment.json.

        Args:
            device: From `utils.devices.device_record`.
            extra: Further entries, such as the backbone's weights.
        """
        write_json(self.path / ENVIRONMENT, {**environment(), **device, "started": _now(), **extra})

    def continue_environment(self, device: Mapping[str, Any]) -> None:
        """Add to environment.json what differs in this process from the one that began the run; warn of it."""
        begun: dict[str, Any] = read_object(self.path / ENVIRONMENT)[0]
        now = {**environment(), **device}
        found = {key: value for key, value in now.items() if key != "command" and begun.get(key) != value}
        entry = {"started": _now(), "command": now["command"], **found}
        write_json(self.path / ENVIRONMENT, {**begun, "resumed": [*begun.get("resumed", []), entry]})
        for key, value in ((key, value) for key, value in found.items() if key in begun):
            logger.warning("the run began with %s %s, and continues with %s", key, shown(begun.get(key)), shown(value))

    def event(self, event: Event) -> None:
        """Append an event to metrics.jsonl and flush it; what it has under `run` goes to times.jsonl."""
        values = event.to_json()
        measured = values.pop("run", None)
        self._append(METRICS, values)
        if measured:
            place = {key: value for key, value in values.items() if isinstance(value, str | int)}
            self._append(TIMES, {**place, **measured})

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        path = self.path / name
        with naming(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json_line(values))

    def events_written(self) -> int:
        """Flush metrics.jsonl to the disk and return its length in bytes."""
        file = self.path / METRICS
        if not file.exists():
            return 0
        with naming(file), file.open("rb") as opened:
            with if_supported(file, UNSYNCED):
                os.fsync(opened.fileno())
            return os.fstat(opened.fileno()).st_size

    def forget_events_after(self, length: int) -> None:
        """Cut metrics.jsonl to a length that `events_written` returned."""
        if self.events_written() > length:
            os.truncate(self.path / METRICS, length)

    def results(self, values: Mapping[str, Any]) -> None:
        """Write results.json, which makes the run a finished one, and remove the saved states.

        The end time, the command that repeats the run and the checksums of its files are added under `run`.
        """
        begun, _ = read_object(self.path / ENVIRONMENT)
        results = plain(values)
        ended = {"finished": _now(), "reproduce": reproduce_line(begun), "sha256": checksums(self.path, results)}
        write_json(self.path / RESULTS, {**results, "run": {**results.get("run", {}), **ended}})
        run_dir.forget_states(self.path)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send all log lines to a file and to the console."""
    root = logging.getLogger()
    level = root.level
    file, console = FullDiskHandler(path, encoding="utf-8"), ConsoleHandler()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S%z"))
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for handler in (file, console):
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        root.removeHandler(console)  # whoever catches the error prints it
        with suppress(OSError):
            logger.error("the run stopped before its end", exc_info=error)
        raise
    finally:
        for handler in (file, console):
            root.removeHandler(handler)
        file.close()
        root.setLevel(level)


@dataclass
class RunClock:
    """The time that a run took in all its processes.

    Attributes:
        starts: Start time of every process.
        tasks: Seconds of every finished task.
        since: When the current task would have started without interruptions; as `time.perf_counter`.
        training: Seconds of every finished task in which it was trained, see `utils.runs.stopwatch`.
    """

    starts: list[str] = field(default_factory=lambda: [_now()])
    tasks: list[float] = field(default_factory=list)
    since: float = field(default_factory=lambda: time.perf_counter())
    training: list[float] = field(default_factory=list)

    def end_task(self, training: float) -> None:
        """End the current task, which was trained for some seconds, and start the next one."""
        now = time.perf_counter()
        self.tasks.append(now - self.since)
        self.training.append(training)
        self.since = now

    @property
    def seconds(self) -> float:
        """The time so far."""
        return sum(self.tasks) + time.perf_counter() - self.since

    def report(self) -> dict[str, Any]:
        """Return what results.json holds under `run`."""
        started, *resumed = self.starts
        times = {"seconds": self.seconds, "seconds_per_task": self.tasks, "training_seconds_per_task": self.training}
        return {"started": started, "resumed": resumed, **times}

    def state(self, training: float) -> dict[str, Any]:
        """Return what `restore` needs, with the seconds in which the current task was trained."""
        before = time.perf_counter() - self.since
        times = {"tasks": self.tasks, "before": before, "training": [*self.training, training]}
        return {"starts": self.starts, **times}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> tuple[Self, float]:
        """Return the clock of another process that continues the run, and how long the current task was trained."""
        unknown = [math.nan] * (len(state["tasks"]) + 1)  # of a run that an earlier version began
        *training, current = state.get("training", unknown)
        since = time.perf_counter() - state["before"]
        return cls([*state["starts"], _now()], list(state["tasks"]), since, training), current


class FullDiskHandler(logging.FileHandler):
    """Writes a log file, and raises errors such as a full disk, where logging would only print them."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error that is being handled."""
        if isinstance(error := sys.exception(), OSError):
            with naming(Path(self.baseFilename)):
                raise error
        super().handleError(record)

    def close(self) -> None:
        """Close the file, even if a full disk prevents the last lines from being written."""
        try:
            super().close()
        except OSError:
            self.stream = None


class ConsoleHandler(logging.Handler):
    """Writes log lines to standard error, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. A closed console does not end the run."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
