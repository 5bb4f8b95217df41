"""Whom the router trusts: mean mixing weights of the adapters on the test images of every task.

Shapes: B batch, A adapters at a layer, n images.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backbone.sema_block import SEMAModules


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


def mean_weights(
    seen: dict[int, list[Tensor]], labels: Any, task_sizes: list[int]
) -> dict[str, list[list[float | None]]]:
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
