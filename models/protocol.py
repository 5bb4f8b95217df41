"""What the trainer and the evaluation need of a learner, and what a learner needs of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from utils.data.images import InputSpec
from utils.runs.events import EventSink, no_events

Point = Literal["step", "last step", "epoch", "stage", "wait"]


class Keeper(Protocol):
    """Is told where a learner stands, and may then save its state, or stop it by an exception.

    "step" is after an optimizer step or a scanned batch, "epoch" after an epoch, "stage" between two stages of a task.
    "last step" is after the last step of an epoch, which is kept as a whole. "wait" is within something that is done
    anew when a run goes on, such as an evaluation. At these two there is nothing to save.
    """

    def __call__(self, point: Point, /) -> None: ...


def keep_nothing(point: Point, /) -> None:
    """Where nobody keeps a learner's state."""


@dataclass
class Hooks:
    """Whom a learner talks to.

    Attributes:
        events: Where it reports what happens.
        keep: Is told where it stands.
    """

    events: EventSink = field(default=no_events)
    keep: Keeper = field(default=keep_nothing)


class Tasks(Protocol):
    """What a learner asks of a DataManager."""

    def get_task_size(self, task: int) -> int: ...

    def get_dataset(
        self,
        indices: Iterable[int],
        source: Literal["train", "test"],
        mode: Literal["train", "test", "part"],
        spec: InputSpec,
        decoded_gib: float = 0.0,
    ) -> Any: ...


@dataclass(frozen=True)
class Predictions:
    """What the network said about a test set.

    Attributes:
        labels: (n,) true classes.
        top1: (n,) predicted classes.
        top5_hits: (n,) whether the true class is among the five (or all, if fewer) highest logits.
    """

    labels: np.ndarray
    top1: np.ndarray
    top5_hits: np.ndarray


class TaskLearner(Protocol):
    """A class-incremental learner, as trainer.py and eval.py use it.

    Attributes:
        hooks: Set by the trainer before anything is learned.
        cur_task: Number of the current task; -1 before the first.
        task_sizes: Classes of every task so far.
    """

    hooks: Hooks
    cur_task: int
    task_sizes: list[int]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run starts from, for environment.json."""

    def incremental_train(self, data_manager: Tasks, /) -> None:
        """Learn the next task."""

    def continue_training(self, data_manager: Tasks, /) -> None:
        """Learn what is left of a task in progress, after `restore`."""

    def begin_after(self, task_sizes: list[int], /) -> None:
        """Count these tasks as learned."""

    def begin_test(self, data_manager: Tasks, /) -> None:
        """Load the test images of all classes seen."""

    def eval_task(self) -> tuple[dict[str, Any], Predictions]:
        """Accuracy over all classes seen, and the predictions it was computed from."""

    def report_task(self) -> tuple[dict[str, Any], Predictions, dict[str, Predictions]]:
        """As `eval_task`, with further events, and predictions by what answered (such as branches of the adapters)."""

    def structure(self) -> dict[str, Any]:
        """Adapters, parameters and cost, for the event of the task and results.json."""

    def after_task(self) -> None:
        """Count the task's classes as known."""

    def where(self) -> str:
        """Where in a task the learner stands, for the log."""

    def state(self) -> dict[str, Any]:
        """Everything the learner is, for `restore`."""

    def restore(self, state: Mapping[str, Any], /) -> None:
        """Become the learner that gave this state."""

    def save_checkpoint(self, path: Path, meta: Mapping[str, Any], /) -> None:
        """Write what evaluation needs."""

    def load_checkpoint(self, path: str | Path, /) -> dict[str, Any]:
        """Load a checkpoint; its metadata."""
