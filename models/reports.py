"""What a learner reports, as events and log lines. Nothing here changes the learner.

Shapes: B batch, S image side, A adapters at a layer, n images.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbone.sema_block import SEMAModules
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
    """Makes events and log lines of what a learner did."""

    def __init__(self, network: SEMAVitNet, hooks: Hooks) -> None:
        self.network, self.hooks = network, hooks

    def phase(self, phase: Phase) -> None:
        """Report the parameter groups of a phase that begins."""
        branches = self.network.adapter_type.branches
        if phase.name == "func" and branches and not phase.rates.keys() & set(branches):
            empty = " and ".join(branches)
            logger.info("task %d: no adapter trains, %s are empty, the head alone learns", phase.task, empty)
        groups = [describe(group) for group in phase.optimizer.param_groups]
        self.hooks.events(events.Phase(**phase.place, groups=groups))

    def epoch(self, phase: Phase) -> None:
        """Report the epoch that ends; raise DivergenceError if no batch of it had a finite loss."""
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
        """Report the telemetry of the step just made."""
        layers = phase.telemetry.measure()
        self.hooks.events(
            events.Telemetry(task=phase.task, cycle=phase.cycle, epoch=phase.epoch, step=phase.steps, layers=layers)
        )

    def end_of_phase(self, phase: Phase) -> None:
        """Report the steps that the gates dropped, and the cadence of every gated time scale."""
        for scale, gate in phase.gates.items():
            if gate.pending:
                kept = " with their gradients" if gate.mode == "accumulate" else ""
                logger.info("the last %d steps, an unfinished interval of %s, are dropped%s", gate.pending, scale, kept)
        for event in phase.cadence():
            self.hooks.events(event)

    def branches(
        self,
        task: int,
        when: Literal["before_consolidation", "after_task"],
        whole: Predictions,
        predict: Callable[[], Predictions],
        task_sizes: Sequence[int],
    ) -> dict[str, Predictions]:
        """Score every subset of the adapters' branches, also none: the frozen backbone with the head.

        Args:
            task: Number of the task.
            when: The moment in the task.
            whole: Predictions with all branches, which are not computed again.
            predict: Scores the test images of all classes seen.
            task_sizes: Number of classes of every task.

        Returns:
            Predictions by subset, see `utils.timescales.scales.subsets`.
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
        """Report the consolidated adapters, with the accuracies before and after."""
        tops = (before["top1"], after["top1"])
        logger.info("task %d: accuracy %.2f before and %.2f after consolidation", task, *tops)
        self.hooks.events(
            events.Consolidation(task=task, receipts=receipts, accuracy_before=before, accuracy_after=after)
        )

    def structure(self, trained: Mapping[str, tuple[str, int]], image_size: int) -> dict[str, Any]:
        """Return adapters in every block, exact numbers of parameters, and the cost of one image.

        Args:
            trained: Role and size of the parameters that the current task has trained, by name.
            image_size: S.

        Returns:
            `adapters` by block; `parameters` stored, by role; `trained` in this task, by role; `multiply_adds` of a
            forward pass of one image.
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


@contextmanager
def router_weights(slots: list[SEMAModules]) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the mixing weights (B, A) of every batch that the network sees inside, by layer."""
    seen: dict[int, list[Tensor]] = {slot.layer: [] for slot in slots}

    def keep(slot: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        assert isinstance(slot, SEMAModules)
        with torch.no_grad():
            seen[slot.layer].append(slot.mixing_weights(inputs[0].mean(dim=1)))

    hooks = [slot.register_forward_hook(keep) for slot in slots]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def mean_weights(
    seen: dict[int, list[Tensor]], labels: Any, task_sizes: list[int]
) -> dict[str, list[list[float | None]]]:
    """Return the mean mixing weight of every adapter on the test images of every task: layer -> task -> adapter.

    Args:
        seen: From `router_weights`, in the order of the test images.
        labels: (n,) classes of those images.
        task_sizes: Number of classes of every task.
    """
    ends = torch.tensor(task_sizes).cumsum(0)
    tasks = torch.bucketize(torch.as_tensor(labels), ends, right=True)
    weights = {layer: torch.cat(batches).cpu() for layer, batches in seen.items()}
    numbers = [task for task in range(len(task_sizes)) if bool((tasks == task).any())]
    return {str(layer): [w[tasks == task].mean(dim=0).tolist() for task in numbers] for layer, w in weights.items()}
