"""Adapter types of the tests' own, and the bottleneck adapter in numpy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbone.adapter import Adapter, FunctionalAdapter
from backbone.nested_lora import NestedLoRAAdapter
from backbone.registry import ADAPTERS

TENSORS = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")


class Gain(FunctionalAdapter):
    """`gain * tanh(x)`, which is no sum of bottleneck adapters; the zero map at birth."""

    def __init__(self, config: Any, adapter_id: str, dropout: float = 0.0) -> None:
        super().__init__(config, adapter_id, dropout)
        self.gain = nn.Parameter(torch.zeros(config.d_model))

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        return self.gain * torch.tanh(x)


class ThreeBranches(NestedLoRAAdapter):
    """`slow(x) + mid(x) + fast(x)`."""

    branches = ("slow", "mid", "fast")

    def __init__(self, config: Any, adapter_id: str, dropout: float = 0.0) -> None:
        super().__init__(config, adapter_id, dropout)
        self.mid = Adapter(config, f"{adapter_id}.mid", dropout, config.nested_lora_rank, branch=2)


OWN: dict[str, type[FunctionalAdapter]] = {"gain": Gain, "three_branches": ThreeBranches}


@contextmanager
def registered(*names: str) -> Iterator[None]:
    """Let some of `OWN` be adapter types for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for attribute, value in vars(ADAPTERS).items():
            if isinstance(value, dict):
                patch.setattr(ADAPTERS, attribute, dict(value))
        for name in names:
            ADAPTERS.register(name)(OWN[name])
        yield


def adapter_in_numpy(adapter: Adapter, x: Tensor) -> np.ndarray:
    down, bias, up, shift = (adapter.get_parameter(name).detach().numpy() for name in TENSORS)
    return np.maximum(x.numpy() @ down.T + bias, 0) @ up.T + shift
