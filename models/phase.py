"""A func or an rd phase: what it owns (optimizer, schedule, gates, watches, sums of an epoch), and its training loop.

Shapes: B batch.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn, optim

from backbone.sema_components import Records
from models.gradients import Gradients
from models.losses import Loss
from models.protocol import Hooks
from models.views import Source
from utils.config.schema import Config
from utils.data.loader import Batch
from utils.errors import DivergenceError
from utils.inc_net import SEMAVitNet
from utils.progress import progress
from utils.runs import events
from utils.timescales.gate import Gate
from utils.timescales.scales import rate_keys
from utils.timescales.telemetry import Telemetry
from utils.timescales.watch import CadenceWatch

logger = logging.getLogger(__name__)

PhaseName = Literal["func", "rd"]
CHECK_EVERY = 50  # batches between two checks of the losses, each of which waits for the device


@dataclass
class EpochSums:
    """Sums over the batches of an epoch so far. Tensors stay on the device, so that no step waits for the host."""

    loss: Tensor  # sum over images
    correct: Tensor  # number of correct predictions
    batches: int = 0  # skipped ones included
    images: int = 0  # of the batches that were trained on
    moved: dict[str, list[int]] = field(default_factory=dict)  # steps of the phase by the time scale that moved
    skipped: list[int] = field(default_factory=list)  # batches, counted from 1, whose loss was not finite
    _unchecked: list[tuple[int, Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, device: torch.device) -> Self:
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss: Tensor, correct: Tensor, images: int, moves: Mapping[str, int]) -> None:
        """Count a batch of B images: its mean loss (), correct predictions (), and the result of `Phase.step`."""
        self.batches += 1
        self.images += images
        self.loss = self.loss + loss * images
        self.correct = self.correct + correct
        for scale, step in moves.items():
            self.moved.setdefault(scale, []).append(step)
        self._unchecked.append((self.batches, loss))

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


@dataclass(eq=False)
class Phase:
    """Everything a phase needs beside the network; can save and restore itself.

    `gates` and `watches` are by name of the gated time scale. Those without parameters are left out. The parameters of
    the watches are not read from the gates, whose work the watches check.
    """

    name: PhaseName
    _: KW_ONLY
    task: int
    cycle: int  # number of the training cycle in the task
    epochs: int
    optimizer: optim.Optimizer  # its groups have names
    scheduler: optim.lr_scheduler.LRScheduler  # stepped once an epoch
    gates: Mapping[str, Gate]
    watches: Mapping[str, CadenceWatch]
    telemetry: Telemetry  # of the adapters that train
    device: torch.device
    epoch: int = 0  # number of epochs completed
    steps: int = 0  # number of optimizer steps made

    def __post_init__(self) -> None:
        self.gates = {scale: gate for scale, gate in self.gates.items() if gate.parameters}
        self.watches = {scale: watch for scale, watch in self.watches.items() if watch.parameters}
        self.sums = EpochSums.empty(self.device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def rates(self) -> dict[str, float]:
        """The current learning rate of every group."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    @property
    def place(self) -> dict[str, Any]:
        return {"task": self.task, "cycle": self.cycle, "phase": self.name}

    def __str__(self) -> str:
        return f"task {self.task} cycle {self.cycle} {self.name} phase, epoch {self.epoch + 1}"

    def step(self) -> dict[str, int]:
        """Make one optimizer step; return its number, counted from 1, by the gated time scales that move at it.

        The gradients are those of `models.gradients.Gradients`.
        """
        self.steps += 1
        for watch in self.watches.values():
            watch.before_step()
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

    def cadence(self) -> list[events.Cadence]:
        """Return an event for each gated time scale: the steps at which its values changed."""
        return [
            events.Cadence(
                **self.place,
                scale=scale,
                steps=watch.steps,
                tensors=len(watch.parameters),
                observed=watch.observed(),
                idle=watch.idle() or None,
            )
            for scale, watch in self.watches.items()
        ]

    def refuse_divergence(self) -> None:
        """Raise DivergenceError, with the place and the rates, if a loss or a parameter is not finite."""
        rates = ", ".join(f"{name} {rate:g}" for name, rate in self.rates.items())
        if keys := [key for name, key in rate_keys().items() if name in self.rates]:
            rates += f"; keys: {', '.join(keys)}"
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
            "watches": {scale: watch.state() for scale, watch in self.watches.items()},
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


@dataclass
class PhaseTrainer:
    """Trains a phase from where it stands to its end, one step for every batch of `loader`, and reports it."""

    phase: Phase
    loss: Loss
    network: SEMAVitNet
    loader: Source
    config: Config
    hooks: Hooks

    def __post_init__(self) -> None:
        self.gradients = Gradients.of(self.phase.optimizer, self.loss, self.config)

    def to_end(self, after_epoch: Callable[[], None]) -> None:
        """Train the epochs that are left, and call `after_epoch` after each."""
        while self.phase.epoch < self.phase.epochs:
            self._train_epoch()
            self.phase.end_epoch()
            after_epoch()
            self.hooks.keep("epoch")
        for scale, gate in self.phase.gates.items():
            if gate.pending:
                kept = " with their gradients" if gate.mode == "accumulate" else ""
                logger.info("the last %d steps, an unfinished interval of %s, are dropped%s", gate.pending, scale, kept)
        for event in self.phase.cadence():
            self.hooks.events(event)

    def _train_epoch(self) -> None:
        phase, sums = self.phase, self.phase.sums
        self.network.train(self.loss.trains_network)
        last = self.loader.batches(self.config.batch_size)
        what = f"task {phase.task} cycle {phase.cycle} {phase.name} {phase.epoch + 1}/{phase.epochs}"
        if left := self.hooks.time_left():
            what = f"{what} (run: {left} left)"
        for batch in progress(self.loss.batches(phase.epoch, sums.batches), what, last, done=sums.batches):
            self.train_batch(batch, sums.batches + 1 == last)
            if sums.batches % CHECK_EVERY == 0:
                phase.refuse_divergence()
            self.hooks.keep("step" if sums.batches < last else "last step")
        phase.refuse_divergence()
        if not sums.images:
            raise DivergenceError(f"{phase}: no batch has a finite loss")
        self._report_epoch()

    def train_batch(self, batch: Batch, last: bool) -> None:
        """Make the next step, and measure telemetry if it is due; `last` says whether the batch ends its epoch."""
        phase = self.phase
        records = [(slot.newest.records, slot.newest.records.losses) for slot in self.network.expandable]
        measures = phase.measures(self.config.telemetry_every, last)
        if measures:
            phase.telemetry.arm()
        loss, hits = self.gradients(batch, seen=measures)
        # Only with "skip" does the host have to wait for the loss before the step.
        if self.config.on_nan == "skip" and not bool(loss.isfinite()):
            return self._skip_batch(float(loss), records)
        moves = phase.step()
        if measures:
            place = {"task": phase.task, "cycle": phase.cycle, "epoch": phase.epoch, "step": phase.steps}
            with self.hooks.training.paused():
                self.hooks.events(events.Telemetry(**place, layers=phase.telemetry.measure()))
        phase.sums.add(loss, hits, len(batch[0]), moves)

    def _skip_batch(self, loss: float, records: list[tuple[Records, Tensor]]) -> None:
        """Make no step, and take the batch's losses out of the records again."""
        self.phase.telemetry.disarm()
        for record, losses in records:
            record.losses = losses
        self.phase.sums.skip()
        logger.warning("%s, batch %d: the loss is %s; skipped (on_nan)", self.phase, self.phase.sums.batches, loss)

    def _report_epoch(self) -> None:
        phase, sums, func = self.phase, self.phase.sums, self.phase.name == "func"
        event = events.Epoch(
            **phase.place,
            epoch=phase.epoch,
            loss=float(sums.loss) / sums.images,
            lr=phase.rates,
            train_accuracy=100 * float(sums.correct) / sums.images if func else None,
            moved={scale: sums.moved.get(scale, []) for scale in phase.gates} if func else None,
            skipped=sums.skipped or None,
        )
        self.hooks.events(event)
        shown = f", train accuracy {event.train_accuracy:.2f}" if event.train_accuracy is not None else ""
        logger.info("task %d %s epoch %d: loss %.4f%s", phase.task, phase.name, phase.epoch + 1, event.loss, shown)
