"""The losses of the two phases, and the batches they are computed on.

Shapes: B batch, S image side, D embedding width, C classes, L layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from models.views import Source
from utils.data.loader import Batch, Stream
from utils.inc_net import SEMAVitNet

Keep = Callable[[Source, Callable[[Tensor], Tensor]], Source]


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
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss () of a batch and its number of correct predictions ()."""


class FuncLoss(Loss):
    """Cross entropy over `classes`, which are consecutive; the logits of all others count as -inf."""

    trains_network = True

    def __init__(self, network: SEMAVitNet, loader: Source, stream: Stream, batch_size: int, classes: range) -> None:
        super().__init__(network, loader, stream, batch_size)
        self.classes = classes

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        _, images, labels = batch
        logits = self.network(images)["logits"][:, self.classes.start : self.classes.stop]  # (B, C of the task)
        own = labels - self.classes.start
        return nn.functional.cross_entropy(logits, own), (logits.argmax(dim=1) == own).sum()


class RdLoss(Loss):
    """Sum over layers of the losses of the descriptors in training; the backbone gets no gradient.

    Args:
        network: As in `Loss`, like the next three.
        loader: Of the task's training images.
        stream: Names the random stream of the batches.
        batch_size: B.
        keep: Makes a source of token means (B, L, D) at the L layers of these descriptors, given that of the images
            and the function that computes them; None: they are computed in every step.
    """

    trains_network = False

    def __init__(
        self, network: SEMAVitNet, loader: Source, stream: Stream, batch_size: int, keep: Keep | None = None
    ) -> None:
        self.slots = [slot for slot in network.expandable if slot.describing]
        self.kept = keep is not None
        if keep is not None:
            loader = keep(loader, lambda images: torch.stack(self.means(images), dim=1))
        super().__init__(network, loader, stream, batch_size)

    def means(self, images: Tensor) -> list[Tensor]:
        """Return what each descriptor sees, means (B, D) over tokens of frozen features; see `SEMAVitNet.forward`."""
        means = self.network.token_means(images, [slot.layer for slot in self.slots])
        return [means[slot.layer] for slot in self.slots]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        means = batch[1].unbind(1) if self.kept else self.means(batch[1])
        loss = torch.stack([slot.rd_loss(mean) for slot, mean in zip(self.slots, means, strict=True)]).sum()
        return loss, torch.zeros((), device=loss.device)
