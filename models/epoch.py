"""What an epoch adds up batch by batch: enough to report it, to go on in its middle, and to see that it diverged.

Shapes: B batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class EpochSums:
    """Sums over the batches an epoch has done.

    Attributes:
        loss: Sum over images, on the device, so that no step waits for the host.
        correct: Right answers, on the device.
        batches: How many batches are done, the skipped ones included.
        images: Images of the batches that were trained on.
        moved: By gated time scale, the optimizer steps of the phase at which its gate let it move.
        skipped: Batches, counted from 1, left out because their loss was not finite.
    """

    loss: Tensor
    correct: Tensor
    batches: int = 0
    images: int = 0
    moved: dict[str, list[int]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    _unchecked: list[tuple[int, Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, device: torch.device) -> Self:
        """Before the first batch."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss: Tensor, correct: Tensor, images: int, moves: Mapping[str, int]) -> None:
        """Count a batch that was trained on.

        Args:
            loss: () mean over the batch.
            correct: () right answers.
            images: B.
            moves: The step's number by the time scales that moved in it.
        """
        self.batches += 1
        self.images += images
        self.loss = self.loss + loss.detach() * images
        self.correct = self.correct + correct
        for scale, step in moves.items():
            self.moved.setdefault(scale, []).append(step)
        self._unchecked.append((self.batches, loss.detach()))

    def skip(self) -> None:
        """Count a batch that was left out."""
        self.batches += 1
        self.skipped.append(self.batches)

    def first_not_finite(self) -> tuple[int, float] | None:
        """The first batch whose loss was NaN or infinite, and that loss; looks at each batch once, all in one go."""
        if not self._unchecked:
            return None
        numbers, losses = zip(*self._unchecked, strict=True)
        self._unchecked = []
        values = torch.stack(losses)
        bad = (~values.isfinite()).nonzero().flatten().tolist()
        return (numbers[bad[0]], float(values[bad[0]])) if bad else None

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        names = ("loss", "correct", "batches", "images", "moved", "skipped")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, state: Mapping[str, Any], device: torch.device) -> Self:
        """Go on from another's state."""
        tensors = {name: state[name].to(device) for name in ("loss", "correct")}
        return cls(**{**state, **tensors})
