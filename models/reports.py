"""What a learner reports of its tasks: consolidation, branches, router, drift, structure and cost.

Shapes: B batch, S image side, D embedding width, A adapters at a layer.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbone.sema_block import SEMAModules
from models.base import Predictions
from models.evidence import hits_by_task, mean_weights, predict_branches, router_weights
from models.phases import PhaseLearner
from utils.progress import progress
from utils.timescales.groups import count_parameters

logger = logging.getLogger(__name__)


class ReportingLearner(PhaseLearner):
    """Measures and reports; changes nothing that learns."""

    @torch.no_grad()
    def _pass(self, purpose: str, slots: list[SEMAModules]) -> Iterator[dict[int, Tensor]]:
        """Token means at `slots` over one gradient-free pass of the task's training images."""
        self._network.eval()
        size = self.args.detect_batch_size
        batches = self.train_loader.epoch(purpose, self.cur_task, batch_size=size, shuffle=True)
        for _, images, _ in progress(batches, f"task {self.cur_task} {purpose}", self.train_loader.batches(size)):
            yield self._network.token_means(images, self._layers(slots))
            self.keep("wait")

    def _report_consolidation(
        self, receipts: list[dict[str, Any]], before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        tops = (before["top1"], after["top1"])
        logger.info("task %d: accuracy %.2f before and %.2f after consolidation", self.cur_task, *tops)
        self.events(
            "consolidation", task=self.cur_task, receipts=receipts, accuracy_before=before, accuracy_after=after
        )

    def report_branches(self, when: str, both: Predictions) -> dict[str, Predictions]:
        """Score the branches one by one, if that is wanted and there are any; predictions by branch.

        Args:
            when: "before_consolidation" or "after_task".
            both: The learner's predictions as it is.
        """
        if not (self.nested and self.args.branch_eval):
            return {}
        scored, seconds = predict_branches(self, both)
        hits = hits_by_task(self, scored)
        self.events("branches", task=self.cur_task, when=when, correct=hits, run={"seconds": seconds})
        return scored

    def eval_and_report_router(self) -> tuple[dict[str, Any], Predictions]:
        """`eval_task`, and the router's mean weight for every adapter on the images of every task seen."""
        with router_weights(self._network.expandable) as seen:
            accuracy, predictions = self.eval_task()
        weights = mean_weights(seen, predictions.labels, self.task_sizes)
        self.events("router", task=self.cur_task, weights=weights)
        return accuracy, predictions

    def _report_drift_of_data(self, when: Literal["before", "after"]) -> None:
        """Under lifetime "continual": how strange older descriptors find the task, before and after training."""
        slots = self._network.expandable
        if not (self.nested and self.args.nested_lora_lifetime == "continual" and self.cur_task):
            return
        sums = [torch.zeros(slot.num_adapters, device=self.device) for slot in slots]
        for means in self._pass(f"z-{when}", slots):
            for slot, total in zip(slots, sums, strict=True):
                total += slot.z_scores(means[slot.layer]).sum(dim=1)
        z = {
            str(slot.layer): (total / len(self.train_loader)).tolist() for slot, total in zip(slots, sums, strict=True)
        }
        logger.info("task %d: mean z by layer and adapter %s training: %s", self.cur_task, when, z)
        self.events("mean_z", task=self.cur_task, when=when, z=z)

    def structure(self) -> dict[str, Any]:
        """Adapters in every block, exact numbers of parameters by what they are, and the cost of one image.

        `parameters` are those stored, as things stand; `trained` those the current task has trained; `multiply_adds`
        counts one image's way through the network.
        """
        total = sum(parameter.numel() for parameter in self._network.parameters())
        counts = count_parameters(self._network.roles())
        return {
            "adapters": [slot.num_adapters for slot in self._network.slots],
            "parameters": {**counts, "backbone": total - sum(counts.values()), "total": total},
            "trained": _sizes_by_role(self.trained.values()),
            "multiply_adds": self._multiply_adds(),
        }

    @torch.no_grad()
    def _multiply_adds(self) -> int:
        image = torch.zeros(1, 3, self.spec.size, self.spec.size, device=self.device)
        # The counter knows the products of plain attention, not those inside the CPU's fused one.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self._network.eval()(image)
        return int(counter.get_total_flops()) // 2


def _sizes_by_role(trained: Iterable[tuple[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for role, size in trained:
        counts[role] += size
    return dict(counts)
