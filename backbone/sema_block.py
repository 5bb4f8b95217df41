"""One block's SEMA slot: its adapters, their router, expansion, consolidation; and the block that carries the slot.

Shapes: B batch, N tokens, D embedding width, A adapters at this layer.
`forward` never changes the module tree: the learner decides and calls `expand`, `end_of_cycle`, `end_of_task_training`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbone.adapter import FunctionalAdapter, Role, linear
from backbone.batched import mixed, output, reconstruction_losses, z_scores
from backbone.sema_components import AdapterModule

logger = logging.getLogger(__name__)


class SEMAModules(nn.Module):
    """The adapters of one block, mixed by a router when the layer is expandable.

    A layer outside `[adapt_start_layer, adapt_end_layer]` holds one adapter for ever, without descriptor and mixing;
    its `router` exists for the checkpoint's sake and never learns.

    Args:
        config: Gives `d_model`, the layer range, the `nested_lora_*` keys and what the adapters read.
        layer: Index of the block.
    """

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.expandable: bool = config.adapt_start_layer <= layer <= config.adapt_end_layer
        self.adapters = nn.ModuleList()
        self.router = nn.Linear(config.d_model, 1).requires_grad_(self.expandable)
        self.new_router: nn.Linear | None = None
        self.added = 0
        self.trained: set[int] = set()
        self._add_adapter()

    @property
    def num_adapters(self) -> int:
        """A."""
        return len(self.adapters)

    @property
    def modules_in_order(self) -> list[AdapterModule]:
        """The adapters with their descriptors, oldest first."""
        return [module for module in self.adapters if isinstance(module, AdapterModule)]

    @property
    def functional(self) -> list[FunctionalAdapter]:
        """The adapters themselves, oldest first."""
        return [module.functional for module in self.modules_in_order]

    @property
    def newest(self) -> AdapterModule:
        """The adapter that was added last."""
        return self.modules_in_order[-1]

    @property
    def consolidates(self) -> bool:
        """Whether adapters that trained in this task are consolidated at its end."""
        return any(self.functional[index].consolidates for index in self.trained)

    @property
    def describing(self) -> bool:
        """Whether the newest adapter's descriptor is in training: it was added in this cycle."""
        return self.expandable and self.newest.rd.encoder.weight.requires_grad

    def forward(self, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """The slot's output on the un-normalised `h`; in training mode the descriptor's records see the batch."""
        if not self.expandable:
            return output(self.functional[0], h)
        mean = h.mean(dim=1)
        if self.training and self.describing:
            with torch.no_grad(), at_full_precision(h):
                self.newest.observe(mean.detach())  # torch's flop counter follows what asks for a gradient even here
        return self.mix(h, mean)

    def mix(self, h: Tensor, mean: Tensor) -> Tensor:  # (B, N, D), (B, D) -> (B, N, D)
        """The adapters' outputs, weighted per sample."""
        return mixed(self.functional, self.mixing_weights(mean), h)

    def mixing_weights(self, mean: Tensor) -> Tensor:  # (B, D) -> (B, A)
        """Softmax of the router's logits; the columns of a new adapter come from `new_router` until its cycle ends."""
        with at_full_precision(mean):
            logits = self.router(mean)
            if self.new_router is not None:
                logits = torch.cat([logits, self.new_router(mean)], dim=1)
            return logits.softmax(dim=1)

    def rd_loss(self, mean: Tensor) -> Tensor:  # (B, D) -> ()
        """The newest descriptor's training loss, a batch mean; its records see the batch."""
        return self.newest.observe(mean).mean()

    @torch.no_grad()
    def z_scores(self, mean: Tensor) -> Tensor:  # (B, D) -> (A, B)
        """Every adapter's z-scores of a batch, see `Records.z_scores`."""
        modules = self.modules_in_order
        losses = reconstruction_losses([module.rd for module in modules], mean)
        return z_scores([module.records for module in modules], losses)

    def roles(self) -> Iterator[Role]:
        """Every parameter of the slot with what it is."""
        for module in self.modules_in_order:
            yield from module.roles()
        for router in (self.router, self.new_router):
            if router is not None:
                yield from (("router", parameter) for parameter in router.parameters())

    def begin_task(self) -> list[int]:
        """Begin a task after the first: adapters of lifetime "continual" may learn again.

        Returns:
            Indices of adapters that were re-initialised because they could not learn.
        """
        self.added, self.trained = 0, set()
        self._let_continual_learn()
        learning = ((index, a) for index, a in enumerate(self.functional) if a.lifetime == "continual")
        return [index for index, adapter in learning if adapter.revive()]

    def begin_func_phase(self) -> None:
        """Note which adapters the phase trains: those are the ones consolidated at the task's end."""
        for index, adapter in enumerate(self.functional):
            if any(parameter.requires_grad for parameter in adapter.parameters()):
                self.trained.add(index)

    def expand(self) -> None:
        """Add an adapter with a fresh descriptor and its own router column; both learn until the cycle ends."""
        self.new_router = nn.Linear(self.config.d_model, 1).to(self.router.weight)
        self._add_adapter().to(self.router.weight)

    def end_of_cycle(self) -> None:
        """Freeze what this cycle trained, except adapters of lifetime "continual"; join the router's columns."""
        self._join_router()
        self.requires_grad_(False)
        self._let_continual_learn()

    def end_of_task_training(self, h: Tensor | None = None, task: int | None = None) -> list[dict[str, Any]]:
        """Consolidate, if the configuration says so, and freeze everything.

        Args:
            h: (B, N, D) inputs of this slot, captured before any layer was consolidated; drift is measured on them.
            task: Number of the task that ends, for the log.

        Returns:
            One receipt for each consolidated adapter.
        """
        receipts = []
        if self.consolidates:
            receipts = self.consolidate_nested_lora(self.config.nested_lora_consolidation_alpha, h)
        for receipt in receipts:
            shown = " ".join(f"{key}={_short(value)}" for key, value in receipt.items())
            logger.info("task %s: consolidated %s", task, shown)
        self._join_router()
        self.requires_grad_(False)
        return receipts

    @torch.no_grad()
    def consolidate_nested_lora(self, alpha: float, h: Tensor | None = None) -> list[dict[str, Any]]:
        """Consolidate the adapters that trained in this task; all others stay bitwise as they are.

        Args:
            alpha: Share of fast that goes into slow.
            h: (B, N, D) batch for the relative change of each adapter's output; without it none is measured.

        Returns:
            One receipt for each adapter: layer, adapter, alpha, mode, reset, norms and rank before and after, drift.

        Raises:
            TypeError: The adapters are of a type that has no consolidation.
        """
        return [self._consolidate(index, alpha, h) for index in sorted(self.trained)]

    def restore_structure(
        self, adapters: Sequence[Mapping[str, tuple[int, ...]]], records: Sequence[int], expanding: bool = False
    ) -> None:
        """Take the structure of a checkpoint, values undefined until loaded; everything is frozen then.

        Args:
            adapters: For each adapter the shapes of its tensors by name.
            records: For each descriptor the number of recorded losses; empty in a layer without descriptors.
            expanding: Whether the newest adapter still has a router of its own.
        """
        while self.num_adapters < len(adapters):
            self._add_adapter()
        del self.adapters[len(adapters) :]
        self.router = nn.Linear(self.config.d_model, len(adapters) - expanding)
        self.new_router = nn.Linear(self.config.d_model, 1) if expanding else None
        for adapter, shapes in zip(self.functional, adapters, strict=True):
            adapter.fit(shapes)
        for module, length in zip(self.modules_in_order, records if self.expandable else (), strict=False):
            module.records.losses = torch.empty(length)
        self.added = 0
        self.requires_grad_(False)

    def task_state(self) -> dict[str, Any]:
        """What the task in progress has noted here, for `restore_task_state`."""
        return {"added": self.added, "trained": sorted(self.trained)}

    def restore_task_state(self, state: dict[str, Any]) -> None:
        """Go on with the notes of a task in progress."""
        self.added, self.trained = state["added"], set(state["trained"])

    def _add_adapter(self) -> AdapterModule:
        module = AdapterModule(self.config, f"{self.layer}.{self.num_adapters}", described=self.expandable)
        self.adapters.append(module)
        self.added += 1
        return module

    def _let_continual_learn(self) -> None:
        for adapter in self.functional:
            if adapter.lifetime == "continual":
                adapter.requires_grad_(True)

    @torch.no_grad()
    def _join_router(self) -> None:
        """Make the new router's column one more of the router's."""
        if self.new_router is None:
            return
        weight = torch.cat([self.router.weight, self.new_router.weight])
        self.router, self.new_router = linear(weight, torch.cat([self.router.bias, self.new_router.bias])), None

    def _consolidate(self, index: int, alpha: float, h: Tensor | None) -> dict[str, Any]:
        adapter = self.functional[index]
        before, output = adapter.measure(), None if h is None else adapter(h)
        settings = adapter.consolidate(alpha)
        measured = {"before": before, "after": adapter.measure()}
        return {
            "layer": self.layer,
            "adapter": index,
            **settings,
            **{f"{name}_{when}": value for when, values in measured.items() for name, value in values.items()},
            "drift": None if output is None or h is None else relative_change(output, adapter(h)),
        }


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def relative_change(before: Tensor, after: Tensor) -> float:
    """||after - before|| / ||before||, Euclidean over all elements; 0 when both are zero."""
    change, scale = float((after - before).norm()), float(before.norm())
    return 0.0 if change == 0 else change / scale if scale > 0 else float("inf")


def at_full_precision(h: Tensor) -> torch.autocast:
    """Where a forward pass in bfloat16 computes in float32 all the same: routers and descriptors, which are small.

    `h` is float32 in either precision, as the residual stream is.
    """
    return torch.autocast(h.device.type, enabled=False)


def directly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call it."""
    return function(x)


def recomputing(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call it, and again in the backward pass instead of keeping what it makes on the way (arXiv 1604.06174)."""
    return cast(Tensor, checkpoint(function, x, use_reentrant=False))


class SEMABlock(nn.Module):
    """A timm Block with a slot beside its MLP; the Block's own modules under their own names.

    `h = x + attn(norm1(x));  y = h + mlp(norm2(h)) + adapters(h)`

    Args:
        block: A plain `timm.models.vision_transformer.Block`; its modules are taken over.
        slot: The adapters.
    """

    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: nn.Module, slot: SEMAModules) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.adapter_module = slot
        self.run: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = directly

    def compile_frozen(self) -> None:
        """Compile what no expansion changes: the block but for its slot. Blocks of one shape share the code."""
        self.attend = torch.compile(self.attend)  # type: ignore[method-assign]
        self.transform = torch.compile(self.transform)  # type: ignore[method-assign]

    def recompute_frozen(self) -> None:
        """Keep no activations of the frozen parts for the backward pass. The slot, which notes records, runs once."""
        self.run = recomputing

    def attend(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """`h`, the input of the slot."""
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))

    def complete(self, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """The block's output for its `h`."""
        return self.run(self.transform, h) + self.adapter_module(h)

    def transform(self, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """The block's output for its `h`, but for the adapters' part."""
        return h + self.drop_path2(self.ls2(self.mlp(self.norm2(h))))

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        return self.complete(self.run(self.attend, x))
