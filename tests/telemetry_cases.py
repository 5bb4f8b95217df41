"""A module that telemetry can measure, and the same quantities by numpy with plain loops and full D x D maps."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from utils.timescales.telemetry import Telemetry

D, R, TOKENS, BATCH = 6, 3, 4, 11
BRANCHES = ("slow", "fast")
Values = dict[str, np.ndarray]


class Branch(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.down_proj, self.up_proj = nn.Linear(D, rank), nn.Linear(rank, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_proj(torch.relu(self.down_proj(x)))


class Nested(nn.Module):
    """What telemetry asks of a module, and no more."""

    branches = BRANCHES

    def __init__(self, slow_rank: int = R) -> None:
        super().__init__()
        self.slow, self.fast = Branch(slow_rank), Branch(R)

    def forward(self, h: Tensor) -> Tensor:
        return self.slow(h) + self.fast(h)


def batch() -> Tensor:  # (B, N, D)
    return torch.randn(BATCH, TOKENS, D, dtype=torch.float64)


def watch(nested: nn.Module, h: Tensor, measured: Telemetry | None = None) -> dict[str, Any]:
    """One measurement around a forward pass that trains nothing."""
    measured = measured or Telemetry([(0, 0, nested, nested)])
    measured.arm()
    nested(h)
    (entry,) = measured.measure()
    return entry


def train(nested: nn.Module, h: Tensor, steps: int = 1) -> None:
    """Steps in which slow and fast move at different rates."""
    groups = [{"params": nested.slow.parameters(), "lr": 0.01}, {"params": nested.fast.parameters(), "lr": 0.1}]
    optimizer = optim.SGD(groups, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        (nested(h) - h.roll(1, dims=0)).square().mean().backward()
        optimizer.step()


def arrays(nested: nn.Module) -> dict[str, Values]:
    return {
        branch: {
            name: value.detach().double().numpy().copy() for name, value in getattr(nested, branch).named_parameters()
        }
        for branch in BRANCHES
    }


def norm(values: np.ndarray) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in values.ravel()))


def flat(values: Values, last: Values) -> np.ndarray:
    return np.array([b - a for name in sorted(values) for a, b in zip(last[name].flat, values[name].flat, strict=True)])


def apply(branch: Values, h: np.ndarray) -> np.ndarray:
    out = np.empty_like(h)
    for image, token in np.ndindex(*h.shape[:2]):
        hidden = branch["down_proj.weight"] @ h[image, token] + branch["down_proj.bias"]
        out[image, token] = branch["up_proj.weight"] @ np.where(hidden > 0, hidden, 0) + branch["up_proj.bias"]
    return out


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x * y) for x, y in zip(a.flat, b.flat, strict=True)) / (norm(a) * norm(b))


def full_rank(branch: Values) -> float:
    s = np.linalg.svd(branch["up_proj.weight"] @ branch["down_proj.weight"], compute_uv=False)
    p = [value / s.sum() for value in s if value > 1e-14 * s.max()]
    return math.exp(-sum(value * math.log(value) for value in p))


def expected(now: dict[str, Values], last: dict[str, Values], h: Tensor) -> dict[str, Any]:
    outputs = {branch: apply(now[branch], h[:8].double().numpy()) for branch in BRANCHES}
    updates = {branch: flat(now[branch], last[branch]) for branch in BRANCHES}
    total = norm(outputs["slow"]) + norm(outputs["fast"])
    return {
        "layer": 0,
        "adapter": 0,
        "norms": {f"{branch}.{name}": norm(value) for branch in BRANCHES for name, value in now[branch].items()},
        "update_norms": {branch: norm(updates[branch]) for branch in BRANCHES},
        "share": {branch: norm(outputs[branch]) / total for branch in BRANCHES},
        "output_cosine": {"slow+fast": cosine(outputs["slow"], outputs["fast"])},
        "update_cosine": {"slow+fast": cosine(updates["slow"], updates["fast"])},
        "effective_rank": {branch: full_rank(now[branch]) for branch in BRANCHES},
    }


def assert_equal(entry: dict[str, Any], wanted: dict[str, Any], rel: float = 1e-9) -> None:
    assert list(entry) == list(wanted)
    for key, value in wanted.items():
        assert entry[key] == pytest.approx(value, rel=rel), key
