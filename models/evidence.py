"""What a learner can show of itself after a task: what each branch alone would answer, and whom the router trusts.

Shapes: B batch, N tokens, D embedding width, A adapters at a layer.
"""

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
