"""Records of descriptors taken anew after a consolidation, and what that does to z-scores.

Shapes: B batch, D embedding width, n images.
"""

import copy

import torch
from torch import Tensor

from backbone.sema_block import SEMAModules

NO_Z: dict[str, None] = dict.fromkeys(
    f"z_{statistic}_{when}" for when in ("before", "after") for statistic in ("mean", "std")
)


class Refill:
    """Takes the records of a slot's newest adapter anew, and says what that does to the z-scores of the same images.

    Args:
        slot: An expandable one; its newest adapter's records are emptied.
    """

    def __init__(self, slot: SEMAModules) -> None:
        self.layer, self.adapter, self._module = slot.layer, slot.num_adapters - 1, slot.newest
        self._stale = copy.deepcopy(self._module.records)
        self._module.records.clear()
        self._losses: list[Tensor] = []

    def observe(self, mean: Tensor) -> None:  # (B, D)
        """Take a batch's losses into the records."""
        self._losses.append(self._module.observe(mean))

    def z_statistics(self) -> dict[str, float]:
        """Mean and standard deviation of z over the images observed, the features being those of now.

        `z_mean_before` and `z_std_before` are against the records from before, `..._after` against the new ones. The
        deviation is that of all these images (divided by n, not n - 1).
        """
        losses = torch.cat(self._losses)  # (n,)
        z = {"before": self._stale.z_scores(losses), "after": self._module.records.z_scores(losses)}
        means = {f"z_mean_{when}": float(values.mean()) for when, values in z.items()}
        return means | {f"z_std_{when}": float(values.std(correction=0)) for when, values in z.items()}
