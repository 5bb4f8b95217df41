"""The epochs of a phase: one optimizer step a batch."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from backbone.sema_components import Records
from models.losses import Loss
from models.phase import Phase
from models.protocol import Hooks
from models.reports import Reporter
from utils.config.schema import Config
from utils.data.loader import Batch, StreamLoader
from utils.inc_net import SEMAVitNet
from utils.progress import progress

logger = logging.getLogger(__name__)

CHECK_EVERY = 50  # batches between two checks of the losses, each of which waits for the device


@dataclass
class PhaseTrainer:
    """Trains a phase from where it stands to its end, on the training images of `loader`."""

    phase: Phase
    loss: Loss
    network: SEMAVitNet
    loader: StreamLoader
    config: Config
    hooks: Hooks
    report: Reporter

    def to_end(self, after_epoch: Callable[[], None]) -> None:
        """Train the epochs that are left, and call `after_epoch` after each."""
        while self.phase.epoch < self.phase.epochs:
            self._train_epoch()
            self.phase.end_epoch()
            after_epoch()
            self.hooks.keep("epoch")

    def _train_epoch(self) -> None:
        phase, sums = self.phase, self.phase.sums
        self.network.train(self.loss.trains_network)
        last = self.loader.batches(self.config.batch_size)
        what = f"task {phase.task} cycle {phase.cycle} {phase.name} {phase.epoch + 1}/{phase.epochs}"
        for batch in progress(self.loss.batches(phase.epoch, sums.batches), what, last, done=sums.batches):
            self._train_batch(batch, sums.batches + 1 == last)
            if sums.batches % CHECK_EVERY == 0:
                phase.refuse_divergence()
            self.hooks.keep("step" if sums.batches < last else "last step")
        phase.refuse_divergence()
        self.report.epoch(phase)

    def _train_batch(self, batch: Batch, last: bool) -> None:
        phase = self.phase
        records = [(slot.newest.records, slot.newest.records.losses) for slot in self.network.expandable]
        measures = phase.measures(self.config.telemetry_every, last)
        if measures:
            phase.telemetry.arm()
        loss, hits = self.loss(batch, phase.epoch)
        # Only with "skip" does the host have to wait for the loss before the step.
        if self.config.on_nan == "skip" and not bool(loss.isfinite()):
            return self._skip_batch(float(loss.detach()), records)
        moves = phase.step(loss)
        if measures:
            self.report.telemetry(phase)
        phase.sums.add(loss, hits, len(batch[0]), moves)

    def _skip_batch(self, loss: float, records: list[tuple[Records, Tensor]]) -> None:
        """Make no step, and take the batch's losses out of the records again."""
        self.phase.telemetry.disarm()
        for record, losses in records:
            record.losses = losses
        self.phase.sums.skip()
        logger.warning("%s, batch %d: the loss is %s; skipped (on_nan)", self.phase, self.phase.sums.batches, loss)
