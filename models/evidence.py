"""What a learner can show of itself after a task.

What each branch alone would answer, whom the router trusts, what taking a descriptor's records anew does to z-scores.

Shapes: B batch, N tokens, D embedding width, A adapters at a layer, n images.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backbone.sema_block import SEMAModules
from models.base import BaseLearner, Predictions
from utils.metrics import count_hits

BRANCHES: dict[str, tuple[str, ...]] = {
    "slow+fast": ("slow", "fast"),
    "slow": ("slow",),
    "fast": ("fast",),
    "neither": (),
}
NO_Z: dict[str, None] = dict.fromkeys(
    f"z_{statistic}_{when}" for when in ("before", "after") for statistic in ("mean", "std")
)


def predict_branches(learner: BaseLearner, both: Predictions) -> tuple[dict[str, Predictions], float]:
    """Score the seen test images with slow and fast, either, and neither (the frozen backbone with the head).

    Args:
        learner: With nested adapters.
        both: Its predictions as it is, which are not made again.

    Returns:
        Predictions by branch, and the seconds they took.
    """
    started = time.perf_counter()
    scored = {"slow+fast": both}
    for name, active in BRANCHES.items():
        if name not in scored:
            with learner._network.branches(active):
                scored[name] = learner.predict()
    return scored, time.perf_counter() - started


def hits_by_task(learner: BaseLearner, scored: dict[str, Predictions]) -> dict[str, list[int]]:
    """Right answers on every task, by branch."""
    return {name: count_hits(seen.top1, seen.labels, learner.task_sizes)[0] for name, seen in scored.items()}


@contextmanager
def router_weights(slots: list[SEMAModules]) -> Iterator[dict[int, list[Tensor]]]:
    """Keep the mixing weights (B, A) of every batch the network sees inside, by layer."""
    seen: dict[int, list[Tensor]] = {slot.layer: [] for slot in slots}

    def keep(slot: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        assert isinstance(slot, SEMAModules)
        with torch.no_grad():
            seen[slot.layer].append(slot.mixing_weights(inputs[0].mean(dim=1)))

    hooks = [slot.register_forward_hook(keep) for slot in slots]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def mean_weights(seen: dict[int, list[Tensor]], labels: Any, task_sizes: list[int]) -> dict[str, list[list[float]]]:
    """Mean mixing weight of every adapter over the test images of every task: layer -> task -> adapter.

    Args:
        seen: As `router_weights` keeps them, in the order of the test images.
        labels: (n,) classes of those images.
        task_sizes: Classes of every task.
    """
    ends = torch.tensor(task_sizes).cumsum(0)
    tasks = torch.bucketize(torch.as_tensor(labels), ends, right=True)
    weights = {layer: torch.cat(batches).cpu() for layer, batches in seen.items()}
    numbers = [task for task in range(len(task_sizes)) if bool((tasks == task).any())]
    return {str(layer): [w[tasks == task].mean(dim=0).tolist() for task in numbers] for layer, w in weights.items()}


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
