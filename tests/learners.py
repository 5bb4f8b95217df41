"""A tiny learner in tests: its keys, what a scripted scan sees, and which of its values move."""

from typing import Any

import torch
from torch import Tensor, nn

from models.sema import Learner

LAYERS = (1, 2)  # the expandable ones of the tiny configuration
SMALL = {"func_epoch": 2, "rd_epoch": 1, "batch_size": 5, "detect_batch_size": 5, "exp_threshold": 1.0}
NESTED = {"ffn_adapter_type": "nested_lora", "nested_lora_update_interval_slow": 2}
CONTINUAL = {**NESTED, "adapter_lifetime": "continual"}
CONSOLIDATED = {**NESTED, "nested_lora_use_consolidation": True}
STRANGE, FAMILIAR = 9.0, 0.0
WEIGHTS, CODERS, HEAD = ("weight", "bias"), ("encoder", "decoder"), {"fc.weight", "fc.bias"}
ENDS = [f"{part}.{name}" for part in ("down_proj", "up_proj") for name in WEIGHTS]


def learn(learner: Learner, data: Any, tasks: int = 1) -> None:
    for _ in range(tasks):
        learner.incremental_train(data)
        learner.after_task()


def values(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def moved(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names whose values changed, whose shapes changed, or that are new."""
    after = network.state_dict()
    return {name for name, value in after.items() if name not in before or not torch.equal(before[name], value)}


def own(name: str) -> str:
    """Short names: `1.0.functional.x` for adapter 0 of layer 1, `1.router.weight`."""
    return name.removeprefix("backbone.blocks.").replace("adapter_module.", "").replace("adapters.", "")


def assert_equal_states(first: Learner, second: Learner) -> None:
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
