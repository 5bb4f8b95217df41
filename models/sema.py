"""SEMA's learner: when a task's data ask for an adapter, what trains when, and what is frozen after.

A task is a walk through stages (`Position`): task 0 is func, rd, end; a later one scans, and either every request for
an adapter starts a func + rd cycle after which the scan goes on, or nothing asks and only func follows. Each stage does
its work and names the next: a position, the network and the optimizer are all there is to a half-finished task.

Shapes: B batch, S image side, D embedding width, A adapters at a layer, C classes.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from backbone.sema_block import SEMAModules
from models.base import EventSink, Tasks, no_events
from models.evidence import NO_Z, Refill
from models.reports import ReportingLearner
from models.steps import Position
from utils.progress import progress
from utils.runs.checkpoint import read_checkpoint, save_checkpoint
from utils.streams import seeded
from utils.timescales.telemetry import to_host

logger = logging.getLogger(__name__)


class Learner(ReportingLearner):
    """Self-expansion with modularised adaptation (SEMA, arXiv 2403.18886), with adaptmlp or nested_lora adapters."""

    def __init__(self, args: Mapping[str, Any], events: EventSink = no_events) -> None:
        super().__init__(args, events)
        self.batches: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None

    def incremental_train(self, data_manager: Tasks) -> None:
        """Learn the next task.

        Raises:
            ConfigError: The slow interval is larger than the number of steps of a func phase.
        """
        self.begin_data(data_manager)
        self._begin_task()
        self._to_end_of_task()

    def continue_training(self, data_manager: Tasks) -> None:
        """Learn what is left of a task in progress, after `restore`."""
        self.open_data(data_manager)
        self._to_end_of_task()

    def _to_end_of_task(self) -> None:
        stages = {"scan": self._scan, "func": self._func, "rd": self._rd, "end": self._end_task}
        while self.position.stage != "done":
            stages[self.position.stage]()
            self.keep("stage")
        self.end_data()

    def _begin_task(self) -> None:
        self.position = Position("scan" if self.cur_task else "func")
        self.trained = {}
        for slot in self._network.slots if self.cur_task else ():
            with seeded(self.seed, "begin", self.cur_task, slot.layer):
                revived = slot.begin_task()
            if revived:
                logger.info(
                    "task %d layer %d: zeroed fast of adapters %s re-initialised", self.cur_task, slot.layer, revived
                )
        self._report_drift_of_data("before")

    def settled_layers(self) -> int:
        """After task 0 nothing below the first expandable layer learns, unless nested adapters do so in every task."""
        if self.nested and self.args.nested_lora_lifetime == "continual":
            return 0
        learned = self.cur_task > 0 or self.position.stage == "done"
        return int(self.args.adapt_start_layer) if learned else 0

    # ---- expansion

    def _scan(self) -> None:
        """Look at the task's images, batch after batch, until a layer asks for an adapter or the pass ends."""
        for means in self._remaining_means():
            self.position.batch += 1
            slot = self._first_asking(means)
            if slot is not None:
                return self._expand(slot)
            self.keep("step")
        self.batches = None
        open_slots = [slot for slot in self._network.expandable if not slot.added]
        if self.position.added and open_slots:
            self.position = Position("scan", self.position.cycle, scan=self.position.scan + 1)
        else:
            self.position.stage = "end" if self.position.cycle else "func"

    def _remaining_means(self) -> Iterator[dict[int, Tensor]]:
        """Token means of the batches this scan has not looked at, (B, D) for each expandable layer."""
        size, place = self.args.detect_batch_size, self.position
        self._network.eval()
        if self.batches is None:
            self.batches = self.scan_loader.epoch(
                "scan", self.cur_task, place.scan, batch_size=size, shuffle=True, start=place.batch
            )
        total, what = self.scan_loader.batches(size), f"task {self.cur_task} scan {place.scan}"
        for _, images, _ in progress(self.batches, what, total, done=place.batch):
            yield self._network.token_means(images, self._layers(self._network.expandable))

    def _first_asking(self, means: dict[int, Tensor]) -> SEMAModules | None:
        """The shallowest layer, not yet expanded in this task, all of whose descriptors find the batch strange."""
        found = {str(slot.layer): slot.z_scores(means[slot.layer]).mean(dim=1) for slot in self._network.expandable}
        z = {int(layer): values.tolist() for layer, values in to_host([found])[0].items()}
        asking = [s for s in self._network.expandable if not s.added and min(z[s.layer]) > self.args.exp_threshold]
        self.events(
            "scan",
            task=self.cur_task,
            scan=self.position.scan,
            batch=self.position.batch,
            z={str(layer): values for layer, values in z.items()},
            threshold=self.args.exp_threshold,
            expands=asking[0].layer if asking else None,
        )
        return asking[0] if asking else None

    def _expand(self, slot: SEMAModules) -> None:
        place = self.position
        with seeded(self.seed, "adapter", slot.layer, slot.num_adapters):
            slot.expand()
        place.stage, place.cycle, place.added = "func", place.cycle + 1, True
        where = f"task {self.cur_task} scan {place.scan} batch {place.batch}"
        logger.info("%s: layer %d gets adapter %d", where, slot.layer, slot.num_adapters - 1)

    # ---- training

    def _func(self) -> None:
        """Train adapters, routers and head; without a new adapter that leaves the head (and what is continual)."""
        for slot in self._network.slots:
            slot.begin_func_phase()
        self._init_train("func")
        trains_descriptors = any(slot.describing for slot in self._network.expandable)
        self.position.stage = "rd" if trains_descriptors else "end"

    def _rd(self) -> None:
        """Train the descriptors of the adapters this cycle added, and close the cycle."""
        self._init_train("rd")
        for slot in self._network.slots:
            slot.end_of_cycle()
        self.position.stage = "scan" if self.cur_task else "end"

    # ---- the end of a task

    def _end_task(self) -> None:
        """Consolidate if configured, freeze everything but the head, refill the records consolidation made stale."""
        self._report_drift_of_data("after")
        consolidates = self.nested and self.args.nested_lora_use_consolidation
        consolidates = consolidates and any(slot.trained for slot in self._network.slots)
        before, predictions = self.eval_task() if consolidates else ({}, None)
        if predictions is not None:
            self.report_branches("before_consolidation", predictions)
        probe = self._probe() if consolidates else {}
        receipts = [receipt for slot in self._network.slots for receipt in self._close(slot, probe.get(slot.layer))]
        if consolidates:
            z = self._refill_records()
            receipts = [{**receipt, **z.get((receipt["layer"], receipt["adapter"]), NO_Z)} for receipt in receipts]
            self._report_consolidation(receipts, before, self.eval_task()[0])
        self.position.stage = "done"

    def _close(self, slot: SEMAModules, h: Tensor | None) -> list[dict[str, Any]]:
        with seeded(self.seed, "consolidation", self.cur_task, slot.layer):
            return slot.end_of_task_training(h, self.cur_task)

    def _probe(self) -> dict[int, Tensor]:
        """One batch of the task as every slot that trained sees it, (B, N, D), before any layer is consolidated."""
        size = min(self.args.batch_size, len(self.train_loader))
        batches = self.train_loader.epoch("probe", self.cur_task, batch_size=size, shuffle=True)
        _, images, _ = next(iter(batches))
        self._network.eval()
        return self._network.slot_inputs(images, self._layers([s for s in self._network.slots if s.trained]))

    def _refill_records(self) -> dict[tuple[int, int], dict[str, float]]:
        """Take the records of the adapters added in this task anew, from the features as they are now.

        Returns:
            By layer and adapter, what that did to the z-scores of the task's training images.
        """
        slots = [slot for slot in self._network.expandable if slot.added]
        if not slots:
            return {}
        refills = [Refill(slot) for slot in slots]
        for means in self._pass("refill", slots):
            for refill in refills:
                refill.observe(means[refill.layer])
        return {(refill.layer, refill.adapter): refill.z_statistics() for refill in refills}

    # ---- checkpoints, and the state of a task in progress

    def state(self) -> dict[str, Any]:
        """Everything the learner is, for `restore`: tensors, numbers, texts, and lists and dictionaries of them.

        Random generators are not among it: every draw comes from a stream that its place in the run names.

        Raises:
            DivergenceError: There is nothing worth keeping: a loss or a parameter is not finite.
        """
        if self.position.begun:
            self._refuse_divergence()
        return {
            "cur_task": self.cur_task,
            "task_sizes": list(self.task_sizes),
            "known_classes": self.known_classes,
            "position": asdict(self.position),
            "trained": {name: list(entry) for name, entry in self.trained.items()},
            "network": self._network.training_state(),
            "phase": self.phase_state() if self.position.begun else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the learner that gave this state; `continue_training` goes on with its task.

        Raises:
            CheckpointError: The state is of another network.
        """
        self._network.load_training(state["network"])
        self.cache.clear()
        self.cur_task, self.known_classes = state["cur_task"], state["known_classes"]
        self.task_sizes = list(state["task_sizes"])
        self.position = Position(**state["position"])
        self.trained = {name: (role, size) for name, (role, size) in state["trained"].items()}
        self.batches = None
        if self.position.begun:
            self.restore_phase("rd" if self.position.stage == "rd" else "func", state["phase"])

    def save_checkpoint(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Write what evaluation needs; `meta` is the trainer's part of it."""
        own = {"task_sizes": self.task_sizes, "backbone": self._network.provenance}
        save_checkpoint(path, self._network.learned_state(), {**meta, **own})

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Load a checkpoint of ours or of the public implementation (which is taken to know all classes).

        Returns:
            Its metadata; empty for the public implementation's.

        Raises:
            CheckpointError: Unreadable, or of another network; the message says what differs.
        """
        tensors, meta = read_checkpoint(Path(path))
        self._network.load_learned(tensors, meta.get("backbone"))
        self.cache.clear()
        self.begin_after(meta.get("task_sizes", [self.args.nb_classes]))
        return meta
