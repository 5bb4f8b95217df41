"""Read finished runs, and refuse those that are incomplete, damaged or edited."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tools.finished.checks import CHECKS
from tools.finished.run import RUN_NAME
from tools.finished.run import Run as Run
from tools.finished.run import digest as digest
from utils.config.identity import counted
from utils.config.schema import renamed
from utils.errors import RunError as RunError
from utils.json_file import faults, read_object
from utils.metrics import AccuracyMatrix
from utils.runs.directory import CONFIG, ENVIRONMENT, RESULTS
from utils.runs.events import FILE as METRICS
from utils.runs.images import RECORD
from utils.text import did_you_mean
from utils.timescales.scales import NEITHER

FILES = (CONFIG, RESULTS, METRICS, ENVIRONMENT)
PAGES = (".md", ".html")  # of a sweep or a report
LONGEST_RUN = 1e9  # seconds

M = TypeVar("M", bound=BaseModel)
Matrix = Annotated[AccuracyMatrix, PlainValidator(AccuracyMatrix.from_json)]
Number = Annotated[int, Field(ge=0, lt=2**53)]


class _Config(BaseModel, strict=True):
    seed: Annotated[list[int], Field(min_length=1, max_length=1)]


class _Off(BaseModel, strict=True):
    correct: list[Number]
    changed: Number
    images: Number


class _Task(BaseModel, strict=True):
    adapters: list[Number]
    parameters: dict[str, Number]
    adapters_off: _Off | None = None


Seconds = Annotated[float, Field(ge=-LONGEST_RUN, le=LONGEST_RUN)]


class _Clock(BaseModel, strict=True):
    seconds: Seconds
    training_seconds_per_task: list[Seconds] | None = None


class _Validation(BaseModel, strict=True):
    accuracy: Matrix


class _Results(BaseModel, strict=True):
    accuracy: Matrix
    tasks: list[_Task]
    run: _Clock
    branches: dict[str, Matrix] = {}
    validation: _Validation | None = None
    readouts: dict[str, Matrix] = {}

    @field_validator("tasks")
    @classmethod
    def _are_those_of_the_matrix(cls, tasks: list[_Task], info: ValidationInfo) -> list[_Task]:
        count = len(info.data["accuracy"].count) if "accuracy" in info.data else len(tasks)
        if not tasks or len(tasks) != count or not all("backbone" in task.parameters for task in tasks):
            raise ValueError(f"expected adapters and parameters for each of {count} tasks, at least one")
        return tasks

    @model_validator(mode="after")
    def _validation_is_of_the_tasks(self) -> Self:
        if self.validation and self.validation.accuracy.task_sizes != self.accuracy.task_sizes:
            raise ValueError("accuracy on validation images is of other tasks")
        return self

    @model_validator(mode="after")
    def _off_is_a_matrix(self) -> Self:
        self.off  # noqa: B018  # raises ValueError
        return self

    @property
    def off(self) -> AccuracyMatrix:
        rows = [task.adapters_off and task.adapters_off.correct for task in self.tasks]
        if not any(rows) and NEITHER in self.branches:  # of an earlier version
            return self.branches[NEITHER]
        return AccuracyMatrix.from_json({**self.accuracy.to_json(), "correct": rows})


def read_run(path: Path) -> Run:
    """Read a run directory, and check that its files agree.

    Raises:
        UserError: As `parse_run`, or files contradict each other.
    """
    run = parse_run(path)
    for check in CHECKS:
        if check.severity == "refuse" and (found := check.faults(run)):
            raise RunError(found[0])
    return replace(run, notes=tuple(note for c in CHECKS if c.severity == "note" for note in c.faults(run)))


def parse_run(path: Path) -> Run:
    """Read a run directory, without a check that its files agree.

    Raises:
        UserError: The path is not a run directory, the run is unfinished, or a file is damaged.
    """
    require_files(path)
    config, environment, results = (_read(path / name) for name in (CONFIG, ENVIRONMENT, RESULTS))
    config = renamed(config)
    found = _checked(path / RESULTS, results, _Results)
    training = found.run.training_seconds_per_task
    name = RUN_NAME.fullmatch(path.resolve().name)
    return Run(
        path=path,
        label=name["label"] if name else path.resolve().name,
        seed=_checked(path / CONFIG, config, _Config).seed[0],
        config=config,
        identity=counted(config),
        matrix=found.accuracy,
        curve=tuple(found.accuracy.average_accuracies),
        branches=found.branches,
        validation=found.validation.accuracy if found.validation else AccuracyMatrix(),
        readouts=found.readouts,
        off=found.off,
        seconds=found.run.seconds,
        training=math.nan if training is None else sum(training),
        results=results,
        environment=environment,
        data=_read(path / RECORD) if (path / RECORD).is_file() else {},
    )


def _read(file: Path) -> dict[str, Any]:
    values, repeated = read_object(file)
    if repeated:
        raise RunError(f"{file}: {repeated[0]} is given twice; the file was edited or is damaged")
    return values


def _checked(file: Path, values: Mapping[str, Any], model: type[M]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RunError(f"{file}: {faults(error)}") from None


def foreign_path(path: Path) -> str:
    """Return why a path that `logs/*` may name too is left out; empty for a run, even a damaged one, and for a log.

    Left out are folders without any file of a run, such as that of a sweep, and pages beside the runs.
    """
    if path.is_dir() and not any((path / name).exists() for name in FILES):
        return f"{path}: left out, it is not a run directory{_runs_within(path)}"
    if path.is_file() and path.suffix in PAGES:
        return f"{path}: left out, it is a page about runs, not a run"
    return ""


def unfinished(path: Path) -> str:
    """Return why a comparison leaves out a run without results; empty for another path."""
    if not (path / CONFIG).is_file() or (path / RESULTS).exists():
        return ""
    return f"{path}: left out, the run is unfinished; to finish it: python main.py --resume {shlex.quote(str(path))}"


def _runs_within(path: Path) -> str:
    return f"; it contains runs, which can be given as {path}/*-s*" if any(path.glob(f"*/{CONFIG}")) else ""


def require_files(path: Path) -> None:
    """Check that a path is the directory of a finished run.

    Raises:
        RunError: A file is missing.
    """
    for name in FILES:
        if not (path / name).is_file():
            reasons = {CONFIG: f"{path} is not a run directory{_runs_within(path)}", RESULTS: "the run is unfinished"}
            raise RunError(f"{path / name}: missing; {reasons.get(name, 'the run directory is damaged')}")


def missing_path(path: Path) -> RunError:
    """Return the error for a path that does not exist, with the nearest names beside it and under logs/."""
    folders = [Path("logs"), path.parent] if len(path.parts) == 1 else [path.parent]
    names = {entry.name: entry for folder in folders for entry in sorted(folder.glob("*"))}
    if path.name in names:
        return RunError(f"{path}: no such run; did you mean {names[path.name]}?")
    where = "" if path.parent.is_dir() else f" (and no folder {path.parent})"
    return RunError(f"{path}: no such run{where}{did_you_mean(path.name, names, count=3)}")
