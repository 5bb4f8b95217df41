"""The time scales: which branch of an adapter learns how fast. Everything else iterates over this declaration.

The name of a scale is that of the branch (sub-module) of every adapter that learns on it, of its parameters' role, of
its group in the optimizer, and of its lines in events and tables.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any


@dataclass(frozen=True)
class TimeScale:
    """A time scale, by the configuration keys of its settings."""

    name: str
    rate_key: str  # learning rate
    interval_key: str | None = None  # update interval k: it moves at every k-th step; None: at every step
    update_key: str | None = None  # what happens at the other steps, see `utils.timescales.gate`

    def rate(self, config: Any) -> float:
        return float(getattr(config, self.rate_key))

    def last_rate(self, config: Any, epochs: int) -> float:
        """Return the learning rate of the last epoch, the lowest: a cosine from `rate` to `min_lr`."""
        above = (self.rate(config) - config.min_lr) * (1 - math.cos(math.pi / max(1, epochs))) / 2
        return float(config.min_lr) + above

    def interval(self, config: Any) -> int:
        return max(1, int(getattr(config, self.interval_key))) if self.interval_key else 1

    def update(self, config: Any) -> str:
        return str(getattr(config, self.update_key)) if self.update_key else "skip"


SCALES = (  # slowest first
    TimeScale("slow", "nested_lora_lr_slow", "nested_lora_update_interval_slow", "nested_lora_slow_update"),
    TimeScale("fast", "nested_lora_lr_fast"),
)
OTHER, DESCRIPTOR = "other", "descriptor"  # the groups of all that is on no time scale, and of descriptors
NAMES = tuple(scale.name for scale in SCALES)
GATED = tuple(scale for scale in SCALES if scale.interval_key)
NEITHER = "neither"


def subsets(branches: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return every subset of an adapter's branches by its name, all of them first: `slow+fast`, ..., `neither`."""
    chosen = [some for size in range(len(branches), -1, -1) for some in combinations(branches, size)]
    return {"+".join(some) or NEITHER: some for some in chosen}


def rate_keys() -> dict[str, str]:
    """Return the key of every parameter group's learning rate."""
    return {**{scale.name: scale.rate_key for scale in SCALES}, OTHER: "init_lr", DESCRIPTOR: "rd_lr"}


def rates(config: Any) -> dict[str, float]:
    """Return the learning rate of every parameter group at the beginning of a phase."""
    return {name: float(getattr(config, key)) for name, key in rate_keys().items()}
