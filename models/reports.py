"""Measurements of a network that a learner reports: size, cost, and the weights of the router.

Shapes: B batch, S image side, A adapters at a layer, n images.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbone.sema_block import SEMAModules
from utils.inc_net import SEMAVitNet
from utils.timescales.groups import count_parameters


def structure(network: SEMAVitNet, trained: Mapping[str, tuple[str, int]], image_size: int) -> dict[str, Any]:
    """Return adapters in every block, exact numbers of parameters, and the cost of one image.

    Args:
        network: The network.
        trained: Role and size of the parameters that the current task has trained, by name.
        image_size: S.
    """
    total = sum(parameter.numel() for parameter in network.parameters())
    counts = count_parameters(network.roles())
    by_role: Counter[str] = Counter()
    for role, size in trained.values():
        by_role[role] += size
    return {
        "adapters": [slot.num_adapters for slot in network.slots],
        "parameters": {**counts, "backbone": total - sum(counts.values()), "total": total},  # stored, by role
        "trained": dict(by_role),  # in this task
        "multiply_adds": _multiply_adds(network, image_size),  # of a forward pass
    }


@torch.no_grad()
def _multiply_adds(network: SEMAVitNet, image_size: int) -> int:
    image = torch.zeros(1, 3, image_size, image_size, device=network.fc.weight.device)
    # The counter knows the products of plain attention and of float32, not the CPU's fused and packed ones.
    with sdpa_kernel(SDPBackend.MATH), network.in_float32(), FlopCounterMode(display=False) as counter:
        network.eval()(image)
    return int(counter.get_total_flops()) // 2


@contextmanager
def router_weights(slots: list[SEMAModules]) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the mixing weights (B, A) of every batch that the network sees inside, by layer."""
    seen: dict[int, list[Tensor]] = {slot.layer: [] for slot in slots}

    def keep(slot: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        assert isinstance(slot, SEMAModules)
        h, mean = inputs
        with torch.no_grad():
            seen[slot.layer].append(slot.mixing_weights(h.mean(dim=1) if mean is None else mean))

    hooks = [slot.register_forward_hook(keep) for slot in slots]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def mean_weights(
    seen: dict[int, list[Tensor]], labels: Any, task_sizes: list[int]
) -> dict[str, list[list[float | None]]]:
    """Return the mean mixing weight of every adapter on the test images of every task: layer -> task -> adapter.

    Args:
        seen: From `router_weights`, in the order of the test images.
        labels: (n,) classes of those images.
        task_sizes: Number of classes of every task.
    """
    ends = torch.tensor(task_sizes).cumsum(0)
    tasks = torch.bucketize(torch.as_tensor(labels), ends, right=True)
    weights = {layer: torch.cat(batches).cpu() for layer, batches in seen.items()}
    numbers = [task for task in range(len(task_sizes)) if bool((tasks == task).any())]
    return {str(layer): [w[tasks == task].mean(dim=0).tolist() for task in numbers] for layer, w in weights.items()}
