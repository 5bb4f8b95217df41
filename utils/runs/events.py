"""The events of metrics.jsonl: what each kind holds. Runs write them and tools read them through this module alone.

A line is a JSON object with the event's `kind` and its fields. A field that may be left out is None in the object that
is read. Numbers that are not finite are null in the file. What differs between two equal runs stands under `run`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from utils.errors import RunError
from utils.json_file import faults, parse
from utils.text import shown

FILE = "metrics.jsonl"
LONGEST_LINE = 2**24  # characters of an event

E = TypeVar("E", bound="Event")
Values = dict[str, Any]
Z = dict[str, list[float | None]]  # by layer, one value for each adapter


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events have in common.

    Attributes:
        kind: Its name in the file.
    """

    kind: ClassVar[str]

    def to_json(self) -> Values:
        """The object of its line. An optional field that is None is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        optional = {f.name for f in fields(self) if f.default is not MISSING}
        return {"kind": self.kind} | {k: v for k, v in values.items() if v is not None or k not in optional}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The event of a line. Fields that this version does not know are dropped.

        Raises:
            ValidationError: A field is missing, or its value is of another type.
        """
        return cls(**dict(_model(cls).model_validate(values)))  # type: ignore[arg-type]


@cache
def _model(kind: Any) -> type[BaseModel]:
    """A model that checks the types of an event's fields; events that are written are not checked."""
    types = get_type_hints(kind)
    required = {f.name: (types[f.name], ...) for f in fields(kind) if f.default is MISSING}
    optional = {f.name: (types[f.name], f.default) for f in fields(kind) if f.default is not MISSING}
    config = ConfigDict(strict=True, extra="ignore")
    return create_model(kind.__name__, __config__=config, **required, **optional)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """A phase begins: its parameter groups (name, lr, tensors, parameters)."""

    kind: ClassVar[str] = "phase"
    task: int
    cycle: int
    phase: str
    groups: list[Values]


@dataclass(frozen=True, kw_only=True)
class Epoch(Event):
    """An epoch of a phase ended.

    Attributes:
        loss: Mean over the images trained on.
        lr: Rate by parameter group.
        train_accuracy: Per cent; func phases only.
        moved: By time scale, the steps of the phase at which its gate let it move; func phases only.
        skipped: Batches left out because their loss was not finite.
    """

    kind: ClassVar[str] = "epoch"
    task: int
    cycle: int
    phase: str
    epoch: int
    loss: float | None
    lr: dict[str, float]
    train_accuracy: float | None = None
    moved: dict[str, list[int]] | None = None
    skipped: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Event):
    """The test images were scored in the middle of a phase (`eval_every`)."""

    kind: ClassVar[str] = "eval"
    task: int
    cycle: int
    phase: str
    epoch: int
    accuracy: Values


@dataclass(frozen=True, kw_only=True)
class Telemetry(Event):
    """The branches of every adapter in training, see `utils.timescales.telemetry`."""

    kind: ClassVar[str] = "telemetry"
    task: int
    cycle: int
    epoch: int
    step: int
    layers: list[Values]


@dataclass(frozen=True, kw_only=True)
class Cadence(Event):
    """The cadence audit of one time scale in a func phase.

    Attributes:
        scale: The time scale; None in runs of earlier versions, which audited the slowest alone.
        steps: Optimizer steps of the phase.
        tensors: Tensors that were watched.
        observed: The steps at which a value changed.
        expected: The steps at which the configuration says it does; None: it promises no stillness.
        passed: The verdict; None before it is judged.
    """

    kind: ClassVar[str] = "cadence"
    task: int
    cycle: int
    phase: str
    steps: int
    tensors: int
    observed: list[int]
    scale: str | None = None
    expected: list[int] | None = None
    passed: bool | None = None

    def to_json(self) -> Values:
        """As any event, but `expected` is always there."""
        return {**super().to_json(), "expected": self.expected}


@dataclass(frozen=True, kw_only=True)
class Scan(Event):
    """A batch of a scan was looked at: z of every adapter, and which layer expands."""

    kind: ClassVar[str] = "scan"
    task: int
    scan: int
    batch: int
    z: Z
    threshold: float
    expands: int | None


@dataclass(frozen=True, kw_only=True)
class MeanZ(Event):
    """Mean z of a task's images before or after training on it (lifetime continual)."""

    kind: ClassVar[str] = "mean_z"
    task: int
    when: Literal["before", "after"]
    z: Z


@dataclass(frozen=True, kw_only=True)
class Consolidation(Event):
    """A consolidation: a receipt for each adapter, and the accuracy before and after it."""

    kind: ClassVar[str] = "consolidation"
    task: int
    receipts: list[Values]
    accuracy_before: Values
    accuracy_after: Values


@dataclass(frozen=True, kw_only=True)
class Branches(Event):
    """Right answers on every task with some of the adapters' branches only."""

    kind: ClassVar[str] = "branches"
    task: int
    when: Literal["before_consolidation", "after_task"]
    correct: dict[str, list[int]]
    run: Values | None = None


@dataclass(frozen=True, kw_only=True)
class Router(Event):
    """Mean mixing weight of every adapter on the images of every task: layer -> task -> adapter."""

    kind: ClassVar[str] = "router"
    task: int
    weights: dict[str, list[list[float | None]]]


@dataclass(frozen=True, kw_only=True)
class Task(Event):
    """A task is learned: accuracy, structure, and what follows from the accuracy matrix so far."""

    kind: ClassVar[str] = "task"
    task: int
    accuracy: Values
    adapters: list[int]
    parameters: dict[str, int]
    trained: dict[str, int]
    multiply_adds: int
    task_accuracy: list[float | None] | None = None
    average_accuracy: list[float | None] | None = None
    avg_inc_acc: float | None = None
    last_acc: float | None = None
    forgetting: float | None = None
    bwt: float | None = None
    learning_accuracy: float | None = None


KINDS: tuple[type[Event], ...] = (
    Phase, Epoch, Evaluation, Telemetry, Cadence, Scan, MeanZ, Consolidation, Branches, Router, Task
)  # fmt: skip


EventSink = Callable[[Event], None]


def no_events(event: Event, /) -> None:
    """Where events go when nobody keeps them."""


def read_lines(file: Path) -> Iterator[Values]:
    """The lines of a metrics.jsonl as they are, in order.

    Raises:
        RunError: A line is no JSON object; the message has its number.
    """
    for number, line in enumerate(_lines(file), 1):
        try:
            values = parse(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise RunError(f"{file}: line {number}: not a JSON object: {shown(line)}")
        yield values


def read_events(file: Path, kind: type[E]) -> Iterator[E]:
    """The events of one kind, in order.

    Raises:
        RunError: A line is no JSON object, or an event lacks a field or has one of another type.
    """
    for number, line in enumerate(read_lines(file), 1):
        if line.get("kind") == kind.kind:
            try:
                yield kind.from_json(line)
            except ValidationError as error:
                place = f"{file}: line {number}: {kind.kind} event"
                raise RunError(f"{place}: {faults(error)}; the file was edited or is damaged") from None


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file one by one, so that neither the file nor a line without end has to fit into memory."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as text:
            while line := text.readline(LONGEST_LINE):
                yield line.removesuffix("\n")
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error}") from None
