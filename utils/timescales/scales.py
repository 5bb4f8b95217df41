"""The time scales: which branch of an adapter learns how fast. Declared here once; all else iterates over them.

A scale's name is that of the branch (the sub-module) of every adapter that learns on it, of its parameters' role, of
its group in the optimizer, and of its lines in events and tables.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any


@dataclass(frozen=True)
class TimeScale:
    """One time scale.

    Attributes:
        name: See above.
        rate_key: Configuration key of its learning rate.
        interval_key: Key of its update interval k: it moves at every k-th step; None: it moves at every step.
        update_key: Key of what happens at the other steps, see `utils.timescales.gate`.
    """

    name: str
    rate_key: str
    interval_key: str | None = None
    update_key: str | None = None

    def rate(self, config: Any) -> float:
        """Its learning rate."""
        return float(getattr(config, self.rate_key))

    def interval(self, config: Any) -> int:
        """Its update interval, at least 1."""
        return max(1, int(getattr(config, self.interval_key))) if self.interval_key else 1

    def update(self, config: Any) -> str:
        """What happens between its updates."""
        return str(getattr(config, self.update_key)) if self.update_key else "skip"


SCALES = (  # slowest first
    TimeScale("slow", "nested_lora_lr_slow", "nested_lora_update_interval_slow", "nested_lora_slow_update"),
    TimeScale("fast", "nested_lora_lr_fast"),
)
OTHER, DESCRIPTOR = "other", "descriptor"  # the groups of all that is on no time scale, and of descriptors
NAMES = tuple(scale.name for scale in SCALES)
GATED = tuple(scale for scale in SCALES if scale.interval_key)


def subsets(branches: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Every choice of an adapter's branches by what it is called, all of them first: `slow+fast`, ..., `neither`."""
    chosen = [some for size in range(len(branches), -1, -1) for some in combinations(branches, size)]
    return {"+".join(some) or NEITHER: some for some in chosen}


NEITHER = "neither"


def rates(config: Any) -> dict[str, float]:
    """The learning rate of every group of parameters when a phase begins."""
    return {**{scale.name: scale.rate(config) for scale in SCALES}, OTHER: config.init_lr, DESCRIPTOR: config.rd_lr}
