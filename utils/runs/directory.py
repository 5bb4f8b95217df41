"""Which directory a run writes: its name, and whether it is finished, unfinished, or in use by another process.

    <output_dir>/<configuration>-<hash>-s<seed>/

A directory with a results.json is a finished run, one without it an unfinished run. Results are only replaced if the
user asks for it.
"""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from utils.choices import require_plugins
from utils.config.identity import counted, result_hash
from utils.config.schema import Config
from utils.errors import UserError
from utils.files import naming
from utils.json_file import read_object
from utils.text import shown

logger = logging.getLogger(__name__)

CONFIG, ENVIRONMENT, RESULTS = "config.json", "environment.json", "results.json"
STATES, LOCK = "resume", ".lock"


class RunDirError(UserError):
    """A run directory that is finished, in use, of another configuration, or that cannot be made."""


@dataclass(frozen=True)
class RunPlan:
    """One run that is to be made.

    Attributes:
        seed: Its seed.
        path: Its directory.
        resumes: Whether it continues the unfinished run that is there.
        replaces: Whether it may replace the run that is there.
    """

    seed: int
    path: Path
    resumes: bool = False
    replaces: bool = False


def run_name(config: Config, config_name: str, seed: int) -> str:
    """The name of a run's directory: two configurations, or two seeds, never share one."""
    return f"{config_name}-{result_hash(config)}-s{seed}"


def is_finished(path: Path) -> bool:
    """Whether a run came to its end.

    Raises:
        RunDirError: That cannot be found out.
    """
    try:
        return (path / RESULTS).exists()
    except OSError as error:
        raise RunDirError(f"run directory {str(path)!r} cannot be read: {error}") from error


def can_resume(path: Path) -> bool:
    """Whether an unfinished run has saved a state."""
    return not is_finished(path) and any((path / STATES).glob("*.state"))


def plan_runs(config: Config, config_name: str) -> list[RunPlan]:
    """The runs that a configuration asks for.

    Args:
        config: Its keys resume, auto_resume and overwrite say what happens to runs that are there.
        config_name: How the directories' names begin.

    Raises:
        RunDirError: A run is finished, or would be started again although it could be continued; the message lists
            them with the flags to use. Or `resume` names no unfinished run of this configuration.
    """
    if config.resume is not None:
        return [_named(Path(config.resume), config)]
    plans = [_planned(config, config_name, seed) for seed in config.seed]
    if config.auto_resume:
        for plan in plans:
            if is_finished(plan.path):
                logger.warning("already finished: %s", plan.path)
                _sweep(plan.path)
        return [plan for plan in plans if not is_finished(plan.path)]
    if not config.overwrite:
        _refuse([plan.path for plan in plans])
    return plans


def _planned(config: Config, config_name: str, seed: int) -> RunPlan:
    path = Path(config.output_dir) / run_name(config, config_name, seed)
    if not config.auto_resume:
        return RunPlan(seed, path, replaces=config.overwrite)
    equal = list(Path(config.output_dir).glob(f"*-{result_hash(config)}-s{seed}"))
    for there in [path for path in equal if is_finished(path)]:
        return RunPlan(seed, there)
    begun = [there for there in equal if can_resume(there)]
    if not begun:
        return RunPlan(seed, path)
    newest = max(begun, key=_last_saved)
    require_same_plugins(newest)
    return RunPlan(seed, newest, resumes=True)


def forget_states(path: Path) -> None:
    """Remove the saved states of a finished run."""
    shutil.rmtree(path / STATES, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove states that a finished run could not remove because it was killed, unless a process uses them."""
    with suppress(RunDirError, OSError), locked(path):
        if is_finished(path):
            forget_states(path)


def _last_saved(path: Path) -> float:
    times = [0.0]
    for state in (path / STATES).glob("*.state"):
        with suppress(FileNotFoundError):  # a running process replaces its states
            times.append(state.stat().st_mtime)
    return max(times)


def _refuse(paths: list[Path]) -> None:
    finished = [str(path) for path in paths if is_finished(path)]
    if finished:
        raise RunDirError(
            f"already finished: {', '.join(finished)}; use --overwrite to replace it, or another --output_dir"
        )
    begun = [str(path) for path in paths if can_resume(path)]
    if begun:
        raise RunDirError(
            f"already started: {', '.join(begun)}; use --auto_resume to continue it, or --overwrite to start again"
        )


def begun_config(path: Path) -> dict[str, object]:
    """The configuration with which an unfinished run was started.

    Raises:
        RunDirError: The path is not a run directory, or the run is finished.
        ConfigError: The file is damaged.
    """
    if not (path / CONFIG).is_file():
        beside = _unfinished_beside(path)
        raise RunDirError(f"resume = {shown(str(path))}: not a run directory (it has no {CONFIG}){beside}")
    if is_finished(path):
        raise RunDirError(f"resume = {shown(str(path))}: the run is finished; there is nothing to resume")
    require_same_plugins(path)
    return read_object(path / CONFIG)[0]


def require_same_plugins(path: Path) -> None:
    """Refuse to go on with a run without the plug-ins it was begun with.

    Raises:
        UserError: Names the file that is missing or has changed.
    """
    file = path / ENVIRONMENT
    if file.is_file():
        require_plugins(read_object(file)[0].get("plugins"), str(path), unchanged=True)


def _named(path: Path, config: Config) -> RunPlan:
    """The plan for the key `resume`."""
    refuse_other_config(path, begun_config(path), config)
    return RunPlan(config.seed[0], path, can_resume(path))


def _unfinished_beside(path: Path) -> str:
    there = sorted(str(entry) for entry in path.parent.glob("*") if can_resume(entry))
    return f"; unfinished runs: {', '.join(there)}" if there else ""


def refuse_other_config(path: Path, begun: Mapping[str, object], config: Config) -> None:
    """Refuse to continue a run with another configuration.

    Raises:
        RunDirError: A key that can change a result, or the seed, is another than in the run's config.json; lists all.
    """
    now = config.model_dump(mode="json")
    was, wanted = ({**counted(values), "seed": values.get("seed")} for values in (begun, now))
    lines = [
        f"  {key}: started with {shown(was.get(key))}, now {shown(wanted.get(key))}"
        for key in sorted(was.keys() | wanted.keys())
        if was.get(key) != wanted.get(key)
    ]
    if lines:
        raise RunDirError(
            "\n".join([f"{path}: a run is resumed with its own configuration; these keys differ:", *lines])
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make a run directory if need be and lock it for this process; the system releases the lock when it ends.

    Raises:
        RunDirError: Another process writes there, or the directory cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise RunDirError(f"run directory {str(path)!r} cannot be made: {error}") from error
    with file:
        _lock(file, path)
        with naming(path / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield


def _lock(file: FileIO, path: Path) -> None:
    try:
        # Unlike flock's, no child inherits this lock; but it ends when this process closes the file anywhere.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise RunDirError(f"run directory {str(path)!r} cannot be locked: {error}") from error
        file.seek(0)
        owner = file.read().decode(errors="replace").strip() or "another process"
        raise RunDirError(f"{path}: {owner} is using this run directory; wait until it ends, or stop it") from None


def _refuse_outdated(plan: RunPlan) -> None:
    """Check again, now that the directory is locked, what the plan assumes: another process may have changed it."""
    if plan.resumes and is_finished(plan.path):
        raise RunDirError(f"{plan.path}: another process has finished this run; there is nothing to resume")
    if not plan.resumes and not plan.replaces:
        _refuse([plan.path])


def clear(plan: RunPlan) -> str:
    """Prepare a locked run directory: empty it, or keep what the run continues from.

    Returns:
        What happened to an earlier run, for the log; empty if there was none.

    Raises:
        RunDirError: Something cannot be removed, or another process changed the directory after the plan was made.
    """
    _refuse_outdated(plan)
    there = [entry for entry in plan.path.iterdir() if entry.name != LOCK]
    earlier = "a finished run" if is_finished(plan.path) else "an unfinished run" if there else ""
    # A run that continues keeps everything but the files that a killed process was writing.
    going = list(plan.path.rglob(".*.tmp")) if plan.resumes else there
    try:
        for entry in going:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except OSError as error:
        raise RunDirError(f"run directory {str(plan.path)!r} cannot be cleared: {error}") from error
    return f"continues {earlier}" if plan.resumes else f"replaces {earlier}" if earlier else ""
