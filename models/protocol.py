"""The interface between a learner and its users, trainer.py and eval.py."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from utils.data.images import InputSpec
from utils.runs.events import EventSink, no_events
from utils.runs.stopwatch import Stopwatch

Point = Literal["step", "last step", "epoch", "stage", "wait"]


class Keeper(Protocol):
    """Called during training; may save the learner's state, or stop it by an exception.

    "step" is after an optimizer step or a scanned batch, "epoch" after an epoch, "stage" between two stages of a task.
    At the other two there is nothing to save: "last step" is after the last step of an epoch, before its report;
    "wait" is within a part that a resumed run repeats from its start, such as an evaluation.
    """

    def __call__(self, point: Point, /) -> None: ...


@dataclass
class Hooks:
    """What a learner calls."""

    events: EventSink = field(default=no_events)  # with every event
    keep: Keeper = field(default=lambda point: None)  # at every `Point`
    training: Stopwatch = field(default_factory=Stopwatch)  # runs while a task is learned, pauses for what is beside it
    folder: Path | None = None  # of the run, for large files; None: the temporary folder
    time_left: Callable[[], str] = field(default=str)  # of the run, for its progress bars; empty if unknown


class Tasks(Protocol):
    """The part of DataManager that a learner uses."""

    def get_task_size(self, task: int) -> int: ...

    def get_dataset(
        self,
        indices: Iterable[int],
        source: Literal["train", "val", "test"],
        mode: Literal["train", "test", "part"],
        spec: InputSpec,
        decoded_gib: float = 0.0,
    ) -> Any: ...


class Predictions(NamedTuple):
    """The network's predictions on a test set of n images."""

    labels: np.ndarray  # (n,) true classes
    top1: np.ndarray  # (n,) predicted classes
    top5_hits: np.ndarray  # (n,) whether the true class is among the five (or all, if fewer) highest logits
    confidence: np.ndarray  # (n,) the softmax probability of the predicted class among the classes seen
    features: np.ndarray  # (n, D) the input of the head


class Report(NamedTuple):
    """What a learner says of the test images after a task."""

    accuracy: dict[str, Any]  # see `models.evaluation.accuracy`
    predictions: Predictions
    branches: dict[str, Predictions]  # by subset of the adapters' branches
    off: Predictions | None = None  # with all adapters off
    val: Predictions | None = None  # on the validation images; None: there are none


class TaskLearner(Protocol):
    """A class-incremental learner, as trainer.py and eval.py use it; `BaseLearner` documents each method."""

    hooks: Hooks  # the trainer sets its members before training
    cur_task: int  # -1 before the first
    task_sizes: list[int]  # number of classes of every task so far

    @property
    def provenance(self) -> dict[str, Any]: ...
    @property
    def epochs(self) -> dict[str, int]: ...
    def images_of(self, counts: Sequence[int], /) -> list[int]: ...
    def plan_views(self, counts: Sequence[int], /) -> str: ...
    def precision_note(self) -> tuple[int, str] | None: ...
    def incremental_train(self, data_manager: Tasks, /) -> None: ...
    def continue_training(self, data_manager: Tasks, /) -> None: ...
    def begin_after(self, task_sizes: list[int], /) -> None: ...
    def begin_test(self, data_manager: Tasks, /) -> None: ...
    def eval_task(self) -> tuple[dict[str, Any], Predictions]: ...
    def predict_off(self) -> Predictions: ...
    def report_task(self) -> Report: ...
    def read_out(self, report: Report, /) -> dict[str, np.ndarray]: ...
    def structure(self) -> dict[str, Any]: ...
    def after_task(self) -> None: ...
    def where(self) -> str: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any], /) -> None: ...
    def load_statistics(self, path: Path, /) -> None: ...
    def load_readouts(self, path: Path, /) -> None: ...
    def save_checkpoint(self, path: Path, meta: Mapping[str, Any], /) -> None: ...
    def load_checkpoint(self, path: str | Path, /) -> dict[str, Any]: ...
