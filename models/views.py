"""Token means of a few augmented views of every training image, on which descriptors can train many epochs.

A descriptor sees nothing of an image but the token mean of frozen features, so a view whose means are kept need not go
through the network again. View v is what epoch v would have seen.

Shapes: n training images, B batch, D embedding width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class KeptViews:
    """The token means of every image in every view, on the device of the means."""

    def __init__(self) -> None:
        self._means: dict[tuple[int, int], Tensor] = {}  # by view and layer, (n, D)
        self._batches: dict[int, int] = {}

    def batches(self, view: int) -> int:
        """Batches of a view that were put in."""
        return self._batches.get(view, 0)

    def put(self, view: int, indices: Tensor, means: Mapping[int, Tensor], images: int) -> None:
        """Keep the next batch of a view: (B,) which of the n images, and by layer their means (B, D)."""
        for layer, values in means.items():
            if (view, layer) not in self._means:
                self._means[view, layer] = values.new_empty(images, values.shape[1])
            self._means[view, layer][indices.to(values.device)] = values
        self._batches[view] = self.batches(view) + 1

    def get(self, view: int, indices: Tensor, layers: list[int]) -> dict[int, Tensor]:
        """By layer the means (B, D) of the images `indices` (B,) in a view."""
        return {layer: _rows(self._means[view, layer], indices) for layer in layers}


def _rows(values: Tensor, indices: Tensor) -> Tensor:
    return torch.index_select(values, 0, indices.to(values.device))
