"""What a run recorded, its metrics.jsonl: the events, and whether they agree with the run's other files."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.cadence import judge
from utils.config import with_defaults
from utils.config_text import shown
from utils.errors import RunError
from utils.files import plain
from utils.metrics import AccuracyMatrix
from utils.runlog import RESULTS

Event = Mapping[str, Any]


def read_events(file: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of a metrics.jsonl, in order; only those of one kind if it is given.

    Raises:
        RunError: A line is no JSON object; the message has its number.
    """
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise RunError(f"{file}: line {number}: not a JSON object: {shown(line)}")
        if kind in (None, event.get("kind")):
            yield event


def check_events(file: Path, config: Mapping[str, Any], matrix: AccuracyMatrix) -> list[str]:
    """Hold a run's events against its configuration and its results.

    Args:
        file: Its metrics.jsonl.
        config: Its config.json.
        matrix: The accuracies in its results.json.

    Returns:
        What a reader of a comparison must know: the func phases whose cadence audit failed.

    Raises:
        RunError: They contradict each other, so one of the files was edited.
    """
    by_kind: dict[str, list[Event]] = {}
    for event in read_events(file):
        by_kind.setdefault(str(event.get("kind")), []).append(event)
    _check_tasks(file, by_kind.get("task", []), matrix)
    cadences = by_kind.get("cadence", [])
    judged = [_judged(file, event, config) for event in cadences]
    return [_failure(file, event) for event in judged if not event["passed"]]


def _check_tasks(file: Path, events: Sequence[Event], matrix: AccuracyMatrix) -> None:
    """Hold the accuracies logged after every task against the final matrix."""
    rows = matrix.matrix
    for event in events:
        task = event.get("task")
        row = plain(rows[task, : task + 1]) if isinstance(task, int) and 0 <= task < len(rows) else None
        if row is None or not close(event.get("task_accuracy"), row):
            logged = shown(event.get("task_accuracy"))
            raise RunError(
                f"{file}: task {task}: accuracies {logged}, but {RESULTS} gives {shown(row)}; a file was edited"
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
        case [int() | float(), int() | float()]:
            return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
        case _:
            return a == b
