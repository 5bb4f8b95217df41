"""Scoring test images, and the accuracy that follows.

Shapes: B batch, N tokens, D embedding width, C classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from models.activations import ActivationCache
from models.protocol import Hooks, Predictions
from utils.config.schema import Config
from utils.data.loader import StreamLoader
from utils.inc_net import SEMAVitNet
from utils.metrics import grouped_accuracy
from utils.progress import progress


def accuracy(predictions: Predictions, task_sizes: Sequence[int], known_classes: int) -> dict[str, Any]:
    """Top-1 and top-5 over all classes seen and top-1 by group, in per cent."""
    grouped = grouped_accuracy(predictions.top1, predictions.labels, list(task_sizes), known_classes)
    top5 = round(100 * float(predictions.top5_hits.mean()), 2)
    return {"grouped": grouped, "top1": grouped["total"], "top5": top5}


class Evaluator:
    """Scores test images, and keeps what the frozen layers make of them.

    Args:
        network: Whose predictions are wanted.
        config: Gives the bounds of what is kept, and the batch size.
        hooks: Whom to tell after every batch.
    """

    def __init__(self, network: SEMAVitNet, config: Config, hooks: Hooks) -> None:
        self.network, self.hooks, self.batch_size = network, hooks, config.eval_batch_size
        kept_as = torch.bfloat16 if config.eval_cache_bf16 else None
        self.cache = ActivationCache(config.eval_cache_gib, config.eval_cache_on, kept_as)

    @torch.no_grad()
    def predict(self, loader: StreamLoader, task: int, classes: int, settled: int) -> Predictions:
        """Score all images of a loader.

        Args:
            loader: Of the test images.
            task: Number of the current task.
            classes: How many classes, from the first on, can be answered.
            settled: How many of the first blocks give the same output for an image from now on.
        """
        was_training = self.network.training
        self.network.eval()
        scored = []
        for x, labels in self._half_way(loader, task, settled):
            scored.append((labels, *self.score(x, labels, classes, settled)))
            self.hooks.keep("wait")
        self.network.train(was_training)
        return Predictions(*(torch.cat(column).cpu().numpy() for column in zip(*scored, strict=True)))

    @torch.no_grad()
    def score(self, x: Tensor, labels: Tensor, classes: int, settled: int) -> tuple[Tensor, Tensor]:
        """Predicted classes (B,) of a batch, and whether the true ones are among the five highest logits (B,).

        Args:
            x: (B, N, D) input of block `settled`.
            labels: (B,) true classes.
            classes: As in `predict`.
            settled: As in `predict`.
        """
        logits = self.network.forward_from(x, settled)["logits"][:, :classes]  # (B, C)
        top = logits.topk(min(5, classes), dim=1).indices
        return top[:, 0], (top == labels[:, None]).any(dim=1)

    def _half_way(self, loader: StreamLoader, task: int, layer: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test batch, (B, N, D) at the first block that can still change, and its labels (B,)."""
        branches, size = self.network.active_branches, self.batch_size
        kept = self.cache.batches(branches) if layer else []
        for batch in kept:
            yield batch.x.to(loader.device, self.network.fc.weight.dtype), batch.labels.to(loader.device)
        batches = loader.epoch("test", task, batch_size=size, shuffle=False, start=len(kept))
        total, what = loader.batches(size), f"task {task} test"
        for number, (_, images, labels) in enumerate(progress(batches, what, total, done=len(kept)), start=len(kept)):
            x = self.network.forward_to(images, layer)
            if layer and len(labels) == size:
                self.cache.offer(branches, number, x, labels)
            yield x, labels
