"""Finished runs as they lie on disk: read whole and held against themselves, or refused with the file at fault."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tools.finished.record import check_events, close
from utils.config.identity import counted, counted_digest, result_hash
from utils.config.schema import Config
from utils.errors import RunError as RunError
from utils.files import plain
from utils.json_file import read_object
from utils.metrics import AccuracyMatrix
from utils.runs.directory import RESULTS
from utils.text import did_you_mean, shown

FILES = ("config.json", "environment.json", "metrics.jsonl", RESULTS)  # the last is written last
LONGEST_RUN = 1e9  # seconds
RUN_NAME = re.compile(r"(?P<label>.+)-(?P<hash>[0-9a-f]{8})-s(?P<seed>\d+)")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: a directory of ours, or one run of another code base's log file.

    Attributes:
        path: The directory or the log file.
        label: What its configuration is called.
        seed: None where it is not stated.
        config: Every key that is known.
        identity: Those of them that can change a result, without the seed: equal in runs of one configuration.
        matrix: Counts; a log knows only percentages, which stand as hits in 10,000 images.
        curve: A_t, fractions.
        seconds: Wall-clock time; NaN where it is not known.
        results: results.json; empty for a log.
        environment: environment.json; empty for a log.
        notes: What is odd about it, for the reader of a comparison.
    """

    path: Path
    label: str
    seed: int | None
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    matrix: AccuracyMatrix
    curve: tuple[float, ...]
    seconds: float = math.nan
    results: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_log(self) -> bool:
        """Whether it was read from a log file."""
        return not self.results

    @property
    def key(self) -> str:
        """Equal in runs of one configuration; of a run of ours the hash in its directory's name."""
        return digest(self.identity) if self.is_log else counted_digest(self.config)

    @property
    def last_task(self) -> Mapping[str, Any]:
        """What results.json says of the network after the last task; empty for a log."""
        return self.results["tasks"][-1] if self.results else {}


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        RunError: The directory is none of a run, the run is unfinished, a file is damaged, or files contradict each
            other (a file was edited).
    """
    require_files(path)
    config, environment, results = (_read(path / name) for name in (FILES[0], FILES[1], RESULTS))
    matrix = _matrix(path / RESULTS, results)
    remarks = check_events(path / "metrics.jsonl", config, results, matrix)
    name = RUN_NAME.fullmatch(path.resolve().name)
    seed = _seed(path / FILES[0], config)
    return Run(
        path=path,
        label=name["label"] if name else path.resolve().name,
        seed=seed,
        config=config,
        identity=counted(config),
        matrix=matrix,
        curve=tuple(matrix.average_accuracies),
        seconds=float(results["run"]["seconds"]),
        results=results,
        environment=environment,
        notes=(*_name_notes(name, config, seed), *remarks),
    )


def foreign_folder(path: Path) -> str:
    """Why a folder without any file of a run is left out of a comparison; empty for a run, a damaged one too."""
    if not path.is_dir() or any((path / name).exists() for name in FILES):
        return ""
    return f"{path}: left out, as it is no run directory{_runs_within(path)}"


def _runs_within(path: Path) -> str:
    return f"; runs lie in it: name them, as in {path}/*-s*" if any(path.glob(f"*/{FILES[0]}")) else ""


def require_files(path: Path) -> None:
    """Refuse a path that is no directory of a finished run.

    Raises:
        RunError: Names the file that is missing.
    """
    if not (path / FILES[0]).is_file():
        raise RunError(f"{path / FILES[0]}: missing, so {path} is no run directory{_runs_within(path)}")
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
    """The accuracy matrix of results.json, once everything else in the file that follows from it agrees."""
    try:
        matrix = AccuracyMatrix.from_json(results.get("accuracy", {}))
    except ValueError as error:
        raise RunError(f"{file}: accuracy: {error}") from None
    if not matrix.count:
        raise RunError(f"{file}: accuracy: no task was learned")
    for key, derived in matrix.summary().items():
        if key in results and not close(results[key], plain(derived)):
            raise RunError(
                f"{file}: {key} = {shown(results[key])}, but the counts give {shown(plain(derived))}; "
                "the file was edited or is damaged"
            )
    _check_shape(file, results, len(matrix.count))
    return matrix


def _check_shape(file: Path, results: Mapping[str, Any], nb_tasks: int) -> None:
    tasks, run = results.get("tasks"), results.get("run")
    seconds = run.get("seconds") if isinstance(run, dict) else None
    if not isinstance(seconds, int | float) or abs(seconds) > LONGEST_RUN:
        raise RunError(f"{file}: run.seconds = {shown(seconds)}; expected a number")
    if not isinstance(tasks, list) or len(tasks) != nb_tasks or not all(map(_is_task, tasks)):
        raise RunError(f"{file}: tasks: expected adapters and parameters for each of {nb_tasks} tasks")


def _is_task(task: object) -> bool:
    match task:
        case {"adapters": list(adapters), "parameters": dict(parameters)}:
            return "backbone" in parameters and all(map(_is_count, [*adapters, *parameters.values()]))
        case _:
            return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**53


def digest(values: Mapping[str, Any]) -> str:
    """8 hexadecimal digits over what a log states of its configuration."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _name_notes(name: re.Match[str] | None, config: Mapping[str, Any], seed: int) -> Iterator[str]:
    """Where a directory's name and its config.json disagree."""
    if name is None:
        return
    if int(name["seed"]) != seed:
        yield f"the directory's name says seed {name['seed']}, its config.json {seed}: renamed or edited"
    try:
        true_hash = result_hash(Config.model_validate(config))
    except ValidationError:
        return  # written by another version, whose hash cannot be known
    if true_hash != name["hash"]:
        yield (
            f"the directory's name says hash {name['hash']}, its config.json gives {true_hash}: edited, renamed, or "
            "written by a version with other keys"
        )


def missing_path(path: Path) -> RunError:
    """The error for a path that does not exist, with the nearest names beside it and under logs/."""
    beside = {entry.name: entry for entry in sorted(path.parent.glob("*"))}
    elsewhere = {entry.name: entry for entry in sorted(Path("logs").glob("*"))} if len(path.parts) == 1 else {}
    names = {**elsewhere, **beside}
    where = "" if path.parent.is_dir() else f" (and no folder {path.parent})"
    if path.name in names:
        return RunError(f"{path}: no such run; did you mean {names[path.name]}?")
    return RunError(f"{path}: no such run{where}{did_you_mean(path.name, names, count=3)}")
