"""The gate that holds slow still between its steps."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from utils.errors import ConfigError
from utils.timescales.groups import Role


class SlowGate:
    """Decides, before each optimizer step of a func phase, what happens to slow's gradients.

    Steps count from 1; with interval k slow moves at k, 2k, ... (0 counts as 1). "skip" gives the other steps no
    gradient at all: without one, neither momentum nor weight decay moves a parameter. "accumulate" also keeps those
    gradients, and the update uses the interval's mean. "zero_grad" zeroes the gradient and lets the optimizer step.

    Args:
        parameters: The slow group.
        interval: k.
        mode: "skip", "accumulate" or "zero_grad".
    """

    def __init__(self, parameters: Iterable[nn.Parameter], interval: int, mode: str) -> None:
        self.parameters = list(parameters)
        self.interval = max(1, interval)
        self.mode = mode
        self.steps = 0
        self.sums: list[torch.Tensor] = []

    @property
    def pending(self) -> int:
        """Steps of the interval that is not finished."""
        return self.steps % self.interval

    @property
    def updates(self) -> int:
        """How often slow has moved."""
        return self.steps // self.interval if self.parameters else 0

    def before_step(self) -> bool:
        """Count one step and prepare slow's gradients for it; whether this step is one of slow's."""
        self.steps += 1
        moves = self.pending == 0
        if self.mode == "accumulate":
            self._accumulate(moves)
        elif not moves:
            self._withhold()
        return moves and bool(self.parameters)

    def state(self) -> dict[str, Any]:
        """Steps counted and gradients gathered, for `restore`."""
        return {"steps": self.steps, "sums": self.sums}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from another gate's state."""
        self.steps = state["steps"]
        self.sums = [total.to(parameter) for total, parameter in zip(state["sums"], self.parameters, strict=False)]

    def _withhold(self) -> None:
        for parameter in self.parameters:
            if self.mode == "zero_grad" and parameter.grad is not None:
                parameter.grad.zero_()
            else:
                parameter.grad = None

    def _accumulate(self, moves: bool) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.sums = [total + new for total, new in zip(self.sums, gradients, strict=True)] if self.sums else gradients
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = total / self.interval if moves else None
        if moves:
            self.sums = []


def steps_of(images: int, batch_size: int, epochs: int) -> int:
    """Optimizer steps of a phase."""
    return epochs * math.ceil(images / batch_size)


def check_interval(interval: int, steps: int, task: int) -> None:
    """Refuse an interval that would never let slow move.

    Raises:
        ConfigError: `interval` is larger than the number of optimizer steps of a func phase.
    """
    if interval > steps:
        raise ConfigError(
            f"nested_lora_update_interval_slow is {interval}, but a func phase of task {task} has {steps} optimizer "
            f"steps (func_epoch x batches): slow would never move; choose {steps} at most"
        )


def verify_gate(gate: SlowGate, roles: Iterable[Role], args: Any) -> None:
    """Hold the slow gate of a func phase against what configuration and modules declare.

    Raises:
        RuntimeError: Interval, mode or the gated parameters are not the declared ones.
    """
    slow = {id(parameter) for role, parameter in roles if role == "slow" and parameter.requires_grad}
    declared = (max(1, args.nested_lora_update_interval_slow), args.nested_lora_slow_update, slow)
    held = (gate.interval, gate.mode, {id(parameter) for parameter in gate.parameters})
    if held != declared:
        raise RuntimeError(
            f"the slow gate has interval {held[0]}, mode {held[1]}, {len(held[2])} tensors; "
            f"declared are {declared[0]}, {declared[1]}, {len(slow)}"
        )
