"""Curves for TensorBoard and W&B: the numbers of metrics.jsonl.

A tag is the path to a number in its event, such as `epoch/func/loss` or `telemetry/share/slow/layer3_adapter0`. The
step of a point is the line number of its event in metrics.jsonl, counted from 1. So all curves share one axis, and a
resumed run replaces the points of the lines it repeats. W&B reads the TensorBoard files (`sync_tensorboard`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from utils.config.schema import Config
from utils.errors import UserError
from utils.files import plain
from utils.runs.events import FILE, Event, EventSink
from utils.runs.log import RunLog

FOLDER = "tensorboard"
PACKAGES = {"tensorboard": "tensorboard>=2.18", "wandb": "wandb>=0.31"}
STEPS = {"moved", "skipped", "observed", "expected"}  # fields with lists of steps


def scalars(event: Event) -> dict[str, float]:
    """Return the finite numbers of an event by tag.

    Strings of the event, such as its phase, are part of the tag. Layer and adapter come last. A list of steps counts as
    its length.
    """
    return {tag.replace("+", "_"): value for tag, value in _points(plain(event.to_json()))}


def _points(value: Any, path: tuple[str, ...] = (), place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float):
        yield "/".join([*path, place] if place else path), float(value)
    elif isinstance(value, list) and STEPS & {*path}:
        yield "/".join(path), float(len(value))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            if isinstance(inner, dict):
                yield from _points(inner, path, place)
            elif isinstance(inner, list):  # the router's weights, by layer, task and adapter
                yield from _points(inner, (*path, f"task{number}"), place)
            elif place:
                yield from _points(inner, path, f"{place}_adapter{number}")
            else:
                yield from _points(inner, (*path, str(number)))
    elif isinstance(value, dict):
        if "adapter" in value:  # an entry of telemetry, a receipt of a consolidation
            path, place = path[:1], f"layer{value['layer']}_adapter{value['adapter']}"
            value = {key: inner for key, inner in value.items() if key not in ("layer", "adapter")}
        else:
            path = (*path, *(inner for inner in value.values() if isinstance(inner, str)))
        for key, inner in value.items():
            if key.isdigit():
                yield from _points(inner, path, f"layer{key}")
            else:
                yield from _points(inner, (*path, key), place)


def _packages(config: Config) -> list[str]:
    wanted = {"tensorboard": config.tensorboard or config.wandb is not None, "wandb": config.wandb is not None}
    return [package for package in PACKAGES if wanted[package]]


def require_trackers(config: Config) -> None:
    """Check that the trackers of a configuration are installed.

    Raises:
        UserError: With the command that installs the missing package.
    """
    for package in _packages(config):
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(f"{package} is not installed: pip install '{PACKAGES[package]}' ({error})") from None


@contextmanager
def tracked(log: RunLog, config: Config) -> Iterator[EventSink]:
    """Return where events go: into the run's directory and, if the configuration says so, to the trackers."""
    with ExitStack() as stack:
        yield Tracker(log, config, stack).event if _packages(config) else log.event


class Tracker:
    """Writes events into a run's directory, and their numbers into TensorBoard files there.

    Args:
        log: The run's directory.
        config: What W&B shows as the run's configuration; its key `wandb` names the project, if any.
        stack: Closes the files and ends the W&B run.
    """

    def __init__(self, log: RunLog, config: Config, stack: ExitStack) -> None:
        self.log, self.config, self.stack = log, config, stack
        self._writer: Any = None
        self._step = 0

    def event(self, event: Event) -> None:
        """Write an event, then its numbers."""
        self.log.event(event)
        self._step += 1
        if self._writer is None:  # only now is the event's line number known: resuming cuts metrics.jsonl
            self._open()
        for tag, value in scalars(event).items():
            self._writer.add_scalar(tag, value, self._step)

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with (self.log.path / FILE).open("rb") as file:
            self._step = sum(1 for _ in file)
        if self.config.wandb is not None:  # before the writer is made, which W&B then follows
            self._start_wandb(self.config.wandb)
        folder = str(self.log.path / FOLDER)
        self._writer = self.stack.enter_context(SummaryWriter(folder, purge_step=self._step))

    def _start_wandb(self, project: str) -> None:
        wandb, path = import_module("wandb"), self.log.path
        values = self.config.model_dump(mode="json")
        try:
            run = wandb.init(project=project, dir=str(path), sync_tensorboard=True, name=path.name, config=values)
        except wandb.Error as error:
            raise UserError(f"W&B cannot be started: {error}") from error
        self.stack.push(lambda kind, *_: run.finish(exit_code=int(kind is not None)))
