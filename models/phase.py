"""A func or an rd phase in progress: optimizer, schedule, gates, watches, and the sums of the current epoch.

Shapes: B batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn, optim

from utils.errors import DivergenceError
from utils.runs.events import Cadence
from utils.timescales.gate import Gate
from utils.timescales.telemetry import Telemetry
from utils.timescales.watch import CadenceWatch

PhaseName = Literal["func", "rd"]


@dataclass
class EpochSums:
    """Sums over the batches of an epoch so far. Tensors stay on the device, so that no step waits for the host.

    Attributes:
        loss: Sum over images.
        correct: Number of correct predictions.
        batches: Number of batches, skipped ones included.
        images: Number of images in the batches that were trained on.
        moved: By gated time scale, the optimizer steps of the phase at which it moved.
        skipped: Batches, counted from 1, that were left out because their loss was not finite.
    """

    loss: Tensor
    correct: Tensor
    batches: int = 0
    images: int = 0
    moved: dict[str, list[int]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    _unchecked: list[tuple[int, Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, device: torch.device) -> Self:
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss: Tensor, correct: Tensor, images: int, moves: Mapping[str, int]) -> None:
        """Count a batch that was trained on.

        Args:
            loss: () mean over the batch.
            correct: () correct predictions.
            images: B.
            moves: The number of the step, by the time scales that moved at it.
        """
        self.batches += 1
        self.images += images
        self.loss = self.loss + loss.detach() * images
        self.correct = self.correct + correct
        for scale, step in moves.items():
            self.moved.setdefault(scale, []).append(step)
        self._unchecked.append((self.batches, loss.detach()))

    def skip(self) -> None:
        """Count a batch that was left out."""
        self.batches += 1
        self.skipped.append(self.batches)

    def first_not_finite(self) -> tuple[int, float] | None:
        """Return the first batch whose loss is NaN or infinite, and the loss, among those not checked before."""
        if not self._unchecked:
            return None
        numbers, losses = zip(*self._unchecked, strict=True)
        self._unchecked = []
        values = torch.stack(losses)
        bad = (~values.isfinite()).nonzero().flatten().tolist()
        return (numbers[bad[0]], float(values[bad[0]])) if bad else None

    def state(self) -> dict[str, Any]:
        names = ("loss", "correct", "batches", "images", "moved", "skipped")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, state: Mapping[str, Any], device: torch.device) -> Self:
        return cls(**{**state, **{name: state[name].to(device) for name in ("loss", "correct")}})


class Phase:
    """Everything a phase needs beside the network; can save and restore itself.

    Args:
        name: "func" or "rd".
        task: Number of the task.
        cycle: Number of the training cycle in the task.
        epochs: Number of epochs of the phase.
        optimizer: Its groups have names.
        scheduler: Of the optimizer, stepped once an epoch.
        gates: By name of the time scale.
        watched: By name of a gated time scale, the parameters of the network that train on it. They are not read from
            the gates, whose work the watches check.
        telemetry: Of the adapters that train.
        device: Of the sums.

    Attributes:
        watches: By name of a gated time scale that trains, what observes when its values change.
        epoch: Number of epochs completed.
        steps: Number of optimizer steps made.
        sums: Of the current epoch.
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
        """All parameters of the optimizer."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def rates(self) -> dict[str, float]:
        """The current learning rate of every group."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    @property
    def place(self) -> dict[str, Any]:
        """Task, cycle and name, for events."""
        return {"task": self.task, "cycle": self.cycle, "phase": self.name}

    def __str__(self) -> str:
        return f"task {self.task} cycle {self.cycle} {self.name} phase, epoch {self.epoch + 1}"

    def step(self, loss: Tensor) -> dict[str, int]:
        """Make one optimizer step; return its number, counted from 1, by the gated time scales that move at it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.steps += 1
        moves = {scale: self.steps for scale, gate in self.gates.items() if gate.before_step()}
        self.optimizer.step()
        for watch in self.watches.values():
            watch.after_step()
        return moves

    def end_epoch(self) -> None:
        self.scheduler.step()
        self.epoch += 1
        self.sums = EpochSums.empty(self.device)

    def measures(self, every: int, last: bool) -> bool:
        """Return whether the next step measures telemetry: every so many steps, or (0) the last of an epoch."""
        return bool(self.telemetry) and ((self.steps + 1) % every == 0 if every else last)

    def cadence(self) -> list[Cadence]:
        """Return an event for each gated time scale: the steps at which its values changed."""
        return [
            Cadence(
                **self.place, scale=scale, steps=watch.steps, tensors=len(watch.parameters), observed=watch.observed()
            )
            for scale, watch in self.watches.items()
        ]

    def refuse_divergence(self) -> None:
        """Raise DivergenceError, with the place and the rates, if a loss or a parameter is not finite."""
        rates = ", ".join(f"{name} {rate:g}" for name, rate in self.rates.items())
        if bad := self.sums.first_not_finite():
            raise DivergenceError(f"{self}, batch {bad[0]}: the loss is {bad[1]} (rates: {rates})")
        if not bool(torch.stack([parameter.detach().isfinite().all() for parameter in self.parameters]).all()):
            raise DivergenceError(f"{self}, by batch {self.sums.batches}: a parameter is not finite (rates: {rates})")

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, for `load_state_dict` of a phase of the same name on the same network."""
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
        self.epoch, self.steps = state["epoch"], state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for scale, gate in self.gates.items():
            gate.restore(state["gates"][scale])
        for scale, watch in self.watches.items():
            watch.restore(state["watches"][scale])
        self.telemetry.restore(state["telemetry"])
        self.sums = EpochSums.restore(state["sums"], self.device)
