"""A func or an rd phase in progress: all that steps, schedules, gates and watches its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from models.epoch import EpochSums
from utils.errors import DivergenceError
from utils.runs.events import Cadence
from utils.timescales.gate import Gate
from utils.timescales.telemetry import Telemetry
from utils.timescales.watch import CadenceWatch

PhaseName = Literal["func", "rd"]


class Phase:
    """Owns what one phase needs beside the network, and can save and restore it.

    Args:
        name: "func" or "rd".
        task: Number of the task.
        cycle: Number of the training cycle in it.
        epochs: How many the phase has.
        optimizer: Its groups have names.
        scheduler: Of the optimizer, stepped once an epoch.
        gates: By name of the time scale, its gate.
        watched: By name of a gated time scale, the parameters of the network that train on it, whatever its gate holds.
        telemetry: Of the adapters that train.
        device: Of the sums.

    Attributes:
        watches: By name of the time scale, what observes when the values of `watched` change; of scales that train.
        epoch: Epochs that are complete.
        steps: Optimizer steps that are done.
        sums: What the current epoch has added up.
    """

    def __init__(
        self,
        name: PhaseName,
        *,
        task: int,
        cycle: int,
        epochs: int,
        optimizer: optim.Optimizer,
        scheduler: optim.lr_scheduler.LRScheduler,
        gates: Mapping[str, Gate],
        watched: Mapping[str, Sequence[nn.Parameter]],
        telemetry: Telemetry,
        device: torch.device,
    ) -> None:
        self.name: PhaseName = name
        self.task, self.cycle, self.epochs = task, cycle, epochs
        self.optimizer, self.scheduler = optimizer, scheduler
        self.gates = {scale: gate for scale, gate in gates.items() if gate.parameters}
        self.watches = {scale: CadenceWatch(parameters) for scale, parameters in watched.items() if parameters}
        self.telemetry, self.device = telemetry, device
        self.epoch, self.steps = 0, 0
        self.sums = EpochSums.empty(device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything the optimizer holds."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of every group now."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    @property
    def place(self) -> dict[str, Any]:
        """Which phase it is, for events."""
        return {"task": self.task, "cycle": self.cycle, "phase": self.name}

    def __str__(self) -> str:
        return f"task {self.task} cycle {self.cycle} {self.name} phase, epoch {self.epoch + 1}"

    def step(self, loss: Tensor) -> dict[str, int]:
        """One optimizer step; its number, counted from 1, by the gated time scales that move at it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.steps += 1
        moves = {scale: self.steps for scale, gate in self.gates.items() if gate.before_step()}
        self.optimizer.step()
        for watch in self.watches.values():
            watch.after_step()
        return moves

    def end_epoch(self) -> None:
        """The schedule moves on, and the next epoch begins."""
        self.scheduler.step()
        self.epoch += 1
        self.sums = EpochSums.empty(self.device)

    def measures(self, every: int, last: bool) -> bool:
        """Whether telemetry is due in the coming step: every so many, or (0) in the last of an epoch."""
        return bool(self.telemetry) and ((self.steps + 1) % every == 0 if every else last)

    def cadence(self) -> list[Cadence]:
        """What the watches saw, one event for each gated time scale."""
        return [
            Cadence(
                **self.place, scale=scale, steps=watch.steps, tensors=len(watch.parameters), observed=watch.observed()
            )
            for scale, watch in self.watches.items()
        ]

    def refuse_divergence(self) -> None:
        """Stop where a loss or a parameter is not finite.

        Raises:
            DivergenceError: Names phase, task, epoch, batch and rates.
        """
        rates = ", ".join(f"{name} {rate:g}" for name, rate in self.rates.items())
        if bad := self.sums.first_not_finite():
            raise DivergenceError(f"{self}, batch {bad[0]}: the loss is {bad[1]} (rates: {rates})")
        if not bool(torch.stack([parameter.detach().isfinite().all() for parameter in self.parameters]).all()):
            raise DivergenceError(f"{self}, by batch {self.sums.batches}: a parameter is not finite (rates: {rates})")

    def state_dict(self) -> dict[str, Any]:
        """Everything, for `load_state_dict` of a phase of the same name on the same network."""
        return {
            "name": self.name,
            "epoch": self.epoch,
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "gates": {scale: gate.state() for scale, gate in self.gates.items()},
            "watches": {scale: watch.moved() for scale, watch in self.watches.items()},
            "telemetry": self.telemetry.state(),
            "sums": self.sums.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from another's state."""
        self.epoch, self.steps = state["epoch"], state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for scale, gate in self.gates.items():
            gate.restore(state["gates"][scale])
        for scale, watch in self.watches.items():
            watch.restore(state["watches"][scale])
        self.telemetry.restore(state["telemetry"])
        self.sums = EpochSums.restore(state["sums"], self.device)
