"""Score test images, and cache the output of the frozen layers for later evaluations.

Once the blocks below the first expandable layer are frozen for good, their output for a test image never changes
again, and later evaluations run only the rest of the network. With all adapters off no block ever changes, and later
evaluations run only the head. The caches hold whole batches, so that an evaluation gives the same numbers bit by bit
with and without them. With `eval_cache_bf16` the output is rounded to bfloat16 in every evaluation, cached or not.

Shapes: B batch, N tokens, D embedding width, C classes.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch
from torch import Tensor

from models.protocol import Hooks, Predictions
from utils.config.schema import Config
from utils.data.loader import StreamLoader
from utils.files import NOT_SUPPORTED
from utils.inc_net import SEMAVitNet
from utils.memory import GIB
from utils.metrics import grouped_accuracy
from utils.progress import progress

logger = logging.getLogger(__name__)

FEATURES_GIB = 1.0  # limit of the cache of features: those of 350,000 images at width 768

Branches = tuple[str, ...]
BLOCK = 2**20  # bytes that are written at a time


def accuracy(predictions: Predictions, task_sizes: Sequence[int], known_classes: int) -> dict[str, Any]:
    """Return top-1 and top-5 over all classes seen and top-1 by group, in per cent."""
    grouped = grouped_accuracy(predictions.top1, predictions.labels, list(task_sizes), known_classes)
    top5 = round(100 * float(predictions.top5_hits.mean()), 2)
    return {"grouped": grouped, "top1": grouped["total"], "top5": top5}


class Kept(NamedTuple):
    """A cached batch: input (B, N, D) of the first block that can still change, or features (B, D); classes (B,)."""

    x: Tensor
    labels: Tensor


class ActivationCache:
    """The first batches of the test set, for each set of active branches, up to a size limit.

    Batches of the validation images are kept under names of their own.

    Args:
        limit_gib: Limit of the whole cache in GiB; 0 caches nothing.
        where: "memory" (of the host), or "disk": unnamed files in the temporary folder.
    """

    def __init__(self, limit_gib: float, where: str = "memory") -> None:
        self._left = int(limit_gib * GIB)
        self._where = where
        self._kept: dict[Branches, list[Kept]] = {}
        self._full: set[Branches] = set()

    def batches(self, branches: Branches) -> list[Kept]:
        """Return the cached batches, from the first of the test set on."""
        return self._kept.get(branches, [])

    def offer(self, branches: Branches, number: int, x: Tensor, labels: Tensor) -> None:  # (B, N, D), (B,)
        """Cache batch `number` (from 0) of the test set if all before it are cached and there is room."""
        kept, size = self._kept.setdefault(branches, []), x.nbytes
        if number != len(kept) or branches in self._full:
            return
        if size > self._left:
            self._full.add(branches)  # a later, smaller batch must not fill a gap
            return
        try:
            x = x.detach()
            kept.append(Kept(in_memory(x) if self._where == "memory" else on_disk(x), labels.cpu()))
            self._left -= size
        except OSError as error:
            logger.warning("no more test images are cached (eval_cache_on): %s", error)
            self._left = 0

    def clear(self) -> None:
        """Empty the cache, for a network with other values."""
        self._left += sum(batch.x.nbytes for kept in self._kept.values() for batch in kept)
        self._kept.clear()
        self._full.clear()


def in_memory(x: Tensor) -> Tensor:
    """Return a copy of a tensor in the memory of the host."""
    return x.cpu() if x.is_cuda else x.clone()


def on_disk(x: Tensor) -> Tensor:
    """Return a copy of a tensor in an unnamed file, which is deleted with the tensor.

    Raises:
        OSError: The disk is full.
    """
    return mapped(x.shape, x.dtype).copy_(x)


def mapped(shape: Sequence[int], dtype: torch.dtype, folder: Path | None = None) -> Tensor:
    """Return a new tensor in a file of a folder, or of the temporary folder.

    The file has no name, so that it is gone with the tensor or the process, however that ends.

    Raises:
        OSError: The disk is full.
    """
    count = torch.Size(shape).numel()
    with tempfile.TemporaryFile(dir=folder) as file:
        allocate(file, count * dtype.itemsize)  # without it a full disk would end the process at a later write
        return torch.from_file(f"/dev/fd/{file.fileno()}", shared=True, size=count, dtype=dtype).view(shape)


def allocate(file: IO[bytes], size: int) -> None:
    """Reserve room on the disk for an empty file; raise OSError if there is not enough.

    Some file systems, and macOS, cannot reserve it: the file is filled with zeros.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    for first in range(0, size, BLOCK):
        file.write(bytes(min(BLOCK, size - first)))
    file.flush()


class Evaluator:
    """Scores test images of a network."""

    def __init__(self, network: SEMAVitNet, config: Config, hooks: Hooks) -> None:
        self.network, self.hooks, self.batch_size = network, hooks, config.eval_batch_size
        self.rounds, self.scored = config.eval_cache_bf16, config.evaluate_on
        self.cache = ActivationCache(config.eval_cache_gib, config.eval_cache_on)
        self.features = ActivationCache(FEATURES_GIB)  # with all adapters off

    def forget(self) -> None:
        """Empty the caches, for a network with other values."""
        self.cache.clear()
        self.features.clear()

    @torch.no_grad()
    def predict(
        self, loader: StreamLoader, task: int, classes: int, settled: int, part: Literal["test", "val"] = "test"
    ) -> Predictions:
        """Score all images of a loader.

        Args:
            loader: Of the test images.
            task: Number of the current task.
            classes: Number of classes, from the first on, among which to choose.
            settled: Number of blocks, from the first on, whose output for an image no longer changes.
            part: Which images the loader has.
        """
        halves = self._half_way(loader, task, settled, part)
        return self._all((labels, *self.score(x, labels, classes, settled)) for x, labels in halves)

    @torch.no_grad()
    def predict_off(self, loader: StreamLoader, task: int, classes: int, settled: int) -> Predictions:
        """Score all images of a loader with all adapters off; see `predict`."""
        features = self._features(loader, task, settled)
        with self.network.adapters_off():
            return self._all((labels, *choose(self.network.fc(x), labels, classes), x) for x, labels in features)

    def _all(self, scored: Iterator[tuple[Tensor, ...]]) -> Predictions:
        was_training = self.network.training
        self.network.eval()
        batches = []
        for batch in scored:
            batches.append(batch)
            self.hooks.keep("wait")
        self.network.train(was_training)
        return Predictions(*(torch.cat(column).cpu().numpy() for column in zip(*batches, strict=True)))

    @torch.no_grad()
    def score(self, x: Tensor, labels: Tensor, classes: int, settled: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `choose` does and the features, given the input (B, N, D) of block `settled`; see `predict`."""
        found = self.network.forward_from(x, settled)
        return *choose(found["logits"], labels, classes), found["features"]

    @torch.no_grad()
    def features_of(
        self,
        loader: StreamLoader,
        task: int,
        settled: int,
        sides: Mapping[str, Callable[[], AbstractContextManager[None]]],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the features (n, D) of all images of a loader within each of these contexts, and their labels (n,).

        They are prepared and rounded as those of test images, and on the CPU.
        """
        was_training, layer = self.network.training, settled if self.rounds else 0
        self.network.eval()
        labels: list[Tensor] = []
        found: dict[str, list[Tensor]] = {side: [] for side in sides}
        batches = loader.epoch("readouts", task, batch_size=self.batch_size, shuffle=False)
        for _, images, classes in progress(batches, f"task {task} readouts", loader.batches(self.batch_size)):
            for side, active in sides.items():
                with active():
                    x = self._half(images, layer).to(self.network.fc.weight.dtype)
                    found[side].append(self.network.forward_from(x, layer)["features"].cpu())
            labels.append(classes.cpu())
            self.hooks.keep("wait")
        self.network.train(was_training)
        return {side: torch.cat(parts) for side, parts in found.items()}, torch.cat(labels)

    def _half_way(self, loader: StreamLoader, task: int, layer: int, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every batch as the input (B, N, D) of block `layer`, and its labels (B,)."""
        branches, dtype = self.network.active_branches, self.network.fc.weight.dtype
        branches = branches if part == "test" else (part, *branches)
        kept = self.cache.batches(branches) if layer else []
        for batch in kept:
            yield batch.x.to(loader.device).to(dtype), batch.labels.to(loader.device)
        for number, x, labels in self._new(loader, task, layer, len(kept), part):
            if layer and len(labels) == self.batch_size:
                self.cache.offer(branches, number, x, labels)
            yield x.to(dtype), labels

    def _features(self, loader: StreamLoader, task: int, settled: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the features (B, D) of every test batch, for a network that never changes, and its labels (B,)."""
        layer = settled if self.rounds else 0
        kind = (str(layer),)  # features of activations that are rounded elsewhere are others
        kept = self.features.batches(kind)
        for batch in kept:
            yield batch.x.to(loader.device), batch.labels.to(loader.device)
        for number, x, labels in self._new(loader, task, layer, len(kept)):
            features = self.network.forward_from(x.to(self.network.fc.weight.dtype), layer)["features"]
            if len(labels) == self.batch_size:
                self.features.offer(kind, number, features, labels)
            yield features, labels

    def _new(
        self, loader: StreamLoader, task: int, layer: int, done: int, part: str = "test"
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield number, input (B, N, D) of block `layer` and labels (B,) of the batches after the first `done`."""
        batches = loader.epoch(part, task, batch_size=self.batch_size, shuffle=False, start=done)
        total, what = loader.batches(self.batch_size), f"task {task} {self.scored if part == 'test' else part}"
        for number, (_, images, labels) in enumerate(progress(batches, what, total, done=done), start=done):
            yield number, self._half(images, layer), labels

    def _half(self, images: Tensor, layer: int) -> Tensor:  # (B, 3, S, S) -> (B, N, D)
        x = self.network.forward_to(images, layer)
        return x.bfloat16() if layer and self.rounds else x


def choose(logits: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:  # (B, C), (B,)
    """Return predicted classes, whether the true ones have one of the five highest logits, and confidence.

    All are (B,), of the first `classes` logits; confidence is the softmax probability of the predicted class.
    """
    logits = logits[:, :classes]
    top = logits.topk(min(5, classes), dim=1).indices
    confidence = logits.float().softmax(dim=1).gather(1, top[:, :1])
    return top[:, 0], (top == labels[:, None]).any(dim=1), confidence[:, 0]
