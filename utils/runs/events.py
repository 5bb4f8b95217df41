"""The events of metrics.jsonl. Runs write them and tools read them through this module alone.

A line is a JSON object with the event's `kind` and its fields. An optional field that is left out is None in the event.
Numbers that are not finite are null in the file. What may differ between two equal runs, such as times, is the field
`run` of an event. It is written to times.jsonl; earlier versions wrote it to metrics.jsonl.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from utils.errors import RunError
from utils.json_file import faults, parse
from utils.text import shown

FILE = "metrics.jsonl"
TIMES = "times.jsonl"
LONGEST_LINE = 2**24  # characters of an event

E = TypeVar("E", bound="Event")
Values = dict[str, Any]
Z = dict[str, list[float | None]]  # by layer, one value for each adapter


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of all events. Types are checked when an event is read, not when it is made.

    Attributes:
        kind: Its name in the file.
        task: Number of the task.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="ignore")
    kind: ClassVar[str]
    task: int

    def __init_subclass__(cls, kind: str = "") -> None:
        cls.kind = kind

    def to_json(self) -> Values:
        """Return the object of its line, without the optional fields that are None."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {"kind": self.kind} | {k: v for k, (v, default) in values.items() if v is not None or default is MISSING}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the event of a line. Unknown fields are ignored.

        Raises:
            ValidationError: A field is missing or of another type.
        """
        reader = _reader(cls)  # type: ignore[arg-type]
        return reader.validate_json(json.dumps(values))  # strict validation takes objects in JSON only


@dataclass(frozen=True, kw_only=True)
class PhaseEvent(Event):
    """Base class of what happens in a phase."""

    cycle: int
    phase: str


@dataclass(frozen=True, kw_only=True)
class Phase(PhaseEvent, kind="phase"):
    """A phase begins, with its parameter groups (name, lr, tensors, parameters)."""

    groups: list[Values]


@dataclass(frozen=True, kw_only=True)
class Epoch(PhaseEvent, kind="epoch"):
    """An epoch of a phase ended.

    Attributes:
        loss: Mean over the images trained on.
        lr: Learning rate by parameter group.
        train_accuracy: Per cent; func phases only.
        moved: By time scale, the steps of the phase at which it was updated; func phases only.
        skipped: Batches left out because their loss was not finite.
    """

    epoch: int
    loss: float | None
    lr: dict[str, float]
    train_accuracy: float | None = None
    moved: dict[str, list[int]] | None = None
    skipped: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation(PhaseEvent, kind="eval"):
    """Accuracy on the test images in the middle of a phase (`eval_every`)."""

    epoch: int
    accuracy: Values


@dataclass(frozen=True, kw_only=True)
class Telemetry(Event, kind="telemetry"):
    """Measurements of the branches of every adapter that trains, see `utils.timescales.telemetry`."""

    cycle: int
    epoch: int
    step: int
    layers: list[Values]


@dataclass(frozen=True, kw_only=True)
class Cadence(PhaseEvent, kind="cadence"):
    """The cadence audit of one time scale in a func phase.

    Attributes:
        scale: The time scale; None in runs of earlier versions, which audited only the slowest.
        steps: Optimizer steps of the phase.
        tensors: Number of tensors that were compared.
        observed: Steps at which a value changed.
        expected: Steps at which the configuration says it changes; None if any step will do.
        passed: None before it is judged.
        idle: Steps at which neither a gradient nor weight decay could change a value; None if there were none, and in
            runs of earlier versions.
    """

    steps: int
    tensors: int
    observed: list[int]
    scale: str | None = None
    expected: list[int] | None = None
    passed: bool | None = None
    idle: list[int] | None = None

    def to_json(self) -> Values:
        """Return the object of its line; `expected` is always in it."""
        return {**super().to_json(), "expected": self.expected}


@dataclass(frozen=True, kw_only=True)
class Scan(Event, kind="scan"):
    """A batch of a scan: z of every adapter, and the layer that expands."""

    scan: int
    batch: int
    z: Z
    threshold: float
    expands: int | None


@dataclass(frozen=True, kw_only=True)
class MeanZ(Event, kind="mean_z"):
    """Mean z of a task's images before or after training on them (lifetime continual)."""

    when: Literal["before", "after"]
    z: Z


@dataclass(frozen=True, kw_only=True)
class Consolidation(Event, kind="consolidation"):
    """A consolidation: a receipt for each adapter, and the accuracy before and after it."""

    receipts: list[Values]
    accuracy_before: Values
    accuracy_after: Values


@dataclass(frozen=True, kw_only=True)
class Alignment(Event, kind="alignment"):
    """The head was trained on samples of class Gaussians (classifier_alignment).

    Attributes:
        losses: Mean of every epoch.
        head_change: Relative change of the head's weights, ||after - before|| / ||before||.
    """

    losses: list[float]
    head_change: float


@dataclass(frozen=True, kw_only=True)
class Branches(Event, kind="branches"):
    """Correct predictions on every task with only some of the adapters' branches."""

    when: Literal["before_consolidation", "after_task"]
    correct: dict[str, list[int]]
    run: Values | None = None


@dataclass(frozen=True, kw_only=True)
class Readouts(Event, kind="readouts"):
    """Correct predictions of the readouts on every task, by label; see `utils.readouts`."""

    correct: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Router(Event, kind="router"):
    """Mean mixing weight of every adapter on the images of every task: layer -> task -> adapter."""

    weights: dict[str, list[list[float | None]]]


@dataclass(frozen=True, kw_only=True)
class Task(Event, kind="task"):
    """End of a task: accuracy, structure, and the measures of the accuracy matrix so far.

    Attributes:
        adapters_off: With all adapters off, see `utils.metrics.without_adapters`.
        validation: `accuracy` on the validation images; None: there are none.
    """

    accuracy: Values
    adapters: list[int]
    parameters: dict[str, int]
    trained: dict[str, int]
    multiply_adds: int
    adapters_off: Values | None = None
    validation: Values | None = None
    task_accuracy: list[float | None] | None = None
    average_accuracy: list[float | None] | None = None
    avg_inc_acc: float | None = None
    last_acc: float | None = None
    forgetting: float | None = None
    bwt: float | None = None
    learning_accuracy: float | None = None
    transient_learned: list[float | None] | None = None
    transient_left: list[float | None] | None = None


KINDS: tuple[type[Event], ...] = (
    Phase, Epoch, Evaluation, Telemetry, Cadence, Scan, MeanZ, Consolidation, Branches, Readouts, Router, Task
)  # fmt: skip


EventSink = Callable[[Event], None]


def no_events(event: Event, /) -> None:
    """Do nothing with an event."""


def read_lines(file: Path) -> Iterator[Values]:
    """Yield the lines of a metrics.jsonl as they are, in order.

    Raises:
        RunError: The file cannot be read, or a line is not a JSON object; the message has its number.
    """
    try:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as text:
            # Lines of any length, even without end, are read in parts.
            for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE), ""), 1):
                try:
                    values = parse(line)
                except ValueError:
                    values = None
                if not isinstance(values, dict):
                    raise RunError(f"{file}: line {number}: not a JSON object: {shown(line.rstrip())}")
                yield values
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error}") from None


def read_events(file: Path, kind: type[E]) -> Iterator[E]:
    """Yield the events of one kind, in order.

    Raises:
        RunError: As `read_lines`, or a field of an event is missing or of another type.
    """
    for number, line in enumerate(read_lines(file), 1):
        if line.get("kind") == kind.kind:
            try:
                yield kind.from_json(line)
            except ValidationError as error:
                place = f"{file}: line {number}: {kind.kind} event"
                raise RunError(f"{place}: {faults(error)}; the file was edited or is damaged") from None
