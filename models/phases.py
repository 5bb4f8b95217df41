"""How one phase trains: its optimizer, groups and slow gate, its epochs, its losses, its reports.

Shapes: B batch, S image side, C classes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from backbone.sema_block import SEMAModules
from backbone.sema_components import Role
from models.base import BaseLearner, EventSink, no_events
from utils.audit import CadenceWatch
from utils.param_groups import (
    SlowGate,
    check_interval,
    describe,
    func_groups,
    make_optimizer,
    rd_groups,
    steps_of,
    verify_gate,
    verify_groups,
    verify_kind,
)
from utils.runlog import progress
from utils.telemetry import Telemetry

logger = logging.getLogger(__name__)

Phase = Literal["func", "rd"]


@dataclass
class Position:
    """Where in a task the learner stands.

    Attributes:
        stage: What to do next.
        cycle: Adapters added in this task so far, which is also the number of the current training cycle.
        epoch: Epochs of the current phase that are complete.
        scan: Number of the current scan.
        batch: Batches of the current scan that were looked at.
        added: Whether the current scan added an adapter.
    """

    stage: Literal["scan", "func", "rd", "end", "done"]
    cycle: int = 0
    epoch: int = 0
    scan: int = 0
    batch: int = 0
    added: bool = False


class PhaseLearner(BaseLearner):
    """Trains the func and the rd phase of whatever is trainable."""

    def __init__(self, args: Mapping[str, Any], events: EventSink = no_events) -> None:
        super().__init__(args, events)
        self.position = Position("done")
        self.trained: dict[int, Role] = {}  # holds the parameters, so that no id is given twice

    @property
    def nested(self) -> bool:
        """Whether the adapters are nested."""
        return bool(self.args.ffn_adapter_type == "nested_lora")

    def _init_train(self, phase: Phase) -> None:
        """Train one phase from the position's epoch to its end, with an optimizer of its own."""
        epochs = {"func": self.args.func_epoch, "rd": self.args.rd_epoch}[phase]
        self.update_optimizer_and_scheduler(phase, epochs)
        while self.position.epoch < epochs:
            self._train_epoch(phase, epochs)
            self.scheduler.step()
            self.position.epoch += 1
            self._score_if_asked(phase)
        self._report_pending()
        self._report_cadence()
        self.position.epoch = 0

    def update_optimizer_and_scheduler(self, phase: Phase, epochs: int) -> None:
        """Make the phase's optimizer, its cosine schedule to `min_lr` over `epochs`, and the slow gate.

        Raises:
            ConfigError: The slow interval is larger than the number of steps of the phase.
        """
        make_groups = {"func": func_groups, "rd": rd_groups}[phase]
        groups = make_groups(self._network.roles(), self.args)
        logger.info("task %d cycle %d %s phase", self.cur_task, self.position.cycle, phase)
        self.optimizer = make_optimizer(groups, self.args)
        self._note_trained()
        self.scheduler = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, max(1, epochs), self.args.min_lr)
        slow = [parameter for group in groups if group["name"] == "slow" for parameter in group["params"]]
        self.gate = SlowGate(slow, self.args.nested_lora_update_interval_slow, self.args.nested_lora_slow_update)
        if slow:
            steps = steps_of(len(self.train_loader), self.args.batch_size, epochs)
            check_interval(self.gate.interval, steps, self.cur_task)
        if phase == "func" and not any(group["params"] for group in groups[:-1]) and self.nested:
            logger.info("task %d: no adapter trains, slow and fast are empty, the head alone learns", self.cur_task)
        self.watch = CadenceWatch(self._trainable("slow") if phase == "func" else ())
        self.telemetry = Telemetry(self._network.nested_adapters() if self.watch.parameters else ())
        held = [describe(group) for group in self.optimizer.param_groups]
        self.events("phase", **self._where(phase), groups=held)

    def _trainable(self, role: str) -> list[nn.Parameter]:
        return [parameter for name, parameter in self._network.roles() if name == role and parameter.requires_grad]

    def _note_trained(self) -> None:
        """Remember what the optimizer holds, for the account of what this task trained."""
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        self.trained |= {id(p): (role, p) for role, p in self._network.roles() if id(p) in held}

    def _train_epoch(self, phase: Phase, epochs: int) -> None:
        """One pass over the task's images, and its report."""
        self._network.train(phase == "func")
        size, epoch = self.args.batch_size, self.position.epoch
        batches = self.train_loader.epoch(
            phase, self.cur_task, self.position.cycle, epoch, batch_size=size, shuffle=True
        )
        what = f"task {self.cur_task} cycle {self.position.cycle} {phase} {epoch + 1}/{epochs}"
        losses = {"func": self._func_loss, "rd": self._rd_loss}[phase]
        total, correct = torch.zeros(2, device=self.device)
        moved: list[int] = []
        last = self.train_loader.batches(size)
        for number, (_, images, labels) in enumerate(progress(batches, what, last), start=1):
            measures = self._measures(number == last)
            if measures:
                self.telemetry.arm()
            loss, hits = losses(images, labels)
            moved += self._step(loss)
            if measures:
                self._report_telemetry()
            total += loss.detach() * len(labels)
            correct += hits
        self._report_epoch(phase, float(total), float(correct), moved)

    def _func_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy over the task's own classes (all others count as -inf), and the number of hits."""
        logits = self._network(images)["logits"][:, self.known_classes : self.total_classes]
        own = labels - self.known_classes
        return nn.functional.cross_entropy(logits, own), (logits.argmax(dim=1) == own).sum()

    def _rd_loss(self, images: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over layers of the descriptor losses of what this cycle added; the backbone gets no gradient."""
        slots = [slot for slot in self._network.expandable if slot.describing]
        means = self._network.token_means(images, self._layers(slots))
        return torch.stack([slot.rd_loss(means[slot.layer]) for slot in slots]).sum(), torch.zeros(
            (), device=self.device
        )

    def _step(self, loss: Tensor) -> list[int]:
        """One optimizer step; its number, if slow moved in it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        moves = self.gate.before_step()
        self.optimizer.step()
        self.watch.after_step()
        if self.gate.steps == 1 and self.optimizer.param_groups[0]["name"] != "descriptor":
            verify_kind(self._network.roles(), self.args)
            verify_groups(self.optimizer, self._network.roles(), self.args)
            verify_gate(self.gate, self._network.roles(), self.args)
        return [self.gate.steps] if moves else []

    def _where(self, phase: Phase) -> dict[str, Any]:
        return {"task": self.cur_task, "cycle": self.position.cycle, "phase": phase}

    @staticmethod
    def _layers(slots: list[SEMAModules]) -> list[int]:
        return [slot.layer for slot in slots]

    def _report_epoch(self, phase: Phase, total: float, correct: float, moved: list[int]) -> None:
        images, epoch = len(self.train_loader), self.position.epoch
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        accuracy = {"train_accuracy": 100 * correct / images, "slow_steps": moved} if phase == "func" else {}
        self.events("epoch", **self._where(phase), epoch=epoch, loss=total / images, lr=rates, **accuracy)
        shown = f", train accuracy {accuracy['train_accuracy']:.2f}" if accuracy else ""
        logger.info("task %d %s epoch %d: loss %.4f%s", self.cur_task, phase, epoch + 1, total / images, shown)

    def _report_pending(self) -> None:
        if self.gate.parameters and self.gate.pending:
            kept = " with their gradients" if self.gate.mode == "accumulate" else ""
            logger.info("the last %d steps, an unfinished slow interval, are dropped%s", self.gate.pending, kept)

    def _measures(self, last: bool) -> bool:
        """Whether telemetry is due in the coming step: every so many, or (0) in the last of an epoch."""
        every = self.args.telemetry_every
        due = (self.gate.steps + 1) % every == 0 if every else last
        return due and bool(self.watch.parameters)

    def _report_telemetry(self) -> None:
        place = {"task": self.cur_task, "cycle": self.position.cycle, "epoch": self.position.epoch}
        self.events("telemetry", **place, step=self.gate.steps, layers=self.telemetry.measure())

    def _report_cadence(self) -> None:
        if self.watch.parameters:
            sizes = {"steps": self.watch.steps, "tensors": len(self.watch.parameters)}
            self.events("cadence", **self._where("func"), **sizes, observed=self.watch.observed())

    def _score_if_asked(self, phase: Phase) -> None:
        every = self.args.eval_every
        if phase == "func" and every and self.position.epoch % every == 0:
            self.events("eval", **self._where(phase), epoch=self.position.epoch - 1, accuracy=self.eval_task()[0])
