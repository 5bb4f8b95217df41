"""How a phase steps: its optimizer, groups, schedule and slow gate, what watches them, and where the learner stands.

Shapes: B batch.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from backbone.sema_block import SEMAModules
from models.base import BaseLearner, EventSink, no_events
from models.epoch import EpochSums
from models.views import KeptViews
from utils.errors import DivergenceError
from utils.timescales.gate import SlowGate, verify_gate
from utils.timescales.groups import describe, func_groups, make_optimizer, rd_groups, verify_groups, verify_kind
from utils.timescales.telemetry import Telemetry
from utils.timescales.watch import CadenceWatch

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
        begun: Whether the current phase has its optimizer.
    """

    stage: Literal["scan", "func", "rd", "end", "done"]
    cycle: int = 0
    epoch: int = 0
    scan: int = 0
    batch: int = 0
    added: bool = False
    begun: bool = False


class StepLearner(BaseLearner):
    """Makes a phase's optimizer with all that belongs to it, and steps it."""

    def __init__(self, args: Mapping[str, Any], events: EventSink = no_events) -> None:
        super().__init__(args, events)
        self.position = Position("done")
        self.trained: dict[str, tuple[str, int]] = {}  # by a parameter's name: what it is, and its size then

    @property
    def nested(self) -> bool:
        """Whether the adapters are nested."""
        return bool(self.args.ffn_adapter_type == "nested_lora")

    def _epochs(self, phase: Phase) -> int:
        return int({"func": self.args.func_epoch, "rd": self.args.rd_epoch}[phase])

    def update_optimizer_and_scheduler(self, phase: Phase, epochs: int) -> None:
        """Make the phase's optimizer, its cosine schedule to `min_lr` over `epochs`, and the slow gate."""
        make_groups = {"func": func_groups, "rd": rd_groups}[phase]
        groups = make_groups(self._network.roles(), self.args)
        logger.info("task %d cycle %d %s phase", self.cur_task, self.position.cycle, phase)
        self.optimizer = make_optimizer(groups, self.args)
        self._note_trained()
        self.scheduler = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, max(1, epochs), self.args.min_lr)
        slow = [parameter for group in groups if group["name"] == "slow" for parameter in group["params"]]
        self.gate = SlowGate(slow, self.args.nested_lora_update_interval_slow, self.args.nested_lora_slow_update)
        self.watch = CadenceWatch(self._trainable("slow") if phase == "func" else ())
        self.telemetry = Telemetry(self._network.nested_adapters() if self.watch.parameters else ())
        self.sums = EpochSums.empty(self.device)
        self.views = KeptViews()

    def phase_state(self) -> dict[str, Any]:
        """Everything a phase in progress has beside the network, for `restore_phase`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "gate": self.gate.state(),
            "watch": self.watch.moved(),
            "telemetry": self.telemetry.state(),
            "sums": self.sums.state(),
        }

    def restore_phase(self, phase: Phase, state: Mapping[str, Any]) -> None:
        """Go on with a phase of the network as it is now."""
        self.update_optimizer_and_scheduler(phase, self._epochs(phase))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.gate.restore(state["gate"])
        self.watch.restore(state["watch"])
        self.telemetry.restore(state["telemetry"])
        self.sums = EpochSums.restore(state["sums"], self.device)

    def _trainable(self, role: str) -> list[nn.Parameter]:
        return [parameter for name, parameter in self._network.roles() if name == role and parameter.requires_grad]

    def _note_trained(self) -> None:
        """Remember what the optimizer holds, for the account of what this task trained."""
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        roles = {id(parameter): role for role, parameter in self._network.roles()}
        named = [(name, p) for name, p in self._network.named_parameters() if id(p) in held]
        self.trained |= {name: (roles[id(parameter)], parameter.numel()) for name, parameter in named}

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

    def _refuse_divergence(self) -> None:
        """Stop where a loss or a parameter is not finite.

        Raises:
            DivergenceError: Names phase, task, epoch, batch and rates.
        """
        rates = ", ".join(f"{group['name']} {group['lr']:g}" for group in self.optimizer.param_groups)
        place = self._place()
        if bad := self.sums.first_not_finite():
            raise DivergenceError(f"{place}, batch {bad[0]}: the loss is {bad[1]} (rates: {rates})")
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if not bool(torch.stack([parameter.detach().isfinite().all() for parameter in held]).all()):
            raise DivergenceError(f"{place}, by batch {self.sums.batches}: a parameter is not finite (rates: {rates})")

    def _place(self) -> str:
        phase = "rd" if self.position.stage == "rd" else "func"
        return f"task {self.cur_task} cycle {self.position.cycle} {phase} phase, epoch {self.position.epoch + 1}"

    def _where(self, phase: Phase) -> dict[str, Any]:
        return {"task": self.cur_task, "cycle": self.position.cycle, "phase": phase}

    @staticmethod
    def _layers(slots: list[SEMAModules]) -> list[int]:
        return [slot.layer for slot in slots]

    def _report_phase(self, phase: Phase) -> None:
        names = [group["name"] for group in self.optimizer.param_groups]
        if phase == "func" and self.nested and names == ["other"]:
            logger.info("task %d: no adapter trains, slow and fast are empty, the head alone learns", self.cur_task)
        held = [describe(group) for group in self.optimizer.param_groups]
        self.events("phase", **self._where(phase), groups=held)

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
