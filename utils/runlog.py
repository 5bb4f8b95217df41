"""The directory of a run: what was configured, where it ran, what happened, what came out.

    <output_dir>/<configuration>-<hash>-s<seed>/
        config.json        every key, resolved
        environment.json   versions, commit, device, command line, start
        log.txt            the lines of the console
        metrics.jsonl      one JSON object an event; equal for equal runs, but for what an event keeps under `run`
        results.json       written last, so a run that has it is finished; equal for equal runs, but for its key `run`

NaN and infinities, which JSON does not know, are null in all of them.
"""

import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

from utils.config import Config, UserError, result_hash
from utils.files import json_line, write_json

logger = logging.getLogger(__name__)

RESULTS = "results.json"
PACKAGES = ("torch", "torchvision", "timm", "numpy")
PROJECT = Path(__file__).resolve().parents[1]

T = TypeVar("T")


class RunDirError(UserError):
    """A run directory that holds a finished run, or that cannot be made."""


def run_name(config: Config, config_name: str, seed: int) -> str:
    """The name of a run's directory: two configurations, or two seeds, never share one."""
    return f"{config_name}-{result_hash(config)}-s{seed}"


def refuse_finished(output_dir: str | Path, names: Iterable[str], overwrite: bool) -> None:
    """Refuse to replace finished runs, before anything else is done.

    Raises:
        RunDirError: Runs of these names are finished, and `overwrite` is false; the message lists them.
    """
    paths = [Path(output_dir) / name for name in names]
    finished = [str(path) for path in paths if (path / RESULTS).exists()]
    if finished and not overwrite:
        listed = ", ".join(finished)
        raise RunDirError(f"finished already: {listed}; --overwrite replaces it, another --output_dir keeps it")


def progress(iterable: Iterable[T], what: str, total: int, done: int = 0) -> Iterable[T]:
    """Iterate under a progress bar on a terminal, and silently elsewhere.

    Args:
        iterable: Left open when the loop is left early.
        what: Text before the bar.
        total: Steps in all.
        done: Steps made before this loop.
    """
    if not sys.stderr.isatty():
        return iterable  # a disabled tqdm would not do: it closes the generator under a loop that is left early
    return _with_bar(iterable, tqdm(desc=what, total=total, initial=done, leave=False, dynamic_ncols=True))


def _with_bar(iterable: Iterable[T], bar: tqdm) -> Iterator[T]:
    with bar:
        for step in iterable:
            yield step
            bar.update()


class RunLog:
    """Writes one run's directory and, as a context manager, sends the log there and to the console.

    Made by `create`. The handlers are taken off again at the end, so that no run writes into another's log; what ended
    a run early stands in its log with the traceback.

    Attributes:
        path: The run's directory.
    """

    def __init__(self, path: Path, replaced: str) -> None:
        self.path = path
        self._replaced = replaced
        self._started, self._clock = _now(), time.perf_counter()

    @classmethod
    def create(cls, output_dir: str | Path, name: str, overwrite: bool) -> Self:
        """Make a run's directory, empty. An unfinished run of that name is begun anew: all its files are removed.

        Raises:
            RunDirError: As `refuse_finished`, or the directory cannot be made or emptied.
        """
        refuse_finished(output_dir, [name], overwrite)
        path = Path(output_dir) / name
        replaced = "a finished run" if (path / RESULTS).exists() else "an unfinished run" if path.exists() else ""
        try:
            if replaced:
                shutil.rmtree(path)
            path.mkdir(parents=True)
        except OSError as error:
            raise RunDirError(f"run directory {str(path)!r} cannot be made: {error}") from error
        return cls(path, replaced)

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._level = root.level
        self._file = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._console = ConsoleHandler()
        self._console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        for handler in (self._file, self._console):
            root.addHandler(handler)
        root.setLevel(logging.INFO)
        logger.info("run directory %s%s", self.path, f" (replaces {self._replaced})" if self._replaced else "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        root = logging.getLogger()
        root.removeHandler(self._console)  # first: whoever catches the error tells the user
        if error is not None:
            logger.error("the run stopped before its end", exc_info=error)
        root.removeHandler(self._file)
        self._file.close()
        root.setLevel(self._level)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write config.json: the resolved configuration."""
        write_json(self.path / "config.json", values)

    def write_environment(self, device: str, extra: Mapping[str, Any]) -> None:
        """Write environment.json: where the run runs.

        Args:
            device: What the device calls itself.
            extra: Whatever else the run started from, such as the backbone's weights.
        """
        values = {**environment(), "device": device, "started": self._started, **extra}
        write_json(self.path / "environment.json", values)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to metrics.jsonl; it is in the file when this returns.

        Args:
            kind: What happened.
            fields: JSON values, arrays or tensors; what differs between two equal runs belongs under `run`.
        """
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8", newline="\n") as file:
            file.write(json_line({"kind": kind, **fields}))

    def results(self, values: Mapping[str, Any]) -> None:
        """Write results.json, which marks the run as finished; start, end and duration are added under `run`."""
        seconds = time.perf_counter() - self._clock
        run = {"started": self._started, "finished": _now(), "seconds": seconds, **values.get("run", {})}
        write_json(self.path / RESULTS, {**values, "run": run})


class ConsoleHandler(logging.Handler):
    """Lines on standard error, above progress bars instead of through them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a console that has gone away ends no run."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def environment() -> dict[str, Any]:
    """Versions, machine, commit and command line of this process; None for what cannot be found out."""
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        **commit_state(PROJECT),
        "command": shlex.join(sys.orig_argv),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit_state(folder: Path) -> dict[str, str | bool | None]:
    """The commit `folder` is at and whether tracked files differ from it (`dirty`); None without git or a commit."""
    commit = _git(folder, "rev-parse", "HEAD")
    # Untracked files do not count: logs and results of earlier runs may lie among the sources.
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
