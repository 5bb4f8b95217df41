"""A head on a random projection of the features.

Shapes: B batch, D embedding width, M width of the projection, C classes.
"""

import torch
from torch import Tensor, nn

from backbone.adapter import linear


def projection(seed: int, inputs: int, outputs: int) -> Tensor:  # (D, M)
    """Return a standard normal matrix, float64, that depends on the seed and its shape only."""
    return torch.randn(inputs, outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class ProjectedHead(nn.Module):
    """A linear head on random features: `relu(x P) W^T + b` with a fixed projection P (RanPAC, arXiv 2307.02251).

    Its state holds the seed of P instead of P, as float64 like everything in a checkpoint.

    Args:
        inputs: D.
        weight: W, (C, M).
        seed: Of `projection`, below 2**53.
    """

    projection: Tensor  # P, (D, M)

    def __init__(self, inputs: int, weight: Tensor, seed: int) -> None:
        super().__init__()
        outer = linear(weight)
        self.weight, self.bias = outer.weight, outer.bias
        self.in_features, self.out_features = inputs, len(weight)
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.float64))
        drawn = None if weight.is_meta else projection(seed, inputs, weight.shape[1]).to(weight)
        self.register_buffer("projection", drawn, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, D) -> (B, C)
        return nn.functional.linear((x @ self.projection).relu(), self.weight, self.bias)
