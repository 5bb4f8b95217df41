"""A run's numbers for TensorBoard and W&B: those of the events that go into metrics.jsonl, by one writer.

The step of a point is the number of its event's line in metrics.jsonl, counted from 1. So all curves share one axis,
steps only grow, a run that goes on in another process takes back what it cut off from that file, and a point leads to
its line. The curve `progress/task` says which task that was.

W&B follows the TensorBoard files (`sync_tensorboard`), so nothing is written twice.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.schema import Config
from utils.errors import UserError
from utils.files import plain
from utils.runs.log import RunLog

FOLDER = "tensorboard"
PACKAGES = {"tensorboard": "tensorboard>=2.18", "wandb": "wandb>=0.31"}

Event = Mapping[str, Any]
Points = Iterator[tuple[str, float | None]]
Sink = Callable[..., None]  # takes an event's kind and, by name, its fields


class Scalar(NamedTuple):
    """One point of a curve."""

    tag: str
    value: float
    step: int


# ---- from events to scalars


def scalars(kind: str, fields: Event, step: int) -> list[Scalar]:
    """The points an event adds to curves; none for a kind without numbers, and none for what is not finite."""
    points = POINTS.get(kind, _none)(plain(fields))
    return [Scalar(tag, float(value), step) for tag, value in points if value is not None and math.isfinite(value)]


def _none(_: Event) -> Points:
    yield from ()


def _place(layer: object, adapter: object) -> str:
    return f"layer{layer}_adapter{adapter}"


def _phase(event: Event) -> Points:
    yield "progress/task", event["task"]
    yield "progress/cycle", event["cycle"]


def _epoch(event: Event) -> Points:
    phase = event["phase"]
    yield f"{phase}/loss", event["loss"]
    yield from ((f"{phase}/lr_{group}", rate) for group, rate in event["lr"].items())
    if phase == "func":
        yield "func/train_accuracy", event["train_accuracy"]
        yield "func/slow_updates", len(event["slow_steps"])


def _eval(event: Event) -> Points:
    yield from ((f"eval/{key}", event["accuracy"][key]) for key in ("top1", "top5"))


def _telemetry(event: Event) -> Points:
    for entry in event["layers"]:
        place = _place(entry["layer"], entry["adapter"])
        for key in ("norms", "update_norms", "share", "effective_rank"):
            yield from ((f"{key}/{of}/{place}", value) for of, value in entry[key].items())
        yield from ((f"{key}/{place}", entry[key]) for key in ("output_cosine", "update_cosine"))


def _cadence(event: Event) -> Points:
    yield "cadence/steps", event["steps"]
    yield "cadence/updates", len(event["observed"])
    yield "cadence/passed", event["passed"]


def _scan(event: Event) -> Points:
    yield from _by_adapter("scan_z", event["z"])
    yield "scan/threshold", event["threshold"]
    yield "scan/expands", event["expands"] is not None


def _mean_z(event: Event) -> Points:
    yield from _by_adapter(f"mean_z_{event['when']}", event["z"])


def _by_adapter(title: str, z: Mapping[str, list[float | None]]) -> Points:
    for layer, values in z.items():
        yield from ((f"{title}/{_place(layer, adapter)}", value) for adapter, value in enumerate(values))


def _consolidation(event: Event) -> Points:
    yield from ((f"consolidation/accuracy_{when}", event[f"accuracy_{when}"]["top1"]) for when in ("before", "after"))
    for receipt in event["receipts"]:
        place = _place(receipt["layer"], receipt["adapter"])
        keys = [key for key in receipt if key not in ("layer", "adapter", "mode", "reset")]
        yield from ((f"consolidation_{key}/{place}", receipt[key]) for key in keys)


def _branches(event: Event) -> Points:
    for name, hits in event["correct"].items():
        yield f"right_answers_{event['when']}/{name.replace('+', '_')}", sum(hits)


def _router(event: Event) -> Points:
    for layer, by_task in event["weights"].items():
        for task, weights in enumerate(by_task):
            yield from (
                (f"router/{_place(layer, adapter)}/task{task}", weight) for adapter, weight in enumerate(weights)
            )


def _task(event: Event) -> Points:
    yield from ((f"accuracy/{key}", event["accuracy"][key]) for key in ("top1", "top5"))
    yield from (
        (f"measures/{key}", event[key]) for key in ("avg_inc_acc", "last_acc", "forgetting", "bwt", "learning_accuracy")
    )
    yield from ((f"task_accuracy/task{task}", value) for task, value in enumerate(event["task_accuracy"]))
    yield from ((f"adapters/layer{layer}", count) for layer, count in enumerate(event["adapters"]))
    yield from ((f"{key}/{role}", count) for key in ("parameters", "trained") for role, count in event[key].items())
    yield "cost/multiply_adds", event["multiply_adds"]


POINTS: dict[str, Callable[[Event], Points]] = {
    "phase": _phase,
    "epoch": _epoch,
    "eval": _eval,
    "telemetry": _telemetry,
    "cadence": _cadence,
    "scan": _scan,
    "mean_z": _mean_z,
    "consolidation": _consolidation,
    "branches": _branches,
    "router": _router,
    "task": _task,
}


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
def tracked(log: RunLog, config: Config) -> Iterator[Sink]:
    """Where events go: into the run's directory and, if the configuration wants it, to the trackers after that."""
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

    Opens with the first event, so that the number of that event's line is known, whether the run begins or goes on.

    Args:
        path: The run's directory.
        config: What W&B shows as the run's configuration; its key `wandb` names the project, if there is to be one.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config
        self._writer: Any = None
        self._wandb_run: Any = None
        self._step = 0

    def following(self, write: Sink) -> Sink:
        """Have every event written, then its scalars."""

        def sink(kind: str, **fields: Any) -> None:
            write(kind, **fields)
            self.add(kind, fields)

        return sink

    def add(self, kind: str, fields: Event) -> None:
        """Write the scalars of the event whose line has just been appended to metrics.jsonl."""
        if self._writer is None:
            self._open()
        else:
            self._step += 1
        for point in scalars(kind, fields, self._step):
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

        with (self.path / "metrics.jsonl").open("rb") as file:
            self._step = sum(1 for _ in file)
        if self.config.wandb is not None:  # before the writer is made: W&B looks on from the first byte
            self._wandb_run = _start_wandb(self.config.wandb, self.path, self.config)
        self._writer = SummaryWriter(str(self.path / FOLDER), purge_step=self._step)


def _start_wandb(project: str, path: Path, config: Config) -> Any:
    """Begin a W&B run that follows TensorBoard files.

    Raises:
        UserError: W&B refuses, say for want of a key.
    """
    wandb = import_module("wandb")
    try:
        return wandb.init(
            project=project, dir=str(path), sync_tensorboard=True, name=path.name, config=config.model_dump(mode="json")
        )
    except wandb.Error as error:
        raise UserError(f"W&B does not start: {error}") from error
