"""Curves for TensorBoard and W&B: the numbers of metrics.jsonl.

A tag is the path to a number in its event, such as `epoch/func/loss` or `telemetry/share/slow/layer3_adapter0`. The
step of a point is the line number of its event in metrics.jsonl, counted from 1. So all curves share one axis, and a
resumed run replaces the points of the lines it repeats. W&B reads the TensorBoard files (`sync_tensorboard`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

from utils.config.identity import on_record
from utils.config.schema import Config
from utils.errors import UserError
from utils.files import plain
from utils.json_file import read_object
from utils.runs.directory import ENVIRONMENT
from utils.runs.environment import require_package
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
        if {"layer", "adapter"} <= value.keys():  # an entry of telemetry, a receipt of a consolidation
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
        require_package(package, PACKAGES[package])


@contextmanager
def tracked(log: RunLog, config: Config) -> Iterator[EventSink]:
    """Return where events go: into the run's directory and, if the configuration says so, to the trackers.

    Steps count from the lines that metrics.jsonl has now. W&B ends the run as failed if an exception passes.
    """
    if not _packages(config):
        yield log.event
        return
    from torch.utils.tensorboard import SummaryWriter

    file = log.path / FILE
    first = file.read_bytes().count(b"\n") + 1 if file.exists() else 1
    steps = count(first)
    with ExitStack() as stack:
        if config.wandb is not None:  # before the writer is made, which W&B then follows
            run = _start_wandb(config.wandb, log.path, config)
            stack.push(lambda kind, *_: run.finish(exit_code=int(kind is not None)))
        writer = stack.enter_context(SummaryWriter(str(log.path / FOLDER), purge_step=first))

        def record(event: Event) -> None:
            log.event(event)
            step = next(steps)
            for tag, value in scalars(event).items():
                writer.add_scalar(tag, value, step)

        yield record


def _start_wandb(project: str, path: Path, config: Config) -> Any:
    wandb, values = require_package("wandb", PACKAGES["wandb"]), on_record(config)
    # A resumed run has the same start on record, so that its curves go on; a run that begins again has another.
    begun = f"{path.name} {read_object(path / ENVIRONMENT)[0].get('started')}"
    names = {"id": blake2b(begun.encode(errors="replace"), digest_size=8).hexdigest(), "name": path.name}
    try:
        return wandb.init(project=project, dir=str(path), sync_tensorboard=True, config=values, resume="allow", **names)
    except wandb.Error as error:
        raise UserError(f"W&B cannot be started: {error}") from error
