"""Nested LoRA: the sum of bottleneck adapters that learn on different time scales.

Shapes: B batch, N tokens, D embedding width.
"""

from collections.abc import Mapping
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import torch
from torch import Tensor

from backbone.adapter import Adapter, FunctionalAdapter
from backbone.registry import ADAPTERS


@ADAPTERS.register("nested_lora")
class NestedLoRAAdapter(FunctionalAdapter):
    """Two adapters on two time scales, always summed: `slow(x) + fast(x)`; the zero map at birth.

    The time scales are those of the optimizer (a parameter group each, and the slow gate); this module says which of
    its parameters are on which. After Nested Learning's continuum of update frequencies (arXiv 2512.24695).

    The hidden units that slow and fast are born with are, in turn, those of a single adapter of twice the rank.

    Args:
        config: Gives `d_model` and the `nested_lora_*` keys.
        adapter_id: Name for messages, "layer.index".
        dropout: Ignored, as in `Adapter`.
    """

    width_key = "nested_lora_rank"
    branches = ("slow", "fast")

    def __init__(self, config: Any, adapter_id: str, dropout: float = 0.0) -> None:
        super().__init__(config, adapter_id, dropout)
        rank = config.nested_lora_rank
        self.slow = Adapter(config, f"{adapter_id}.slow", dropout, rank, branch=0)
        self.fast = Adapter(config, f"{adapter_id}.fast", dropout, rank, branch=1)
        self.consolidates = config.nested_lora_use_consolidation
        self.grows = self.consolidates and config.nested_lora_consolidation_mode == "function"

    @classmethod
    def learning(cls, config: Any) -> tuple[str, ...]:
        chosen = config.nested_lora_train
        return tuple(name for name in cls.branches if chosen is None or name in chosen)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        outputs = [branch(x) for branch in self.summands()]
        return reduce(add, outputs) if outputs else torch.zeros_like(x)

    def summands(self) -> tuple[Adapter, ...]:
        """Return the active branches."""
        return tuple(self._branch(name) for name in self.active)

    def consolidate(self, alpha: float) -> dict[str, Any]:
        """Move the share `alpha` of each branch into the next slower one, then reset it, as the configuration says.

        Mode "weights": every slow tensor += alpha * fast tensor. Mode "function": slow becomes
        `x -> slow(x) + alpha * fast(x)` and its rank grows by fast's.
        """
        mode, reset = self.config.nested_lora_consolidation_mode, self.config.nested_lora_fast_reset
        for slower, faster in pairwise(map(self._branch, self.branches)):
            {"weights": slower.add, "function": slower.append}[mode](faster, alpha)
            if reset != "keep":
                {"zero": faster.zero, "reinit": faster.reset}[reset]()
        return {"alpha": alpha, "mode": mode, "reset": reset}

    @classmethod
    def preserves_function(cls, config: Any) -> bool:
        """With fast reset, all of its function has to go into slow; with fast kept, nothing."""
        if config.nested_lora_fast_reset == "keep":
            return config.nested_lora_consolidation_alpha == 0
        return config.nested_lora_consolidation_alpha == 1 and config.nested_lora_consolidation_mode == "function"

    def measure(self) -> dict[str, float]:
        """Return the norms of the branches, and the ranks of those that can grow."""
        return super().measure() | {f"{name}_rank": self._branch(name).rank for name in self.branches[:-1]}

    def revive(self) -> bool:
        """Re-initialise every branch, but the slowest, that a consolidation has zeroed; it could not learn."""
        dead = [branch for branch in map(self._branch, self.branches[1:]) if branch.is_zero()]
        for branch in dead:
            branch.reset()
        return bool(dead)

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name in self.branches[:-1]:
            shape = shapes.get(f"{name}.down_proj.weight", ())
            if len(shape) == 2 and shape[0] > 0:
                self._branch(name).resize(shape[0])

    def _branch(self, name: str) -> Adapter:
        branch = self.get_submodule(name)
        assert isinstance(branch, Adapter)
        return branch
