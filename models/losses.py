"""What the two phases minimise, and the batches they see: the loss of a func phase, and that of an rd phase.

Shapes: B batch, S image side, D embedding width, C classes.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from models.views import KeptViews
from utils.data.loader import Batch, Stream, StreamLoader
from utils.inc_net import SEMAVitNet


class Loss(Protocol):
    """The loss of a phase.

    Attributes:
        trains_network: Whether the slots run in training mode, in which descriptors take records.
    """

    trains_network: bool

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """The loss () of a batch, and its number of right answers ()."""


class FuncLoss:
    """Cross entropy over the task's own classes; the logits of all others count as -inf.

    Args:
        network: What learns.
        loader: The task's training images.
        stream: Names of the phase's batches.
        batch_size: B.
        known: Classes before the task.
        total: Classes up to and with it.
    """

    trains_network = True

    def __init__(
        self, network: SEMAVitNet, loader: StreamLoader, stream: Stream, batch_size: int, known: int, total: int
    ) -> None:
        self.network, self.loader, self.stream, self.batch_size = network, loader, stream, batch_size
        self.known, self.total = known, total

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        return self.loader.epoch(*self.stream, epoch, batch_size=self.batch_size, shuffle=True, start=start)

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """The loss () of a batch, and its number of right answers ()."""
        _, images, labels = batch
        logits = self.network(images)["logits"][:, self.known : self.total]  # (B, C of the task)
        own = labels - self.known
        return nn.functional.cross_entropy(logits, own), (logits.argmax(dim=1) == own).sum()


class RdLoss:
    """Sum over layers of the losses of the descriptors in training; the backbone gets no gradient.

    Args:
        network: Whose descriptors learn.
        loader: The task's training images.
        stream: Names of the phase's batches.
        batch_size: B.
        views: The key rd_views: epochs whose token means are kept and seen again in turn; 0: none.
    """

    trains_network = False

    def __init__(self, network: SEMAVitNet, loader: StreamLoader, stream: Stream, batch_size: int, views: int) -> None:
        self.network, self.loader, self.stream, self.batch_size, self.views = network, loader, stream, batch_size, views
        self.slots = [slot for slot in network.expandable if slot.describing]
        self.layers = [slot.layer for slot in self.slots]
        self.kept = KeptViews()

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; of an epoch whose token means are kept without images."""
        self._recall(epoch, start)
        return self._indices(epoch, start) if 0 < self.views <= epoch else self._load(epoch, start)

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """The loss () of a batch, and 0 right answers, as nothing is answered."""
        means = self._means(batch, epoch)
        loss = torch.stack([slot.rd_loss(means[slot.layer]) for slot in self.slots]).sum()
        return loss, torch.zeros((), device=loss.device)

    def _means(self, batch: Batch, epoch: int) -> dict[int, Tensor]:
        """Token means (B, D) of a batch by layer: computed, or those that are kept."""
        indices, images, _ = batch
        if 0 < self.views <= epoch:
            return self.kept.get(epoch % self.views, indices, self.layers)
        means = self.network.token_means(images, self.layers)
        if self.views:
            self._keep(epoch, indices, means)
        return means

    def _load(self, epoch: int, start: int) -> Iterator[Batch]:
        return self.loader.epoch(*self.stream, epoch, batch_size=self.batch_size, shuffle=True, start=start)

    def _indices(self, epoch: int, start: int) -> Iterator[Batch]:
        """Which images the batches hold, for an epoch whose token means are kept."""
        order = torch.tensor(self.loader.order(*self.stream, epoch, shuffle=True))
        nothing = torch.empty(0, device=self.loader.device)
        for indices in order.split(self.batch_size)[start:]:
            yield indices, nothing, nothing

    def _keep(self, view: int, indices: Tensor, means: dict[int, Tensor]) -> None:
        self.kept.put(view, indices, means, len(self.loader))

    def _recall(self, epoch: int, done: int) -> None:
        """Compute again the token means that a run going on in the middle of a phase had kept."""
        whole = self.loader.batches(self.batch_size)
        for view in range(min(epoch + 1, self.views)):
            have, need = self.kept.batches(view), whole if view < epoch else done
            for indices, images, _ in islice(self._load(view, have), need - have) if have < need else ():
                self._keep(view, indices, self.network.token_means(images, self.layers))
