"""What a run recorded, its metrics.jsonl: the events, and whether they agree with the run's other files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config.load import with_defaults
from utils.errors import RunError
from utils.files import plain
from utils.json_file import parse
from utils.metrics import AccuracyMatrix
from utils.runs.directory import RESULTS
from utils.text import shown
from utils.timescales.judge import judge

Event = Mapping[str, Any]
LONGEST_LINE = 2**24  # characters of an event


def read_events(file: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of a metrics.jsonl, in order; only those of one kind if it is given.

    Raises:
        RunError: A line is no JSON object; the message has its number.
    """
    for number, line in enumerate(_lines(file), 1):
        try:
            event = parse(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise RunError(f"{file}: line {number}: not a JSON object: {shown(line)}")
        if kind in (None, event.get("kind")):
            yield event


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file one by one, so that neither the file nor a line without end has to fit into memory."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as text:
            while line := text.readline(LONGEST_LINE):
                yield line.removesuffix("\n")
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error}") from None


def check_events(
    file: Path, config: Mapping[str, Any], results: Mapping[str, Any], matrix: AccuracyMatrix
) -> list[str]:
    """Hold a run's events against its configuration and its results.

    Args:
        file: Its metrics.jsonl.
        config: Its config.json.
        results: Its results.json.
        matrix: The accuracies in there.

    Returns:
        What a reader of a comparison must know: the func phases whose cadence audit failed.

    Raises:
        RunError: They contradict each other, so one of the files was edited.
    """
    by_kind: dict[str, list[Event]] = {}
    for event in read_events(file):
        by_kind.setdefault(str(event.get("kind")), []).append(event)
    _check_tasks(file, by_kind.get("task", []), results, matrix)
    after_task = [event for event in by_kind.get("branches", []) if event.get("when") == "after_task"]
    _check_branches(file, after_task, results, matrix)
    judged = [_judged(file, event, config) for event in by_kind.get("cadence", [])]
    _check_phases(file, by_kind.get("phase", []), judged)
    return [_failure(file, event) for event in judged if not event["passed"]]


def _check_tasks(file: Path, events: Sequence[Event], results: Mapping[str, Any], matrix: AccuracyMatrix) -> None:
    """Hold what was logged after every task against the counts, and against what the results say of the task."""
    _require_tasks(file, "task", events, len(matrix.count))
    for task, event in enumerate(events):
        end = task + 1
        until = AccuracyMatrix(matrix.task_sizes[:end], matrix.count[:end], matrix.correct[:end])
        for key, value in {**plain(until.summary()), **results["tasks"][task]}.items():
            if key in event and not close(event[key], value):
                raise RunError(
                    f"{file}: task {task}: {key} = {shown(event[key])}, but {RESULTS} gives {shown(value)}; "
                    "a file was edited"
                )


def _check_branches(file: Path, events: Sequence[Event], results: Mapping[str, Any], matrix: AccuracyMatrix) -> None:
    """Hold the matrices of the branches against each other and against the right answers logged after every task."""
    measured = _branches(file.with_name(RESULTS), results.get("branches", {}), matrix)
    _require_tasks(file, "branches", events, len(matrix.count) if measured else 0)
    for task, event in enumerate(events):
        hits = {name: branch.correct[task] for name, branch in measured.items()}
        if event.get("correct") != hits:
            raise RunError(
                f"{file}: task {task}: right answers by branch {shown(event.get('correct'))}, but {RESULTS} gives "
                f"{shown(hits)}; a file was edited"
            )


def _branches(file: Path, values: object, whole: AccuracyMatrix) -> dict[str, AccuracyMatrix]:
    """The branches in results.json, once they are of the same images as the whole, and both branches are the whole."""
    if not isinstance(values, dict):
        raise RunError(f"{file}: branches = {shown(values)}; expected an accuracy matrix for each branch")
    try:
        found = {name: AccuracyMatrix.from_json(matrix) for name, matrix in values.items()}
    except ValueError as error:
        raise RunError(f"{file}: branches: {error}") from None
    for name, matrix in found.items():
        if (matrix.task_sizes, matrix.count) != (whole.task_sizes, whole.count):
            raise RunError(f"{file}: branches: {name} is not of the images that accuracy is of; the file was edited")
    if found.get("slow+fast", whole) != whole:
        raise RunError(f"{file}: branches: slow+fast differs from accuracy; the file was edited")
    return found


def _require_tasks(file: Path, kind: str, events: Sequence[Event], nb_tasks: int) -> None:
    """One event for each task, in order."""
    found, wanted = [event.get("task") for event in events], [*range(nb_tasks)]
    if found != wanted:
        raise RunError(
            f"{file}: {kind} events of tasks {shown(found)}, but {RESULTS} asks for those of {shown(wanted)}; a file "
            "was edited or is damaged"
        )


# ---- cadence


def _judged(file: Path, event: Event, config: Mapping[str, Any]) -> Event:
    """A cadence event, once its verdict is the one that follows from what was observed."""
    try:
        again = judge(event, with_defaults(config))
    except (KeyError, TypeError) as error:
        raise RunError(f"{file}: a cadence event is not as a run writes it: {error!r}") from None
    for key in ("expected", "passed"):
        if event.get(key) != again[key]:
            raise RunError(
                f"{file}: {_phase(event)}: the cadence audit states {key} = {shown(event.get(key))}, but what it "
                f"observed and config.json give {shown(again[key])}; a file was edited"
            )
    return event


def _check_phases(file: Path, phases: Sequence[Event], cadences: Sequence[Event]) -> None:
    """Every func phase with a slow group has its audit."""
    audited = {_phase(event) for event in cadences}
    for phase in phases:
        groups = phase.get("groups")
        names = [group.get("name") for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
        if "slow" in names and _phase(phase) not in audited:
            raise RunError(f"{file}: {_phase(phase)}: slow trained, but there is no cadence event; a line was removed")


def _failure(file: Path, event: Event) -> str:
    return (
        f"{file.name}: the cadence audit failed in {_phase(event)}: slow moved at {len(event['observed'])} of "
        f"{event['steps']} steps, the configuration says {len(event['expected'])}"
    )


def _phase(event: Event) -> str:
    return f"task {event.get('task')} cycle {event.get('cycle')}"


# ---- values


def close(a: object, b: object) -> bool:
    """Whether two JSON values are equal, numbers up to the rounding of another machine's sums."""
    match a, b:
        case [list(), list()]:
            return len(a) == len(b) and all(map(close, a, b))
        case [dict(), dict()]:
            return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
        case [int() | float(), int() | float()]:
            return _are_close(a, b)
        case _:
            return a == b


def _are_close(a: float, b: float) -> bool:
    try:
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    except OverflowError:  # an integer beyond all floats
        return a == b
