"""SEMA's learner: when a task's data ask for an adapter, what trains when, and what is frozen after.

A task is a walk through stages (`Position`): task 0 is func, rd, end; a later one scans, and either every request for
an adapter starts a func + rd cycle after which the scan goes on, or nothing asks and only func follows. Each stage does
its work and names the next: a position, the network and the phase are all there is to a half-finished task.

Shapes: B batch, S image side, D embedding width, A adapters at a layer, C classes.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from backbone.sema_block import SEMAModules
from models.base import BaseLearner, Setup
from models.losses import FuncLoss, Loss, RdLoss
from models.phase import Phase, PhaseName
from models.protocol import Hooks, Predictions
from models.refill import NO_Z, Refill
from models.router import mean_weights, router_weights
from models.training import PhaseTrainer
from utils.choices import LEARNERS
from utils.data.loader import Batch
from utils.inc_net import SEMAVitNet
from utils.progress import progress
from utils.runs import events
from utils.streams import seeded
from utils.timescales.gate import Gate, check_intervals, steps_of
from utils.timescales.groups import func_groups, make_optimizer, rd_groups, verify_scales
from utils.timescales.scales import GATED
from utils.timescales.telemetry import Telemetry, to_host

logger = logging.getLogger(__name__)


@dataclass
class Position:
    """Where in a task the learner stands.

    Attributes:
        stage: What to do next.
        cycle: Adapters added in this task so far, which is also the number of the current training cycle.
        scan: Number of the current scan.
        batch: Batches of the current scan that were looked at.
        added: Whether the current scan added an adapter.
    """

    stage: Literal["scan", "func", "rd", "end", "done"]
    cycle: int = 0
    scan: int = 0
    batch: int = 0
    added: bool = False


@LEARNERS.register("sema")
class Learner(BaseLearner):
    """Self-expansion with modularised adaptation (SEMA, arXiv 2403.18886), with adapters of any type.

    Args:
        args: What it is made of; a dictionary of the public implementation's keys will do.
        network: What learns; None: a new one.
        hooks: Whom it talks to.
    """

    def __init__(
        self, args: Setup | Mapping[str, Any], network: SEMAVitNet | None = None, hooks: Hooks | None = None
    ) -> None:
        super().__init__(args, network, hooks)
        self.position = Position("done")
        self.phase: Phase | None = None
        self.batches: Iterator[Batch] | None = None  # of the scan

    # ---- a task

    def begin_task(self) -> None:
        """Let continual adapters learn again, and measure how far the task is from what they know."""
        super().begin_task()
        self.position = Position("scan" if self.cur_task else "func")
        for slot in self.network.slots if self.cur_task else ():
            with seeded(self.seed, "begin", self.cur_task, slot.layer):
                revived = slot.begin_task()
            if revived:
                logger.info("task %d layer %d: adapters %s re-initialised", self.cur_task, slot.layer, revived)
        self._measure_z("before")

    def learn_task(self) -> None:
        """Walk through the stages of a task, from where the position says to its end.

        Raises:
            ConfigError: A time scale's interval is larger than the number of steps of a func phase.
        """
        stages = {"scan": self._scan, "func": self._func, "rd": self._rd, "end": self._end_task}
        while self.position.stage != "done":
            stages[self.position.stage]()
            self.hooks.keep("stage")

    def settled_layers(self) -> int:
        """After task 0 nothing below the first expandable layer learns, unless adapters do so in every task."""
        learned = self.cur_task > 0 or self.position.stage == "done"
        return self.config.adapt_start_layer if learned and not self.network.continual else 0

    # ---- training: groups, gates, phases

    def update_optimizer_and_scheduler(self, name: PhaseName) -> Phase:
        """Make a phase: slow and fast groups (a group for each time scale), optimizer, schedule and slow gate."""
        config, epochs = self.config, {"func": self.config.func_epoch, "rd": self.config.rd_epoch}[name]
        logger.info("task %d cycle %d %s phase", self.cur_task, self.position.cycle, name)
        groups = {"func": func_groups, "rd": rd_groups}[name](self.network.roles(), config)
        verify_scales(groups, self.network.adapter_type.branches)
        optimizer = make_optimizer(groups, config)
        members = {group["name"]: group["params"] for group in groups}
        gates = {s.name: Gate(members.get(s.name, ()), s.interval(config), s.update(config)) for s in GATED}
        watched = {scale.name: self._learning(scale.name) if name == "func" else [] for scale in GATED}
        return Phase(
            name,
            task=self.cur_task,
            cycle=self.position.cycle,
            epochs=epochs,
            optimizer=optimizer,
            scheduler=optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs), config.min_lr),
            gates=gates,
            watched=watched,
            telemetry=Telemetry(self.network.branched_adapters() if any(watched.values()) else ()),
            device=self.device,
        )

    def _learning(self, role: str) -> list[nn.Parameter]:
        """What the network itself says is trainable in a role; the audit asks it, not the optimizer's groups."""
        return [parameter for name, parameter in self.network.roles() if name == role and parameter.requires_grad]

    def _init_train(self, name: PhaseName) -> None:
        """Train one phase, from where it stands, to its end, with an optimizer of its own."""
        phase = self.phase = self.phase or self._begin_phase(name)
        loss, loader = self.loss(name), self.train_loader
        trainer = PhaseTrainer(phase, loss, self.network, loader, self.config, self.hooks, self.report)
        trainer.to_end(self._score_if_asked)
        self.report.end_of_phase(phase)
        self.phase = None

    def loss(self, name: PhaseName) -> Loss:
        """What a phase of the current task minimises."""
        stream, size = (name, self.cur_task, self.position.cycle), self.config.batch_size
        if name == "func":
            return FuncLoss(self.network, self.train_loader, stream, size, self.known_classes, self.total_classes)
        return RdLoss(self.network, self.train_loader, stream, size, self.config.rd_views)

    def _begin_phase(self, name: PhaseName) -> Phase:
        phase = self.update_optimizer_and_scheduler(name)
        steps = steps_of(len(self.train_loader), self.config.batch_size, phase.epochs)
        check_intervals(self.config, steps, self.cur_task, [scale for scale in GATED if scale.name in phase.gates])
        self._note_trained(phase)
        self.report.phase(phase)
        return phase

    def _note_trained(self, phase: Phase) -> None:
        """Remember what the optimizer holds, for the account of what this task trained."""
        held = {id(parameter) for parameter in phase.parameters}
        roles = {id(parameter): role for role, parameter in self.network.roles()}
        named = [(name, parameter) for name, parameter in self.network.named_parameters() if id(parameter) in held]
        self.trained |= {name: (roles[id(parameter)], parameter.numel()) for name, parameter in named}

    def _score_if_asked(self) -> None:
        phase, every = self.phase, self.config.eval_every
        if phase is not None and phase.name == "func" and every and phase.epoch % every == 0:
            self.report.accuracy(phase, self.eval_task()[0])

    def _func(self) -> None:
        """Train adapters, routers and head; without a new adapter that leaves the head (and what is continual)."""
        for slot in self.network.slots:
            slot.begin_func_phase()
        self._init_train("func")
        trains_descriptors = any(slot.describing for slot in self.network.expandable)
        self.position.stage = "rd" if trains_descriptors else "end"

    def _rd(self) -> None:
        """Train the descriptors of the adapters this cycle added, and close the cycle."""
        self._init_train("rd")
        for slot in self.network.slots:
            slot.end_of_cycle()
        self.position.stage = "scan" if self.cur_task else "end"

    # ---- expansion

    def _scan(self) -> None:
        """Look at the task's images, batch after batch, until a layer asks for an adapter or the pass ends."""
        for images in self._remaining_images():
            self.position.batch += 1
            slot = self.look(images)
            if slot is not None:
                return self._expand(slot)
            self.hooks.keep("step")
        self.batches = None
        open_slots = [slot for slot in self.network.expandable if not slot.added]
        if self.position.added and open_slots:
            self.position = Position("scan", self.position.cycle, scan=self.position.scan + 1)
        else:
            self.position.stage = "end" if self.position.cycle else "func"

    def _remaining_images(self) -> Iterator[Tensor]:
        """The batches this scan has not looked at, (B, 3, S, S) each."""
        size, place = self.config.detect_batch_size, self.position
        self.network.eval()
        if self.batches is None:
            self.batches = self.scan_loader.epoch(
                "scan", self.cur_task, place.scan, batch_size=size, shuffle=True, start=place.batch
            )
        total, what = self.scan_loader.batches(size), f"task {self.cur_task} scan {place.scan}"
        for _, images, _ in progress(self.batches, what, total, done=place.batch):
            yield images

    def look(self, images: Tensor) -> SEMAModules | None:  # (B, 3, S, S)
        """Look at a batch of a scan, and report it; the layer that asks for an adapter, if there is one."""
        return self._first_asking(self.network.token_means(images, layers_of(self.network.expandable)))

    def _first_asking(self, means: dict[int, Tensor]) -> SEMAModules | None:
        """The shallowest layer, not yet expanded in this task, all of whose descriptors find the batch strange."""
        found = {str(slot.layer): slot.z_scores(means[slot.layer]).mean(dim=1) for slot in self.network.expandable}
        z = {layer: values.tolist() for layer, values in to_host([found])[0].items()}
        threshold = self.config.exp_threshold
        asking = [s for s in self.network.expandable if not s.added and min(z[str(s.layer)]) > threshold]
        place, expands = self.position, asking[0].layer if asking else None
        self.hooks.events(
            events.Scan(
                task=self.cur_task, scan=place.scan, batch=place.batch, z=z, threshold=threshold, expands=expands
            )
        )
        return asking[0] if asking else None

    def _expand(self, slot: SEMAModules) -> None:
        place = self.position
        with seeded(self.seed, "adapter", slot.layer, slot.num_adapters):
            slot.expand()
        place.stage, place.cycle, place.added = "func", place.cycle + 1, True
        where = f"task {self.cur_task} scan {place.scan} batch {place.batch}"
        logger.info("%s: layer %d gets adapter %d", where, slot.layer, slot.num_adapters - 1)

    # ---- the end of a task: consolidation

    def _end_task(self) -> None:
        """Consolidate if configured, freeze everything but the head, refill the records consolidation made stale."""
        self._measure_z("after")
        if any(slot.consolidates for slot in self.network.slots):
            self._consolidate()
        else:
            self._close()
        self.position.stage = "done"

    def _consolidate(self) -> None:
        """Close every slot, with what that changes: accuracies, outputs, and the z-scores of the task's images."""
        before, whole = self.eval_task()
        self._score_branches("before_consolidation", whole)
        receipts = self._close(self._probe())
        z = self._refill_records()
        receipts = [{**receipt, **z.get((receipt["layer"], receipt["adapter"]), NO_Z)} for receipt in receipts]
        self.report.consolidation(self.cur_task, receipts, before, self.eval_task()[0])

    def _close(self, probe: Mapping[int, Tensor] | None = None) -> list[dict[str, Any]]:
        """End the task in every slot, which consolidates; a receipt for each consolidated adapter."""
        receipts = []
        for slot in self.network.slots:
            with seeded(self.seed, "consolidation", self.cur_task, slot.layer):
                receipts += slot.end_of_task_training((probe or {}).get(slot.layer), self.cur_task)
        return receipts

    def _probe(self) -> dict[int, Tensor]:
        """One batch of the task as every slot that trained sees it, (B, N, D), before any layer is consolidated."""
        size = min(self.config.batch_size, len(self.train_loader))
        batches = self.train_loader.epoch("probe", self.cur_task, batch_size=size, shuffle=True)
        _, images, _ = next(iter(batches))
        self.network.eval()
        return self.network.slot_inputs(images, layers_of([slot for slot in self.network.slots if slot.trained]))

    def _refill_records(self) -> dict[tuple[int, int], dict[str, float]]:
        """Take the records of the adapters added in this task anew, from the features as they are now.

        Returns:
            By layer and adapter, what that did to the z-scores of the task's training images.
        """
        slots = [slot for slot in self.network.expandable if slot.added]
        refills = [Refill(slot) for slot in slots]
        for means in self._pass("refill", slots) if slots else ():
            for refill in refills:
                refill.observe(means[refill.layer])
        return {(refill.layer, refill.adapter): refill.z_statistics() for refill in refills}

    # ---- what is measured beside training

    @torch.no_grad()
    def _pass(self, purpose: str, slots: list[SEMAModules]) -> Iterator[dict[int, Tensor]]:
        """Token means at `slots` over one gradient-free pass of the task's training images."""
        self.network.eval()
        size = self.config.detect_batch_size
        batches = self.train_loader.epoch(purpose, self.cur_task, batch_size=size, shuffle=True)
        for _, images, _ in progress(batches, f"task {self.cur_task} {purpose}", self.train_loader.batches(size)):
            yield self.network.token_means(images, layers_of(slots))
            self.hooks.keep("wait")

    def _measure_z(self, when: Literal["before", "after"]) -> None:
        """Of continual adapters: how far the task's images are from what older descriptors know."""
        slots = self.network.expandable
        if not (self.network.continual and self.cur_task):
            return
        sums = [torch.zeros(slot.num_adapters, device=self.device) for slot in slots]
        for means in self._pass(f"z-{when}", slots):
            for slot, total in zip(slots, sums, strict=True):
                total += slot.z_scores(means[slot.layer]).sum(dim=1)
        z = {str(s.layer): (total / len(self.train_loader)).tolist() for s, total in zip(slots, sums, strict=True)}
        self.report.mean_z(self.cur_task, when, z)

    def _score_branches(
        self, when: Literal["before_consolidation", "after_task"], whole: Predictions
    ) -> dict[str, Predictions]:
        if not (self.network.adapter_type.branches and self.config.branch_eval):
            return {}
        return self.report.branches(self.cur_task, when, whole, self.predict, self.task_sizes)

    def report_task(self) -> tuple[dict[str, Any], Predictions, dict[str, Predictions]]:
        """`eval_task` with the router's mean weights, and predictions by branches of the adapters."""
        with router_weights(self.network.expandable) as seen:
            accuracy, predictions = self.eval_task()
        weights = mean_weights(seen, predictions.labels, self.task_sizes)
        self.hooks.events(events.Router(task=self.cur_task, weights=weights))
        return accuracy, predictions, self._score_branches("after_task", predictions)

    # ---- the state of a task in progress

    def where(self) -> str:
        """Where in a task the learner stands, for the log."""
        epoch = self.phase.epoch + 1 if self.phase else 1
        return f"task {self.cur_task}: stage {self.position.stage}, epoch {epoch}"

    def state(self) -> dict[str, Any]:
        """As the base's, with what is half done."""
        if self.phase:
            self.phase.refuse_divergence()
        phase = self.phase.state_dict() if self.phase else None
        return {**super().state(), "position": asdict(self.position), "phase": phase}

    def restore(self, state: Mapping[str, Any]) -> None:
        """As the base's, with the phase in progress."""
        super().restore(state)
        self.position = Position(**state["position"])
        self.batches, self.phase = None, None
        if state["phase"] is not None:
            self.phase = self.update_optimizer_and_scheduler(state["phase"]["name"])
            self.phase.load_state_dict(state["phase"])


def layers_of(slots: list[SEMAModules]) -> list[int]:
    """Indices of their blocks."""
    return [slot.layer for slot in slots]
