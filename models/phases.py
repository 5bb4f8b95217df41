"""How one phase trains: its epochs, its losses, its reports.

Shapes: B batch, S image side, D embedding width, C classes.
"""

import logging
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from backbone.sema_components import Records
from models.epoch import EpochSums
from models.steps import Phase, StepLearner
from utils.data.loader import Batch
from utils.errors import DivergenceError
from utils.progress import progress
from utils.timescales.gate import check_interval, steps_of

logger = logging.getLogger(__name__)

CHECK_EVERY = 50  # batches between two looks at the losses, each of which waits for the device


class PhaseLearner(StepLearner):
    """Trains the func and the rd phase of whatever is trainable."""

    def _init_train(self, phase: Phase) -> None:
        """Train one phase, from where the position says, to its end, with an optimizer of its own."""
        epochs = self._epochs(phase)
        if not self.position.begun:
            self._begin_phase(phase, epochs)
        while self.position.epoch < epochs:
            self._train_epoch(phase, epochs)
            self.scheduler.step()
            self.position.epoch += 1
            self._score_if_asked(phase)
            self.keep("epoch")
        self._report_pending()
        self._report_cadence()
        self.position.epoch, self.position.begun = 0, False

    def _begin_phase(self, phase: Phase, epochs: int) -> None:
        """Make the phase's optimizer and report it.

        Raises:
            ConfigError: The slow interval is larger than the number of steps of the phase.
        """
        self.update_optimizer_and_scheduler(phase, epochs)
        if self.gate.parameters:
            steps = steps_of(len(self.train_loader), self.args.batch_size, epochs)
            check_interval(self.gate.interval, steps, self.cur_task)
        self._report_phase(phase)
        self.position.begun = True

    def _train_epoch(self, phase: Phase, epochs: int) -> None:
        """One pass over the task's images, or what is left of it, and its report."""
        self._network.train(phase == "func")
        self._recall_views(phase)
        last = self.train_loader.batches(self.args.batch_size)
        what = f"task {self.cur_task} cycle {self.position.cycle} {phase} {self.position.epoch + 1}/{epochs}"
        for batch in progress(self._batches(phase), what, last, done=self.sums.batches):
            self._train_batch(phase, batch, self.sums.batches + 1 == last)
            if self.sums.batches % CHECK_EVERY == 0:
                self._refuse_divergence()
            self.keep("step" if self.sums.batches < last else "last step")
        self._refuse_divergence()
        self._report_epoch(phase)
        self.sums = EpochSums.empty(self.device)

    def _batches(self, phase: Phase) -> Iterator[Batch]:
        """The batches of the current epoch that are still to come."""
        if phase == "rd" and 0 < self.args.rd_views <= self.position.epoch:
            return self._batches_without_images()
        return self._load(phase, self.position.epoch, start=self.sums.batches)

    def _load(self, phase: Phase, epoch: int, start: int) -> Iterator[Batch]:
        stream = (phase, self.cur_task, self.position.cycle, epoch)
        return self.train_loader.epoch(*stream, batch_size=self.args.batch_size, shuffle=True, start=start)

    def _batches_without_images(self) -> Iterator[Batch]:
        """Which images the batches hold, for an epoch whose token means are kept."""
        stream = ("rd", self.cur_task, self.position.cycle, self.position.epoch)
        order = torch.tensor(self.train_loader.order(*stream, shuffle=True))
        nothing = torch.empty(0, device=self.device)
        for indices in order.split(self.args.batch_size)[self.sums.batches :]:
            yield indices, nothing, nothing

    def _recall_views(self, phase: Phase) -> None:
        """Compute again the token means that a run going on in the middle of an rd phase had kept."""
        if phase == "func" or not self.args.rd_views:
            return
        epoch, whole = self.position.epoch, self.train_loader.batches(self.args.batch_size)
        for view in range(min(epoch + 1, self.args.rd_views)):
            have, need = self.views.batches(view), whole if view < epoch else self.sums.batches
            for indices, images, _ in islice(self._load("rd", view, start=have), need - have) if have < need else ():
                self._keep_view(view, indices, self._network.token_means(images, self._described()))

    def _train_batch(self, phase: Phase, batch: Batch, last: bool) -> None:
        records = [(slot.newest.records, slot.newest.records.losses) for slot in self._network.expandable]
        measures = self._measures(last)
        if measures:
            self.telemetry.arm()
        loss, hits = {"func": self._func_loss, "rd": self._rd_loss}[phase](batch)
        # Only to skip a step does the host have to know the loss before it.
        if self.args.on_nan == "skip" and not bool(loss.isfinite()):
            return self._skip_batch(float(loss.detach()), records)
        moved = self._step(loss)
        if measures:
            self._report_telemetry()
        self.sums.add(loss, hits, len(batch[0]), moved)

    def _skip_batch(self, loss: float, records: list[tuple[Records, Tensor]]) -> None:
        """Leave a batch out: no step, and nothing of it in the records."""
        self.telemetry.disarm()
        for book, losses in records:
            book.losses = losses
        self.sums.skip()
        logger.warning("%s, batch %d: the loss is %s; skipped (on_nan)", self._place(), self.sums.batches, loss)

    def _func_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy over the task's own classes (all others count as -inf), and the number of hits."""
        _, images, labels = batch
        logits = self._network(images)["logits"][:, self.known_classes : self.total_classes]
        own = labels - self.known_classes
        return nn.functional.cross_entropy(logits, own), (logits.argmax(dim=1) == own).sum()

    def _rd_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum over layers of the descriptor losses of what this cycle added; the backbone gets no gradient."""
        means = self._means(batch)
        slots = [slot for slot in self._network.expandable if slot.describing]
        nothing = torch.zeros((), device=self.device)
        return torch.stack([slot.rd_loss(means[slot.layer]) for slot in slots]).sum(), nothing

    def _described(self) -> list[int]:
        return self._layers([slot for slot in self._network.expandable if slot.describing])

    def _means(self, batch: Batch) -> dict[int, Tensor]:
        """Token means (B, D) of a batch of the rd phase, by layer: computed, or with `rd_views` those that are kept."""
        indices, images, _ = batch
        epoch, views = self.position.epoch, self.args.rd_views
        if 0 < views <= epoch:
            return self.views.get(epoch % views, indices, self._described())
        means = self._network.token_means(images, self._described())
        if views:
            self._keep_view(epoch, indices, means)
        return means

    def _keep_view(self, view: int, indices: Tensor, means: dict[int, Tensor]) -> None:
        self.views.put(view, indices, means, len(self.train_loader))

    def _report_epoch(self, phase: Phase) -> None:
        sums, epoch = self.sums, self.position.epoch
        if not sums.images:
            raise DivergenceError(f"{self._place()}: no batch has a finite loss")
        loss = float(sums.loss) / sums.images
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        accuracy = {"train_accuracy": 100 * float(sums.correct) / sums.images, "slow_steps": sums.moved}
        fields = (accuracy if phase == "func" else {}) | ({"skipped": sums.skipped} if sums.skipped else {})
        self.events("epoch", **self._where(phase), epoch=epoch, loss=loss, lr=rates, **fields)
        shown = f", train accuracy {accuracy['train_accuracy']:.2f}" if phase == "func" else ""
        logger.info("task %d %s epoch %d: loss %.4f%s", self.cur_task, phase, epoch + 1, loss, shown)

    def _score_if_asked(self, phase: Phase) -> None:
        every = self.args.eval_every
        if phase == "func" and every and self.position.epoch % every == 0:
            self.events("eval", **self._where(phase), epoch=self.position.epoch - 1, accuracy=self.eval_task()[0])
