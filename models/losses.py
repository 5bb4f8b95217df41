"""The losses of the two phases, and the batches they are computed on.

Shapes: B batch, S image side, D embedding width, C classes, n training images.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from models.views import Source
from utils.data.loader import Batch, Stream
from utils.inc_net import SEMAVitNet


class Loss(ABC):
    """The loss of a phase, and its batches.

    Args:
        network: What learns.
        loader: Of the task's training images.
        stream: Names the random stream of the batches.
        batch_size: B.

    Attributes:
        trains_network: Whether the slots run in training mode, in which descriptors record their losses.
    """

    trains_network: bool

    def __init__(self, network: SEMAVitNet, loader: Source, stream: Stream, batch_size: int) -> None:
        self.network, self.loader, self.stream, self.batch_size = network, loader, stream, batch_size

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Return the batches of an epoch from number `start` on."""
        return self.loader.epoch(*self.stream, epoch, batch_size=self.batch_size, shuffle=True, start=start)

    @abstractmethod
    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the loss () of a batch and its number of correct predictions ()."""


class FuncLoss(Loss):
    """Cross entropy over `classes`, which are consecutive; the logits of all others count as -inf."""

    trains_network = True

    def __init__(self, network: SEMAVitNet, loader: Source, stream: Stream, batch_size: int, classes: range) -> None:
        super().__init__(network, loader, stream, batch_size)
        self.classes = classes

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        _, images, labels = batch
        logits = self.network(images)["logits"][:, self.classes.start : self.classes.stop]  # (B, C of the task)
        own = labels - self.classes.start
        return nn.functional.cross_entropy(logits, own), (logits.argmax(dim=1) == own).sum()


class RdLoss(Loss):
    """Sum over layers of the losses of the descriptors in training; the backbone gets no gradient.

    A descriptor sees only token means of frozen features. With `views` > 0 (the key rd_views) those of the first
    `views` epochs are kept and used again in turn, without loading an image: epoch e trains on those of e % views.
    """

    trains_network = False

    def __init__(self, network: SEMAVitNet, loader: Source, stream: Stream, batch_size: int, views: int) -> None:
        super().__init__(network, loader, stream, batch_size)
        self.views = views
        self.slots = [slot for slot in network.expandable if slot.describing]
        self.layers = [slot.layer for slot in self.slots]
        self._kept: list[dict[int, Tensor]] = [{} for _ in range(views)]  # of each view by layer (n, D)
        self._done = [0] * views  # batches of each view that are kept

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        self._recall(epoch, start)
        return self._indices(epoch, start) if 0 < self.views <= epoch else super().batches(epoch, start)

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        indices, images, _ = batch
        means = self._again(epoch, indices) if 0 < self.views <= epoch else self._means(epoch, indices, images)
        loss = torch.stack([slot.rd_loss(means[slot.layer]) for slot in self.slots]).sum()
        return loss, torch.zeros((), device=loss.device)

    def _indices(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch whose token means are kept: indices without images."""
        order = torch.tensor(self.loader.order(*self.stream, epoch, shuffle=True))
        nothing = torch.empty(0, device=self.loader.device)
        for indices in order.split(self.batch_size)[start:]:
            yield indices, nothing, nothing

    def _means(self, epoch: int, indices: Tensor, images: Tensor) -> dict[int, Tensor]:
        """Compute the token means (B, D) by layer, and keep them if the epoch is a view."""
        means = self.network.token_means(images, self.layers)
        if epoch < self.views:
            kept = self._kept[epoch]
            for layer, values in means.items():
                if layer not in kept:
                    kept[layer] = values.new_empty(len(self.loader), values.shape[1])
                kept[layer][indices.to(values.device)] = values
            self._done[epoch] += 1
        return means

    def _again(self, epoch: int, indices: Tensor) -> dict[int, Tensor]:
        kept = self._kept[epoch % self.views]
        return {layer: kept[layer].index_select(0, indices.to(kept[layer].device)) for layer in self.layers}

    def _recall(self, epoch: int, start: int) -> None:
        """Compute again the kept token means of a phase that is resumed."""
        for view in range(min(epoch + 1, self.views)):
            have, need = self._done[view], self.loader.batches(self.batch_size) if view < epoch else start
            if have < need:
                for indices, images, _ in islice(super().batches(view, have), need - have):
                    self._means(view, indices, images)
