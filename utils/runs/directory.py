"""The directory of a run: its name, and whether the run is finished, unfinished, or in use by another process.

    <output_dir>/<configuration>-<hash>-s<seed>/

A finished run has a results.json, an unfinished run has none. Results are replaced only if the user asks for it.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.choices import require_plugins
from utils.config.identity import LOCATIONS, content, digests, result_hash
from utils.config.schema import Config
from utils.errors import UserError
from utils.files import can_write, existing, lock, naming, seen_from
from utils.json_file import read_object
from utils.text import shown

logger = logging.getLogger(__name__)

CONFIG, ENVIRONMENT, RESULTS = "config.json", "environment.json", "results.json"
STATES, LOCK = "resume", ".lock"
NOT_COUNTED = {RESULTS, LOCK, "log.txt", STATES, "tensorboard", "wandb"}  # have no checksums of their own


class RunDirError(UserError):
    """A run directory is finished, in use, of another configuration, or cannot be made."""


@dataclass(frozen=True)
class RunPlan:
    """A run to make.

    Attributes:
        resumes: Whether it continues the unfinished run in the directory.
        replaces: Whether it may replace the run in the directory.
    """

    seed: int
    path: Path
    resumes: bool = False
    replaces: bool = False


def run_name(config: Config, config_name: str, seed: int) -> str:
    """Return the name of a run's directory, different for every configuration and seed."""
    return f"{config_name}-{result_hash(config)}-s{seed}"


def runs_of(config: Config, seed: int) -> list[Path]:
    """Return the directories of a configuration and a seed in its output directory, under any name."""
    names = {f"*-{digest}-s{seed}" for digest in digests(config.model_dump(mode="json"))}
    return sorted(path for name in names for path in Path(config.output_dir).glob(name))


def finished_runs(config: Config) -> list[Path]:
    """Return the finished runs of a configuration in its output directory."""
    return [path for seed in config.seed for path in runs_of(config, seed) if is_finished(path)]


def is_finished(path: Path) -> bool:
    """Return whether a run is finished.

    Raises:
        RunDirError: The directory cannot be read.
    """
    try:
        return (path / RESULTS).exists()
    except OSError as error:
        raise RunDirError(f"run directory {str(path)!r} cannot be read: {error}") from error


def can_resume(path: Path) -> bool:
    """Return whether a run is unfinished and has saved a state."""
    return not is_finished(path) and any((path / STATES).glob("*.state"))


def plan_runs(config: Config, config_name: str) -> list[RunPlan]:
    """Return the runs that a configuration asks for.

    Args:
        config: Its keys resume, auto_resume and overwrite say what to do with existing runs.
        config_name: First part of the directories' names.

    Raises:
        RunDirError: A run is finished, or is unfinished and would be started again; the message lists these runs and
            the flags to use. Or `resume` does not name an unfinished run of this configuration.
    """
    if config.resume is not None:
        path = Path(config.resume)
        _refuse_other_config(path, begun_config(path), config)
        return [RunPlan(config.seed[0], path, can_resume(path))]
    folder = Path(config.output_dir)
    _require_writable(folder)
    paths = {seed: folder / run_name(config, config_name, seed) for seed in config.seed}
    if config.auto_resume:
        continued = [_continued(seed, path, config) for seed, path in paths.items()]
        return [plan for plan in continued if plan is not None]
    if not config.overwrite:
        _refuse_existing(paths.values())
    return [RunPlan(seed, path, replaces=config.overwrite) for seed, path in paths.items()]


def _require_writable(folder: Path) -> None:
    """Refuse an output directory that cannot be made or written, before data and weights are read."""
    there = existing(folder)
    if not there.is_dir():
        raise RunDirError(f"output_dir = {str(folder)!r}: {there} is not a folder")
    if not can_write(folder):
        raise RunDirError(f"output_dir = {str(folder)!r}: no permission to write in {there}")


def _continued(seed: int, path: Path, config: Config) -> RunPlan | None:
    """Return the plan to continue the newest run of this configuration, under any name; None if one is finished."""
    equal = runs_of(config, seed)
    for there in filter(is_finished, equal):
        logger.warning("already finished: %s", there)
        # A process that was killed at the end may have left its states; another process may still use them.
        with suppress(RunDirError, OSError), locked(there):
            if is_finished(there):
                forget_states(there)
        return None
    begun = [there for there in equal if can_resume(there)]
    if not begun:
        return RunPlan(seed, path)
    newest = max(begun, key=_last_saved)
    _require_same_plugins(newest)
    return RunPlan(seed, newest, resumes=True)


def _last_saved(path: Path) -> float:
    times = [0.0]
    for state in (path / STATES).glob("*.state"):
        with suppress(FileNotFoundError):  # a running process replaces its states
            times.append(state.stat().st_mtime)
    return max(times)


def forget_states(path: Path) -> None:
    """Remove the saved states of a finished run."""
    shutil.rmtree(path / STATES, ignore_errors=True)


def _refuse_existing(paths: Collection[Path]) -> None:
    for found, state, how in (
        (is_finished, "already finished", "use --overwrite to replace it, or another --output_dir"),
        (can_resume, "already started", "use --auto_resume to continue it, or --overwrite to start again"),
    ):
        if there := [str(path) for path in paths if found(path)]:
            raise RunDirError(f"{state}: {', '.join(there)}; {how}")


def begun_config(path: Path) -> dict[str, object]:
    """Return the configuration that an unfinished run was started with.

    Raises:
        RunDirError: The path is not a run directory, or the run is finished.
        ConfigError: The file is damaged.
    """
    if not (path / CONFIG).is_file():
        unfinished = sorted(str(entry) for entry in path.parent.glob("*") if can_resume(entry))
        remark = seen_from(path)
        beside = f"; unfinished runs: {', '.join(unfinished)}" if unfinished else ""
        raise RunDirError(f"resume = {shown(str(path))}: not a run directory (it has no {CONFIG}){remark}{beside}")
    if is_finished(path):
        raise RunDirError(f"resume = {shown(str(path))}: the run is finished; there is nothing to resume")
    _require_same_plugins(path)
    return relocated(read_object(path / CONFIG)[0], path)


def relocated(values: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return a configuration on record, with new places for data and weights that were moved along with the run.

    Only places that do not exist any more are replaced, by those at the same relative position to the run directory.
    """
    was, now = Path(str(values.get("output_dir"))), run.absolute().parent
    while was.name and was.name == now.name:
        was, now = was.parent, now.parent
    moved = {}
    for key in LOCATIONS:
        old = Path(str(values.get(key)))
        if was.is_absolute() and old.is_relative_to(was) and not old.exists():
            new = now / old.relative_to(was)
            if new.exists():
                moved[key] = str(new)
    return {**values, **moved, "output_dir": str(run.absolute().parent)}


def _require_same_plugins(path: Path) -> None:
    file = path / ENVIRONMENT
    if file.is_file():
        require_plugins(read_object(file)[0].get("plugins"), str(path), unchanged=True)


def _refuse_other_config(path: Path, begun: Mapping[str, object], config: Config) -> None:
    """Refuse to continue a run with another seed, or other values of keys that can change a result."""
    now = config.model_dump(mode="json")
    was, wanted = ({**content(values), "seed": values.get("seed")} for values in (begun, now))
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
    """Make a run directory if there is none, and lock it for this process. The lock ends with the process.

    Raises:
        RunDirError: Another process has locked it, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise RunDirError(f"run directory {str(path)!r} cannot be made: {error}") from error
    with file:
        try:
            lock(file, path / LOCK)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().decode(errors="replace").strip() or "another process"
            raise RunDirError(f"{path}: {owner} is using this run directory; wait until it ends, or stop it") from None
        except OSError as error:
            raise RunDirError(f"run directory {str(path)!r} cannot be locked: {error}") from error
        with naming(path / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield


def clear(plan: RunPlan) -> str:
    """Prepare a locked run directory: empty it, or keep what the run continues from.

    Returns:
        What happened to an earlier run, for the log; empty if there was none.

    Raises:
        RunDirError: A file cannot be removed, or another process changed the directory after the plan was made.
    """
    finished = is_finished(plan.path)
    if plan.resumes and finished:
        raise RunDirError(f"{plan.path}: another process has finished this run; there is nothing to resume")
    if not plan.resumes and not plan.replaces:
        _refuse_existing([plan.path])
    there = [entry for entry in plan.path.iterdir() if entry.name != LOCK]
    # A run that continues loses only the files that a killed process was writing.
    unwanted = list(plan.path.rglob(".*.tmp")) if plan.resumes else there
    try:
        for entry in unwanted:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except OSError as error:
        raise RunDirError(f"run directory {str(plan.path)!r} cannot be cleared: {error}") from error
    earlier = "a finished run" if finished else "an unfinished run"
    return f"continues {earlier}" if plan.resumes else f"replaces {earlier}" if there else ""


def checksums(path: Path, results: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file of a run, by its path in the run's directory.

    For results.json it is taken of `results` without the key `run`, which holds the checksums.
    """
    files = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    own = {key: value for key, value in results.items() if key != "run"}
    canonical = json.dumps(own, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {
        name.as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in files.items()
        if name.parts[0] not in NOT_COUNTED
    } | {RESULTS: hashlib.sha256(canonical.encode()).hexdigest()}
