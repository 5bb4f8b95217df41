"""What every class-incremental learner does: count tasks and classes, hold the data of a task, evaluate.

Shapes: B batch, S image side, N tokens, D embedding width, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.activations import ActivationCache
from utils.config.load import with_defaults
from utils.data.loader import READY, StreamLoader, Way
from utils.data.resample import resampling
from utils.inc_net import SEMAVitNet
from utils.metrics import grouped_accuracy
from utils.progress import progress
from utils.streams import seeded


class EventSink(Protocol):
    """Takes one event: its kind and JSON-ready fields."""

    def __call__(self, kind: str, **fields: Any) -> None: ...


def no_events(kind: str, **fields: Any) -> None:
    """Where events go when nobody keeps them."""


Point = Literal["step", "last step", "epoch", "stage", "wait"]


class Keeper(Protocol):
    """Is told where a learner stands, and may then save its state, or stop it by an exception.

    "step" is after an optimizer step or a scanned batch, "epoch" after an epoch, "stage" between two stages of a task.
    "last step" is after the last step of an epoch, which is kept as a whole. "wait" is within something that is done
    anew when a run goes on, such as an evaluation. At these two there is nothing to save.
    """

    def __call__(self, point: Point) -> None: ...


def keep_nothing(point: Point) -> None:
    """Where nobody keeps a learner's state."""


class Tasks(Protocol):
    """What a learner asks of a DataManager."""

    def get_task_size(self, task: int) -> int: ...

    def get_dataset(self, indices: Iterable[int], source: str, mode: str, **view: Any) -> Dataset: ...


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


class BaseLearner:
    """Task counters, loaders and evaluation.

    Args:
        args: The public implementation's keys; missing ones take their defaults. `device` is a list of one
            torch.device, `seed` an int, `nb_classes` the head's size.
        events: Where the learner reports what happens.
    """

    def __init__(self, args: Mapping[str, Any], events: EventSink = no_events) -> None:
        self.args = with_defaults(args)
        self.events = events
        self.keep: Keeper = keep_nothing
        self.device = torch.device(self.args.device[0])
        self.seed: int = self.args.seed
        self.cur_task = -1
        self.known_classes = 0
        self.task_sizes: list[int] = []
        with seeded(self.seed, "network"):
            self._network = SEMAVitNet(self.args).to(self.device)
        kept_as = torch.bfloat16 if self.args.eval_cache_bf16 else None
        self.cache = ActivationCache(self.args.eval_cache_gib, self.args.eval_cache_on, kept_as)
        self.spec = self._network.input_spec(self.args.normalize)

    @property
    def total_classes(self) -> int:
        """Classes up to and with the current task."""
        return sum(self.task_sizes)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run starts from: timm name, origin and SHA-256 of the frozen weights."""
        return {"backbone": self._network.provenance}

    def after_task(self) -> None:
        """Count the task's classes as known, and end the workers that loaded its test images."""
        self.known_classes = self.total_classes
        self.test_loader.close()

    def begin_after(self, task_sizes: list[int]) -> None:
        """Count these tasks as learned, as after the last of them and before its `after_task`."""
        self.task_sizes = list(task_sizes)
        self.cur_task = len(task_sizes) - 1
        self.known_classes = sum(task_sizes[:-1])

    def begin_data(self, data_manager: Tasks) -> None:
        """Move on to the next task: its classes, and its data."""
        self.cur_task += 1
        self.task_sizes.append(data_manager.get_task_size(self.cur_task))
        self.open_data(data_manager)

    def open_data(self, data_manager: Tasks) -> None:
        """Loaders of the current task's training images and of all seen test images."""
        on_device = self.args.augment_on == "device"
        images = data_manager.get_dataset(
            range(self.known_classes, self.total_classes),
            source="train",
            mode="part" if on_device else "train",
            spec=self.spec,
            decoded_gib=self.args.image_cache_gib,
        )
        way = resampling(self.spec, self.device) if on_device else READY
        # A scan is interrupted by training and then goes on, so it reads through a loader of its own.
        self.train_loader, self.scan_loader = self.loader(images, way), self.loader(images, way)
        self.begin_test(data_manager)

    def begin_test(self, data_manager: Tasks) -> None:
        """A loader of the test images of all classes seen."""
        seen = range(self.total_classes)
        self.test_loader = self.loader(data_manager.get_dataset(seen, source="test", mode="test", spec=self.spec))

    def end_data(self) -> None:
        """End the task's loading workers, and forget its training images."""
        self.train_loader.close()
        self.scan_loader.close()
        del self.train_loader, self.scan_loader

    def loader(self, dataset: Dataset, way: Way = READY) -> StreamLoader:
        """A loader whose order and augmentation come from named streams of this run's seed."""
        return StreamLoader(dataset, self.args.num_workers, self.device, self.seed, way)

    def eval_task(self) -> tuple[dict[str, Any], Predictions]:
        """Accuracy over all classes seen, in per cent, and the predictions it was computed from."""
        predictions = self.predict()
        labels = predictions.labels
        grouped = grouped_accuracy(predictions.top1, labels, self.task_sizes, self.known_classes)
        accuracy = {
            "grouped": grouped,
            "top1": grouped["total"],
            "top5": round(100 * float(predictions.top5_hits.mean()), 2),
        }
        return accuracy, predictions

    @torch.no_grad()
    def predict(self) -> Predictions:
        """Score the test images of all classes seen."""
        was_training = self._network.training
        self._network.eval()
        scored = []
        for x, labels in self._half_way():
            scored.append(self._score(x, labels))
            self.keep("wait")
        self._network.train(was_training)
        return Predictions(*(torch.cat(column).cpu().numpy() for column in zip(*scored, strict=True)))

    def settled_layers(self) -> int:
        """How many of the first blocks give the same output for an image from now on."""
        return 0

    def _half_way(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test batch, (B, N, D) at the first block that can still change, and its labels (B,)."""
        layer, branches, size = self.settled_layers(), self._network.active_branches, self.args.eval_batch_size
        kept = self.cache.batches(branches) if layer else []
        for batch in kept:
            yield batch.x.to(self.device, self._network.fc.weight.dtype), batch.labels.to(self.device)
        batches = self.test_loader.epoch("test", self.cur_task, batch_size=size, shuffle=False, start=len(kept))
        total, what = self.test_loader.batches(size), f"task {self.cur_task} test"
        for number, (_, images, labels) in enumerate(progress(batches, what, total, done=len(kept)), start=len(kept)):
            x = self._network.forward_to(images, layer)
            if layer and len(labels) == size:
                self.cache.offer(branches, number, x, labels)
            yield x, labels

    def _score(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B, N, D), (B,)
        logits = self._network.forward_from(x, self.settled_layers())["logits"][:, : self.total_classes]  # (B, C)
        top = logits.topk(min(5, self.total_classes), dim=1).indices
        return labels, top[:, 0], (top == labels[:, None]).any(dim=1)
