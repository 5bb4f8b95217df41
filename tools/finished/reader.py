"""Read finished runs. One that is incomplete, damaged or edited is refused; the message names the file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tools.finished.checks import CHECKS
from tools.finished.run import RUN_NAME
from tools.finished.run import Run as Run
from tools.finished.run import digest as digest
from utils.config.identity import counted
from utils.errors import RunError as RunError
from utils.json_file import read_object
from utils.metrics import AccuracyMatrix
from utils.runs.directory import CONFIG, ENVIRONMENT, RESULTS
from utils.runs.events import FILE as METRICS
from utils.text import did_you_mean, shown

FILES = (CONFIG, ENVIRONMENT, METRICS, RESULTS)  # the last is written last
LONGEST_RUN = 1e9  # seconds


def read_run(path: Path) -> Run:
    """Read a run directory, and check that its files agree.

    Raises:
        UserError: The directory is not that of a run, the run is unfinished, a file is damaged, or files contradict
            each other (a file was edited).
    """
    run = parse_run(path)
    for check in CHECKS:
        if check.severity == "refuse" and (faults := check.faults(run)):
            raise RunError(faults[0])
    return replace(run, notes=tuple(note for c in CHECKS if c.severity == "note" for note in c.faults(run)))


def parse_run(path: Path) -> Run:
    """Read a run directory, without asking whether its files agree.

    Raises:
        UserError: The directory is not that of a run, the run is unfinished, or a file is damaged.
    """
    require_files(path)
    config, environment, results = (_read(path / name) for name in (CONFIG, ENVIRONMENT, RESULTS))
    matrix = _matrix(path / RESULTS, results)
    name = RUN_NAME.fullmatch(path.resolve().name)
    return Run(
        path=path,
        label=name["label"] if name else path.resolve().name,
        seed=_seed(path / CONFIG, config),
        config=config,
        identity=counted(config),
        matrix=matrix,
        curve=tuple(matrix.average_accuracies),
        branches=_branches(path / RESULTS, results.get("branches", {})),
        seconds=float(results["run"]["seconds"]),
        results=results,
        environment=environment,
    )


def foreign_folder(path: Path) -> str:
    """Why a folder without any file of a run is left out of a comparison; empty for a run, a damaged one too."""
    if not path.is_dir() or any((path / name).exists() for name in FILES):
        return ""
    return f"{path}: left out, it is not a run directory{_runs_within(path)}"


def _runs_within(path: Path) -> str:
    return f"; it contains runs, which can be given as {path}/*-s*" if any(path.glob(f"*/{CONFIG}")) else ""


def require_files(path: Path) -> None:
    """Refuse a path that is no directory of a finished run.

    Raises:
        RunError: Names the file that is missing.
    """
    if not (path / CONFIG).is_file():
        raise RunError(f"{path / CONFIG}: missing, so {path} is not a run directory{_runs_within(path)}")
    for name in reversed(FILES):
        if not (path / name).is_file():
            state = "the run is unfinished" if name == RESULTS else "the run directory is damaged"
            raise RunError(f"{path / name}: missing; {state}")


def _read(file: Path) -> dict[str, Any]:
    values, repeated = read_object(file)
    if repeated:
        raise RunError(f"{file}: {repeated[0]} is given twice; the file was edited or is damaged")
    return values


def _seed(file: Path, config: Mapping[str, Any]) -> int:
    match config.get("seed"):
        case [int(seed)] if not isinstance(seed, bool):
            return seed
        case other:
            raise RunError(f"{file}: seed = {shown(other)}; expected a list of one integer, as a run writes it")


def _matrix(file: Path, results: Mapping[str, Any]) -> AccuracyMatrix:
    """The accuracy matrix of results.json, if the rest of the file has the right shape for it."""
    try:
        matrix = AccuracyMatrix.from_json(results.get("accuracy", {}))
    except ValueError as error:
        raise RunError(f"{file}: accuracy: {error}") from None
    if not matrix.count:
        raise RunError(f"{file}: accuracy: no task was learned")
    tasks, run = results.get("tasks"), results.get("run")
    seconds = run.get("seconds") if isinstance(run, dict) else None
    if not isinstance(seconds, int | float) or abs(seconds) > LONGEST_RUN:
        raise RunError(f"{file}: run.seconds = {shown(seconds)}; expected a number")
    if not isinstance(tasks, list) or len(tasks) != len(matrix.count) or not all(map(_is_task, tasks)):
        raise RunError(f"{file}: tasks: expected adapters and parameters for each of {len(matrix.count)} tasks")
    return matrix


def _is_task(task: object) -> bool:
    match task:
        case {"adapters": list(adapters), "parameters": dict(parameters)}:
            counts = [*adapters, *parameters.values()]
            return "backbone" in parameters and all(isinstance(n, int) and 0 <= n < 2**53 for n in counts)
        case _:
            return False


def _branches(file: Path, values: object) -> dict[str, AccuracyMatrix]:
    if not isinstance(values, dict):
        raise RunError(f"{file}: branches = {shown(values)}; expected an accuracy matrix for each branch")
    try:
        return {name: AccuracyMatrix.from_json(matrix) for name, matrix in values.items()}
    except ValueError as error:
        raise RunError(f"{file}: branches: {error}") from None


def missing_path(path: Path) -> RunError:
    """The error for a path that does not exist, with the nearest names beside it and under logs/."""
    beside = {entry.name: entry for entry in sorted(path.parent.glob("*"))}
    elsewhere = {entry.name: entry for entry in sorted(Path("logs").glob("*"))} if len(path.parts) == 1 else {}
    names = {**elsewhere, **beside}
    where = "" if path.parent.is_dir() else f" (and no folder {path.parent})"
    if path.name in names:
        return RunError(f"{path}: no such run; did you mean {names[path.name]}?")
    return RunError(f"{path}: no such run{where}{did_you_mean(path.name, names, count=3)}")
