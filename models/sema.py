"""SEMA's learner: when a task adds an adapter, what trains when, and what is frozen afterwards.

A task is a sequence of stages (`Position`). Task 0 is func, rd, end. A later task begins with a scan: every layer that
asks for an adapter starts a func + rd cycle, after which the scan goes on; if none asks, func alone follows. The
position, the network and the phase are the whole state of a half-finished task.

Shapes: B batch, S image side, N tokens, D embedding width, A adapters at a layer, C classes.
"""

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from backbone.adapter import FunctionalAdapter
from backbone.sema_block import SEMAModules, relative_change
from backbone.sema_components import Records
from models.alignment import ClassGaussians, Settings, align
from models.base import BaseLearner, Setup, take
from models.losses import FuncLoss, Loss, RdLoss
from models.phase import Phase, PhaseName, PhaseTrainer
from models.protocol import Hooks, Predictions, Report, Tasks
from models.reports import mean_weights, router_weights
from models.views import Source, ViewKeeper
from utils.choices import LEARNERS
from utils.data.loader import Batch
from utils.inc_net import SEMAVitNet
from utils.metrics import count_hits
from utils.progress import progress
from utils.runs import events
from utils.streams import seeded
from utils.timescales.gate import Gate, check_intervals, steps_of
from utils.timescales.groups import describe, func_groups, make_optimizer, rd_groups, verify_scales
from utils.timescales.scales import GATED, NAMES, NEITHER, TimeScale, subsets
from utils.timescales.telemetry import Telemetry, to_host
from utils.timescales.watch import CadenceWatch

logger = logging.getLogger(__name__)


@dataclass
class Position:
    """A position within a task."""

    stage: Literal["scan", "func", "rd", "end", "done"]  # the next one
    cycle: int = 0  # number of adapters added in this task so far, and of the training cycle
    scan: int = 0  # number of the current scan
    batch: int = 0  # number of batches of it that were scanned
    added: bool = False  # whether it added an adapter


@LEARNERS.register("sema")
class Learner(BaseLearner):
    """Self-expansion with modularised adaptation (SEMA, arXiv 2403.18886), with adapters of any type."""

    def __init__(
        self, args: Setup | Mapping[str, Any], network: SEMAVitNet | None = None, hooks: Hooks | None = None
    ) -> None:
        super().__init__(args, network, hooks)
        self.position = Position("done")
        self.phase: Phase | None = None
        self.batches: Iterator[Batch] | None = None  # of the scan
        self.views = ViewKeeper(self.network, self.config, self.hooks)
        self.gaussians = ClassGaussians(self.network.backbone.embed_dim)  # of the classes, for `_align`

    def begin_task(self) -> None:
        """Let continual adapters learn again, and measure z-scores of the task's images before training."""
        super().begin_task()
        self.position = Position("scan" if self.cur_task and self.network.expandable else "func")
        for slot in self.network.slots if self.cur_task else ():
            with seeded(self.seed, "begin", self.task_number):
                revived = slot.begin_task()
            if revived:
                logger.info("task %d layer %d: adapters %s re-initialised", self.cur_task, slot.layer, revived)
        self._measure_z("before")

    def learn_task(self) -> None:
        """Run the stages of a task from the current position on; ConfigError if an update interval is too long."""
        stages = {"scan": self._scan, "func": self._func, "rd": self._rd, "end": self._end_task}
        while self.position.stage != "done":
            stages[self.position.stage]()
            self.hooks.keep("stage")
        if self.config.classifier_alignment:  # after the last state of the task: states have no Gaussians
            self._align()

    def settled_layers(self) -> int:
        """After task 0 nothing below the first expandable layer learns, unless those adapters learn in every task."""
        return self.network.settled if self.cur_task > 0 or self.position.stage == "done" else 0

    # ---- kept views, see `models.views`

    def plan_views(self, counts: Sequence[int]) -> str:
        return self.views.plan(counts)

    def open_data(self, data_manager: Tasks) -> None:
        super().open_data(data_manager)
        if layer := self._kept_layer():
            self.network.kept_layer = layer
            self.scan_loader.close()
            self.train_loader = self.scan_loader = self.views.inputs(self.train_loader, layer, self.task_number)

    def _kept_layer(self) -> int:
        """Return the block whose inputs are kept as views in this task; 0: none are."""
        layer = self.settled_layers() if self.config.views and self.cur_task else 0
        return layer if layer < len(self.network.slots) else 0

    def _source(self) -> Source:
        """Return what a func phase trains on: where the head alone learns, kept features, if views are kept."""
        learns = {role for role, parameter in self.network.roles() if parameter.requires_grad}
        if not (self.config.views and self.cur_task and self.settled_layers() and learns <= {"head"}):
            return self.train_loader
        return self.views.features(self.train_loader, self.task_number)

    # ---- training: groups, gates, phases

    def update_optimizer_and_scheduler(self, name: PhaseName) -> Phase:
        """Make a phase: slow and fast groups (a group for each time scale), optimizer, schedule and slow gate."""
        config, epochs = self.config, self.epochs[name]
        logger.info("task %d cycle %d %s phase", self.cur_task, self.position.cycle, name)
        groups = {"func": func_groups, "rd": rd_groups}[name](self.network.roles(), config)
        branches = self.network.adapter_type.branches
        verify_scales(groups, self.network.adapter_type.learning(config))
        groups = [group for group in groups if group["params"] or group["name"] not in set(NAMES) - set(branches)]
        optimizer = make_optimizer(groups, config)
        members = {group["name"]: group["params"] for group in groups}
        gates = {s.name: Gate(members.get(s.name, ()), s.interval(config), s.update(config)) for s in GATED}
        watches = {scale.name: self._watch(scale, epochs) for scale in GATED if name == "func"}
        return Phase(
            name,
            task=self.cur_task,
            cycle=self.position.cycle,
            epochs=epochs,
            optimizer=optimizer,
            scheduler=optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs), config.min_lr),
            gates=gates,
            watches=watches,
            telemetry=Telemetry(self._measured() if any(w.parameters for w in watches.values()) else ()),
            device=self.device,
        )

    def _measured(self) -> list[tuple[int, int, FunctionalAdapter, nn.Module]]:
        """Return the adapters that telemetry measures: those that a training step passes through."""
        return [entry for entry in self.network.branched_adapters() if entry[0] >= self._kept_layer()]

    def _watch(self, scale: TimeScale, epochs: int) -> CadenceWatch:
        """Watch a scale's trainable parameters by the network's own account, independent of the optimizer's groups."""
        learning = (parameter for name, parameter in self.network.roles() if name == scale.name)
        rate = scale.last_rate(self.config, epochs) / scale.interval(self.config)  # "accumulate" takes the mean
        return CadenceWatch((p for p in learning if p.requires_grad), rate, self.config.weight_decay)

    def _init_train(self, name: PhaseName) -> None:
        """Train one phase, from where it stands to its end, with its own optimizer."""
        phase = self.phase = self.phase or self._begin_phase(name)
        trainer = PhaseTrainer(phase, self.loss(name), self.network, self.train_loader, self.config, self.hooks)
        trainer.to_end(self._score_if_asked)
        self.phase = None

    def loss(self, name: PhaseName) -> Loss:
        """Return the loss of a phase of the current task."""
        stream, size = (name, self.task_number, self.position.cycle), self.config.batch_size
        if name == "func":
            return FuncLoss(self.network, self._source(), stream, size, self.task_classes)
        views = self.config.views or self.config.rd_views
        keep = partial(self.views.kept, views=views, task=self.task_number) if views else None
        return RdLoss(self.network, self.train_loader, stream, size, keep)

    def _begin_phase(self, name: PhaseName) -> Phase:
        phase = self.update_optimizer_and_scheduler(name)
        steps = steps_of(len(self.train_loader), self.config.batch_size, phase.epochs)
        check_intervals(self.config, steps, self.cur_task, [scale for scale in GATED if scale.name in phase.gates])
        held, roles = set(phase.parameters), {parameter: role for role, parameter in self.network.roles()}
        named = [(name, parameter) for name, parameter in self.network.named_parameters() if parameter in held]
        self.trained |= {name: (roles[parameter], parameter.numel()) for name, parameter in named}
        branches = self.network.adapter_type.branches
        if name == "func" and branches and not phase.rates.keys() & set(branches):
            empty = " and ".join(branches)
            logger.info("task %d: no adapter trains, %s are empty, the head alone learns", self.cur_task, empty)
        self.hooks.events(events.Phase(**phase.place, groups=[describe(g) for g in phase.optimizer.param_groups]))
        return phase

    def _score_if_asked(self) -> None:
        phase, every = self.phase, self.config.eval_every
        if phase is not None and phase.name == "func" and every and phase.epoch % every == 0:
            accuracy, _ = self.eval_task()
            self.hooks.events(events.Evaluation(**phase.place, epoch=phase.epoch - 1, accuracy=accuracy))

    def _func(self) -> None:
        """Train adapters, routers and head; without a new adapter, the head and continual adapters."""
        for slot in self.network.slots:
            slot.begin_func_phase()
        self._init_train("func")
        trains_descriptors = any(slot.describing for slot in self.network.expandable)
        self.position.stage = "rd" if trains_descriptors else "end"

    def _rd(self) -> None:
        """Train the descriptors of the adapters that this cycle added, and end the cycle."""
        self._init_train("rd")
        for slot in self.network.slots:
            slot.end_of_cycle()
        self.position.stage = "scan" if self.cur_task else "end"

    # ---- expansion

    def _scan(self) -> None:
        """Scan the task's images batch by batch until a layer asks for an adapter or the pass ends."""
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
        """Yield the images (B, 3, S, S) of the batches that are left of this scan."""
        size, place = self.config.detect_batch_size, self.position
        self.network.eval()
        if self.batches is None:
            self.batches = self.scan_loader.epoch(
                "scan", self.task_number, place.scan, batch_size=size, shuffle=True, start=place.batch
            )
        total, what = self.scan_loader.batches(size), f"task {self.cur_task} scan {place.scan}"
        for _, images, _ in progress(self.batches, what, total, done=place.batch):
            yield images

    def look(self, images: Tensor) -> SEMAModules | None:  # (B, 3, S, S)
        """Scan one batch and report it; return the layer that asks for an adapter, if any."""
        return self._first_asking(self.network.token_means(images, layers_of(self.network.expandable)))

    def _first_asking(self, means: dict[int, Tensor]) -> SEMAModules | None:
        """Return the shallowest layer, not yet expanded in this task, whose smallest z-score exceeds the threshold."""
        found = {str(slot.layer): slot.z_scores(means[slot.layer]).mean(dim=1) for slot in self.network.expandable}
        z = {layer: values.tolist() for layer, values in to_host([found])[0].items()}
        threshold, place = self.config.exp_threshold, self.position
        asking = [s for s in self.network.expandable if not s.added and min(z[str(s.layer)]) > threshold]
        expands = asking[0].layer if asking else None
        self.hooks.events(
            events.Scan(
                task=self.cur_task, scan=place.scan, batch=place.batch, z=z, threshold=threshold, expands=expands
            )
        )
        return asking[0] if asking else None

    def _expand(self, slot: SEMAModules) -> None:
        place = self.position
        with seeded(self.seed, "network", self.task_number):
            slot.expand()
        place.stage, place.cycle, place.added = "func", place.cycle + 1, True
        where = f"task {self.cur_task} scan {place.scan} batch {place.batch}"
        logger.info("%s: layer %d gets adapter %d", where, slot.layer, slot.num_adapters - 1)

    # ---- the end of a task: consolidation

    def _end_task(self) -> None:
        """Consolidate if configured, freeze everything but the head, refill the records of changed features."""
        self._measure_z("after")
        if any(slot.consolidates for slot in self.network.slots):
            self._consolidate()
        else:
            self._close({})
        self.position.stage = "done"

    @property
    def uses_features(self) -> bool:
        return bool(self.config.classifier_alignment)

    def _align(self) -> None:
        """Train the head on samples of class Gaussians, after the first task, see `models.alignment`."""
        self.gaussians.observe(*self.train_features(), self.task_classes)
        if self.cur_task:
            config, before = self.config, self.network.fc.weight.detach().clone()
            epochs, samples = config.classifier_alignment_epochs, config.classifier_alignment_samples
            settings = Settings(epochs, samples, config.classifier_alignment_lr, config.weight_decay)
            losses = align(self.network.fc, self.gaussians, settings, self.seed, "alignment", self.task_number)
            change = relative_change(before, self.network.fc.weight.detach())
            logger.info("task %d: head aligned, loss %.4f to %.4f", self.cur_task, losses[0], losses[-1])
            self.hooks.events(events.Alignment(task=self.cur_task, losses=losses, head_change=change))

    def _consolidate(self) -> None:
        """Consolidate every layer, and report the change of accuracy, adapter outputs and z-scores."""
        before, whole = self.eval_task()
        self._score_branches("before_consolidation", whole)
        receipts = self._close(self._probe())
        z = self._refill_records()
        receipts = [{**receipt, **z.get((receipt["layer"], receipt["adapter"]), NO_Z)} for receipt in receipts]
        after, _ = self.eval_task()
        tops = (before["top1"], after["top1"])
        logger.info("task %d: accuracy %.2f before and %.2f after consolidation", self.cur_task, *tops)
        self.hooks.events(
            events.Consolidation(task=self.cur_task, receipts=receipts, accuracy_before=before, accuracy_after=after)
        )

    def _close(self, probe: Mapping[int, Tensor]) -> list[dict[str, Any]]:
        """End the task in every slot; return a receipt for each consolidated adapter."""
        receipts = []
        for slot in self.network.slots:
            with seeded(self.seed, "consolidation", self.task_number):
                receipts += slot.end_of_task_training(probe.get(slot.layer), self.cur_task)
        return receipts

    def _probe(self) -> dict[int, Tensor]:
        """Return the inputs (B, N, D) of the slots that trained for one batch, before any layer is consolidated."""
        size = min(self.config.batch_size, len(self.train_loader))
        _, images, _ = next(iter(self.train_loader.epoch("probe", self.task_number, batch_size=size, shuffle=True)))
        self.network.eval()
        return self.network.slot_inputs(images, layers_of([slot for slot in self.network.slots if slot.trained]))

    def _refill_records(self) -> dict[tuple[int, int], dict[str, float]]:
        """Record the losses of this task's new adapters again where the consolidation has changed their features.

        A descriptor sees the input of its slot, which only slots of earlier layers change.

        Returns statistics of z-scores of the task's images against the records before and after, by layer and adapter.
        """
        slots = [slot for slot in self.network.expandable if slot.added]
        changed = layers_of([slot for slot in self.network.slots if slot.consolidation_changes_function])
        refilled = [slot for slot in slots if any(layer < slot.layer for layer in changed)]
        before = [copy.deepcopy(slot.newest.records) for slot in slots]
        losses: list[list[Tensor]] = [[] for _ in slots]
        for slot in refilled:
            slot.newest.records.clear()
        for means in self._pass("refill", slots) if slots else ():
            for slot, seen in zip(slots, losses, strict=True):
                observe = slot.newest.observe if slot in refilled else slot.newest.rd.loss
                seen.append(observe(means[slot.layer]))
        return {
            (slot.layer, slot.num_adapters - 1): z_statistics(torch.cat(seen), old, slot.newest.records)
            for slot, seen, old in zip(slots, losses, before, strict=True)
        }

    # ---- measurements beside training

    @torch.no_grad()
    def _pass(self, purpose: str, slots: list[SEMAModules]) -> Iterator[dict[int, Tensor]]:
        """Yield the token means (B, D) at `slots` over one pass of the task's training images."""
        self.network.eval()
        size = self.config.detect_batch_size
        batches = self.train_loader.epoch(purpose, self.task_number, batch_size=size, shuffle=True)
        for _, images, _ in progress(batches, f"task {self.cur_task} {purpose}", self.train_loader.batches(size)):
            yield self.network.token_means(images, layers_of(slots))
            self.hooks.keep("wait")

    def _measure_z(self, when: Literal["before", "after"]) -> None:
        """Report mean z-scores of the task's images before or after training, if adapters are continual."""
        slots = self.network.expandable
        if not (slots and self.network.continual and self.cur_task):
            return
        sums = [torch.zeros(slot.num_adapters, device=self.device) for slot in slots]
        with self.hooks.training.paused():
            for means in self._pass(f"z-{when}", slots):
                for slot, total in zip(slots, sums, strict=True):
                    total += slot.z_scores(means[slot.layer]).sum(dim=1)
        z = {str(s.layer): (total / len(self.train_loader)).tolist() for s, total in zip(slots, sums, strict=True)}
        logger.info("task %d: mean z by layer and adapter %s training: %s", self.cur_task, when, z)
        self.hooks.events(events.MeanZ(task=self.cur_task, when=when, z=z))

    def _score_branches(
        self, when: Literal["before_consolidation", "after_task"], whole: Predictions
    ) -> dict[str, Predictions]:
        """Return predictions by subset of the adapters' branches (see `subsets`), given those of all: `whole`."""
        if not (self.network.adapter_type.branches and self.config.branch_eval):
            return {}
        started = time.perf_counter()
        scored: dict[str, Predictions] = {}
        for name, active in subsets(self.network.adapter_type.branches).items():
            with self.network.branches(active):
                scored[name] = whole if not scored else self.predict() if active else self.predict_off()
        run = {"seconds": time.perf_counter() - started}
        hits = {name: count_hits(seen.top1, seen.labels, self.task_sizes)[0] for name, seen in scored.items()}
        self.hooks.events(events.Branches(task=self.cur_task, when=when, correct=hits, run=run))
        return scored

    def report_task(self) -> Report:
        """Return `eval_task`, predictions by subset of the adapters' branches, `predict_off` and `predict_val`.

        The mean weights of the router are an event.
        """
        with router_weights(self.network.expandable) as seen:
            accuracy, predictions = self.eval_task()
        if seen:
            weights = mean_weights(seen, predictions.labels, self.task_sizes)
            self.hooks.events(events.Router(task=self.cur_task, weights=weights))
        branches = self._score_branches("after_task", predictions)
        return Report(accuracy, predictions, branches, branches.get(NEITHER) or self.predict_off(), self.predict_val())

    # ---- the state of a task in progress, and statistics of earlier tasks

    def statistics_state(self) -> dict[str, Tensor]:
        return self.gaussians.state_dict() if self.gaussians.classes else {}

    def load_statistics(self, path: Path) -> None:
        if self.config.classifier_alignment:
            take(path, lambda tensors: self.gaussians.load_state_dict(tensors, self.known_classes))

    def where(self) -> str:
        epoch = self.phase.epoch + 1 if self.phase else 1
        return f"task {self.cur_task}: stage {self.position.stage}, epoch {epoch}"

    def state(self) -> dict[str, Any]:
        if self.phase:
            self.phase.refuse_divergence()
        phase = self.phase.state_dict() if self.phase else None
        return {**super().state(), "position": asdict(self.position), "phase": phase}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.position = Position(**state["position"])
        self.batches, self.phase = None, None
        if state["phase"] is not None:
            self.phase = self.update_optimizer_and_scheduler(state["phase"]["name"])
            self.phase.load_state_dict(state["phase"])


def layers_of(slots: list[SEMAModules]) -> list[int]:
    """Return the indices of their blocks."""
    return [slot.layer for slot in slots]


NO_Z = dict.fromkeys(f"z_{statistic}_{when}" for when in ("before", "after") for statistic in ("mean", "std"))


def z_statistics(losses: Tensor, before: Records, after: Records) -> dict[str, float]:  # (n,)
    """Return mean and standard deviation (divided by n) of the z-scores of n losses, against old and new records."""
    z = {"before": before.z_scores(losses), "after": after.z_scores(losses)}
    means = {f"z_mean_{when}": float(values.mean()) for when, values in z.items()}
    return means | {f"z_std_{when}": float(values.std(correction=0)) for when, values in z.items()}
