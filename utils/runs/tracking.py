"""Curves for TensorBoard and W&B, from the events that go into metrics.jsonl.

The step of a point is the number of its event's line in metrics.jsonl, counted from 1, so that all curves have one axis
and a run that is resumed replaces the points of the lines that it repeats. The curve `progress/task` shows the task of
each step. W&B reads the TensorBoard files (`sync_tensorboard`).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.schema import Config
from utils.errors import UserError
from utils.files import plain
from utils.runs import events
from utils.runs.events import FILE, Event, EventSink
from utils.runs.log import RunLog

FOLDER = "tensorboard"
PACKAGES = {"tensorboard": "tensorboard>=2.18", "wandb": "wandb>=0.31"}

Points = Iterator[tuple[str, Any]]  # tag and value


class Scalar(NamedTuple):
    """One point of a curve."""

    tag: str
    value: float
    step: int


# ---- from events to scalars


def scalars(event: Event, step: int) -> list[Scalar]:
    """The points an event adds to curves; none for what is not a finite number."""
    found = ((tag, plain(value)) for tag, value in points(event))
    return [Scalar(tag, float(value), step) for tag, value in found if isinstance(value, int | float)]


@singledispatch
def points(event: Event) -> Points:
    """The points of an event; none for a kind without numbers."""
    yield from ()


@points.register
def _phase(event: events.Phase) -> Points:
    yield "progress/task", event.task
    yield "progress/cycle", event.cycle


@points.register
def _epoch(event: events.Epoch) -> Points:
    yield f"{event.phase}/loss", event.loss
    yield f"{event.phase}/train_accuracy", event.train_accuracy
    yield from _each(f"{event.phase}/lr_", event.lr)
    yield from ((f"{event.phase}/{scale}_updates", len(steps)) for scale, steps in (event.moved or {}).items())


@points.register
def _evaluation(event: events.Evaluation) -> Points:
    yield from _tops("eval", event.accuracy)


@points.register
def _telemetry(event: events.Telemetry) -> Points:
    for entry in event.layers:
        place = _place(entry["layer"], entry["adapter"])
        for key in ("norms", "update_norms", "share", "effective_rank"):
            yield from _each(f"{key}/", entry[key], f"/{place}")
        for key in ("output_cosine", "update_cosine"):
            found = entry[key]  # a number for a single pair of branches, otherwise numbers by pair
            by_pair = {f"/{pair}": x for pair, x in found.items()} if isinstance(found, Mapping) else {"": found}
            yield from _each(key, by_pair, f"/{place}")


@points.register
def _cadence(event: events.Cadence) -> Points:
    yield "cadence/steps", event.steps
    yield "cadence/updates", len(event.observed)
    yield "cadence/passed", event.passed


@points.register
def _scan(event: events.Scan) -> Points:
    yield from _by_adapter("scan_z", event.z)
    yield "scan/threshold", event.threshold
    yield "scan/expands", event.expands is not None


@points.register
def _mean_z(event: events.MeanZ) -> Points:
    yield from _by_adapter(f"mean_z_{event.when}", event.z)


@points.register
def _consolidation(event: events.Consolidation) -> Points:
    yield "consolidation/accuracy_before", event.accuracy_before["top1"]
    yield "consolidation/accuracy_after", event.accuracy_after["top1"]
    for receipt in event.receipts:
        place = _place(receipt["layer"], receipt["adapter"])
        measured = {key: value for key, value in receipt.items() if key not in ("layer", "adapter")}
        yield from _each("consolidation_", measured, f"/{place}")


@points.register
def _branches(event: events.Branches) -> Points:
    yield from _each(f"right_answers_{event.when}/", {name: sum(hits) for name, hits in event.correct.items()})


@points.register
def _router(event: events.Router) -> Points:
    for layer, by_task in event.weights.items():
        for task, weights in enumerate(by_task):
            yield from ((f"router/{_place(layer, number)}/task{task}", weight) for number, weight in enumerate(weights))


@points.register
def _task(event: events.Task) -> Points:
    yield from _tops("accuracy", event.accuracy)
    for key in ("avg_inc_acc", "last_acc", "forgetting", "bwt", "learning_accuracy"):
        yield f"measures/{key}", getattr(event, key)
    yield from ((f"task_accuracy/task{task}", value) for task, value in enumerate(event.task_accuracy or ()))
    yield from ((f"adapters/layer{layer}", count) for layer, count in enumerate(event.adapters))
    yield from _each("parameters/", event.parameters)
    yield from _each("trained/", event.trained)
    yield "cost/multiply_adds", event.multiply_adds


def _place(layer: object, adapter: object) -> str:
    return f"layer{layer}_adapter{adapter}"


def _each(before: str, values: Mapping[str, Any], after: str = "") -> Points:
    """A point for every value, with its name in the tag; `+`, which tags cannot have, becomes `_`."""
    yield from ((f"{before}{name.replace('+', '_')}{after}", value) for name, value in values.items())


def _tops(title: str, accuracy: Mapping[str, Any]) -> Points:
    yield from ((f"{title}/{key}", accuracy[key]) for key in ("top1", "top5"))


def _by_adapter(title: str, z: Mapping[str, Iterable[float | None]]) -> Points:
    for layer, values in z.items():
        yield from ((f"{title}/{_place(layer, adapter)}", value) for adapter, value in enumerate(values))


# ---- the writer


def require_trackers(config: Config) -> None:
    """Refuse a configuration whose trackers are not installed.

    Raises:
        UserError: With the command that installs what is missing.
    """
    for package in _packages(config):
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(f"{package} is not installed: pip install '{PACKAGES[package]}' ({error})") from None


def _packages(config: Config) -> list[str]:
    wanted = {"tensorboard": config.tensorboard or config.wandb is not None, "wandb": config.wandb is not None}
    return [package for package in PACKAGES if wanted[package]]


@contextmanager
def tracked(log: RunLog, config: Config) -> Iterator[EventSink]:
    """Where events go: into the run's directory and then, if the configuration asks for it, to the trackers."""
    if not _packages(config):
        yield log.event
        return
    tracker = Tracker(log.path, config)
    failed = True
    try:
        yield tracker.following(log.event)
        failed = False
    finally:
        tracker.close(failed)


class Tracker:
    """Writes the scalars of a run's events into TensorBoard files in its directory.

    Opens its files with the first event, when the number of that event's line is known.

    Args:
        path: The run's directory.
        config: What W&B shows as the run's configuration; its key `wandb` names the project, if there is to be one.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config
        self._writer: Any = None
        self._wandb_run: Any = None
        self._step = 0

    def following(self, write: EventSink) -> EventSink:
        """A sink that writes every event, then its scalars."""

        def sink(event: Event) -> None:
            write(event)
            self.add(event)

        return sink

    def add(self, event: Event) -> None:
        """Write the scalars of the event whose line has just been appended to metrics.jsonl."""
        if self._writer is None:
            self._open()
        else:
            self._step += 1
        for point in scalars(event, self._step):
            self._writer.add_scalar(*point)

    def close(self, failed: bool) -> None:
        """Flush the files and end the W&B run.

        Args:
            failed: Whether the run stopped before its end.
        """
        if self._writer is not None:
            self._writer.close()
        if self._wandb_run is not None:
            self._wandb_run.finish(exit_code=int(failed))

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with (self.path / FILE).open("rb") as file:
            self._step = sum(1 for _ in file)
        if self.config.wandb is not None:  # before the writer is made, which W&B then follows
            self._wandb_run = _start_wandb(self.config.wandb, self.path, self.config)
        self._writer = SummaryWriter(str(self.path / FOLDER), purge_step=self._step)


def _start_wandb(project: str, path: Path, config: Config) -> Any:
    """Start a W&B run that follows TensorBoard files.

    Raises:
        UserError: W&B does not start, for example because there is no API key.
    """
    wandb = import_module("wandb")
    try:
        return wandb.init(
            project=project, dir=str(path), sync_tensorboard=True, name=path.name, config=config.model_dump(mode="json")
        )
    except wandb.Error as error:
        raise UserError(f"W&B cannot be started: {error}") from error
