"""What a learner reports: phases, epochs, cadence, telemetry, branches, router, structure and cost. Changes nothing.

Shapes: B batch, S image side.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.phase import Phase
from models.protocol import Hooks, Predictions
from utils.errors import DivergenceError
from utils.inc_net import SEMAVitNet
from utils.metrics import count_hits
from utils.runs import events
from utils.timescales.groups import count_parameters, describe
from utils.timescales.scales import subsets

logger = logging.getLogger(__name__)


class Reporter:
    """Turns what happened into events and lines of the log.

    Args:
        network: What learns.
        hooks: Where events go.
    """

    def __init__(self, network: SEMAVitNet, hooks: Hooks) -> None:
        self.network, self.hooks = network, hooks

    # ---- phases

    def phase(self, phase: Phase) -> None:
        """A phase begins."""
        held = [describe(group) for group in phase.optimizer.param_groups]
        branches = self.network.adapter_type.branches
        if phase.name == "func" and branches and not phase.rates.keys() & set(branches):
            empty = " and ".join(branches)
            logger.info("task %d: no adapter trains, %s are empty, the head alone learns", phase.task, empty)
        self.hooks.events(events.Phase(**phase.place, groups=held))

    def epoch(self, phase: Phase) -> None:
        """An epoch ended.

        Raises:
            DivergenceError: No batch of it had a finite loss.
        """
        sums = phase.sums
        if not sums.images:
            raise DivergenceError(f"{phase}: no batch has a finite loss")
        func = phase.name == "func"
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

    def telemetry(self, phase: Phase) -> None:
        """Telemetry was due in the step just made."""
        layers = phase.telemetry.measure()
        self.hooks.events(
            events.Telemetry(task=phase.task, cycle=phase.cycle, epoch=phase.epoch, step=phase.steps, layers=layers)
        )

    def end_of_phase(self, phase: Phase) -> None:
        """What the gates dropped, and the cadence of every gated time scale."""
        for scale, gate in phase.gates.items():
            if gate.pending:
                kept = " with their gradients" if gate.mode == "accumulate" else ""
                logger.info("the last %d steps, an unfinished interval of %s, are dropped%s", gate.pending, scale, kept)
        for event in phase.cadence():
            self.hooks.events(event)

    # ---- tasks

    def accuracy(self, phase: Phase, accuracy: dict[str, Any]) -> None:
        """The test images were scored in the middle of a phase."""
        self.hooks.events(events.Evaluation(**phase.place, epoch=phase.epoch - 1, accuracy=accuracy))

    def branches(
        self,
        task: int,
        when: Literal["before_consolidation", "after_task"],
        whole: Predictions,
        predict: Callable[[], Predictions],
        task_sizes: Sequence[int],
    ) -> dict[str, Predictions]:
        """Score every choice of the adapters' branches, the frozen backbone with the head among them.

        Args:
            task: Number of the task.
            when: The moment in it.
            whole: Predictions of all branches, which are not made again.
            predict: Scores the test images of all classes seen.
            task_sizes: Classes of every task.

        Returns:
            Predictions by choice, see `utils.timescales.scales.subsets`.
        """
        started = time.perf_counter()
        scored: dict[str, Predictions] = {}
        for name, active in subsets(self.network.adapter_type.branches).items():
            with self.network.branches(active):
                scored[name] = predict() if scored else whole
        seconds = time.perf_counter() - started
        hits = {name: count_hits(seen.top1, seen.labels, list(task_sizes))[0] for name, seen in scored.items()}
        self.hooks.events(events.Branches(task=task, when=when, correct=hits, run={"seconds": seconds}))
        return scored

    def consolidation(
        self, task: int, receipts: list[dict[str, Any]], before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        """Fast branches were consolidated into slower ones; with accuracies before and after."""
        tops = (before["top1"], after["top1"])
        logger.info("task %d: accuracy %.2f before and %.2f after consolidation", task, *tops)
        self.hooks.events(
            events.Consolidation(task=task, receipts=receipts, accuracy_before=before, accuracy_after=after)
        )

    def mean_z(self, task: int, when: Literal["before", "after"], z: dict[str, list[float | None]]) -> None:
        """How far the task's images are from what older descriptors know, before or after training on them."""
        logger.info("task %d: mean z by layer and adapter %s training: %s", task, when, z)
        self.hooks.events(events.MeanZ(task=task, when=when, z=z))

    def structure(self, trained: Mapping[str, tuple[str, int]], image_size: int) -> dict[str, Any]:
        """Adapters in every block, exact numbers of parameters by what they are, and the cost of one image.

        Args:
            trained: By a parameter's name its role and size, of those that the current task has trained.
            image_size: S.

        Returns:
            `adapters` by block; `parameters` stored, as things stand; `trained` by the task; `multiply_adds`, which
            counts one image's way through the network.
        """
        total = sum(parameter.numel() for parameter in self.network.parameters())
        counts = count_parameters(self.network.roles())
        by_role: Counter[str] = Counter()
        for role, size in trained.values():
            by_role[role] += size
        return {
            "adapters": [slot.num_adapters for slot in self.network.slots],
            "parameters": {**counts, "backbone": total - sum(counts.values()), "total": total},
            "trained": dict(by_role),
            "multiply_adds": self._multiply_adds(image_size),
        }

    @torch.no_grad()
    def _multiply_adds(self, image_size: int) -> int:
        image = torch.zeros(1, 3, image_size, image_size, device=self.network.fc.weight.device)
        # The counter knows the products of plain attention, not those inside the CPU's fused one.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.network.eval()(image)
        return int(counter.get_total_flops()) // 2
