"""The slow gate: it keeps the parameters of a time scale still between the steps at which they move."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from utils.errors import ConfigError
from utils.timescales.scales import GATED, TimeScale


class Gate:
    """Prepares the gradients of one time scale before each optimizer step of a func phase.

    Steps count from 1; with interval k the scale moves at k, 2k, ... (0 counts as 1). "skip" removes the gradients at
    the other steps: without one, neither momentum nor weight decay moves a parameter. "accumulate" does so too, and the
    update uses the interval's mean gradient. "zero_grad" zeroes the gradients and lets the optimizer step.

    Args:
        parameters: Those of the scale.
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
        """Number of steps in the unfinished interval."""
        return self.steps % self.interval

    def before_step(self) -> bool:
        """Count one step and prepare the gradients for it; return whether the scale moves at this step."""
        self.steps += 1
        moves = self.pending == 0
        if self.mode == "accumulate":
            self._accumulate(moves)
        elif not moves:
            for parameter in self.parameters:
                if self.mode == "zero_grad" and parameter.grad is not None:
                    parameter.grad.zero_()
                else:
                    parameter.grad = None
        return moves and bool(self.parameters)

    def _accumulate(self, moves: bool) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        if self.sums:
            self.sums = [total + new for total, new in zip(self.sums, gradients, strict=True)]
        else:  # copies, as the next step may write its gradients into the same tensors
            self.sums = [gradient.clone() for gradient in gradients]
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = total / self.interval if moves else None
        if moves:
            self.sums = []

    def state(self) -> dict[str, Any]:
        """Return the steps counted and the gradients accumulated, for `restore`."""
        return {"steps": self.steps, "sums": self.sums}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.sums = [total.to(parameter) for total, parameter in zip(state["sums"], self.parameters, strict=False)]


def steps_of(images: int, batch_size: int, epochs: int) -> int:
    """Return the number of optimizer steps of a phase."""
    return epochs * math.ceil(images / batch_size)


def check_intervals(config: Any, steps: int, task: int, scales: Iterable[TimeScale] = GATED) -> None:
    """Raise ConfigError if a scale's interval is longer than the func phase of a task: it would never move."""
    for scale in scales:
        if scale.interval(config) > steps:
            number = f"{steps} optimizer step{'s' * (steps != 1)}"
            raise ConfigError(
                f"{scale.interval_key} is {scale.interval(config)}, but a func phase of task {task} has {number} "
                f"(func_epoch x batches): {scale.name} would never move; choose {steps} at most"
            )
