"""The SEMA slot of a block (adapters, router, expansion, consolidation), and the block that carries it.

Shapes: B batch, N tokens, D embedding width, A adapters at this layer.
`forward` never changes the module tree: the learner calls `expand`, `end_of_cycle`, `end_of_task_training`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbone.adapter import FunctionalAdapter, Role, linear
from backbone.batched import mixed, output, reconstruction_losses
from backbone.frozen import attended, freeze_products, understands
from backbone.sema_components import AdapterModule
from backbone.streams import substream

logger = logging.getLogger(__name__)
Out = TypeVar("Out")


class SEMAModules(nn.Module):
    """The adapters of one block, mixed by a router when the layer is expandable.

    A layer outside `[adapt_start_layer, adapt_end_layer]` always holds one adapter, without descriptor and mixing; its
    `router` is there for the checkpoint's sake and never learns. `continual` says whether adapters learn in every task.

    Args:
        config: Gives `d_model`, the layer range, the `nested_lora_*` keys and what the adapters read.
        layer: Index of the block.
    """

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.expandable: bool = config.adapt_start_layer <= layer <= config.adapt_end_layer
        everywhere = config.nested_lora_continual_layers == "all"
        self.continual: bool = config.adapter_lifetime == "continual" and (everywhere or self.expandable)
        self.adapters = nn.ModuleList()
        self.router = self._new_router().requires_grad_(self.expandable)
        self.new_router: nn.Linear | None = None
        self.added = 0  # number of adapters added in this task
        self.trained: set[int] = set()  # indices of those that trained in this task
        self.tokens = nn.Identity()  # gets `h` of all tokens if it has a hook
        self._add_adapter()

    @property
    def num_adapters(self) -> int:  # A
        return len(self.adapters)

    @property
    def modules_in_order(self) -> list[AdapterModule]:
        """The adapters with their descriptors, oldest first."""
        return [module for module in self.adapters if isinstance(module, AdapterModule)]

    @property
    def functional(self) -> list[FunctionalAdapter]:
        return [module.functional for module in self.modules_in_order]

    @property
    def newest(self) -> AdapterModule:
        return self.modules_in_order[-1]

    @property
    def consolidates(self) -> bool:
        """Whether adapters that trained in this task are consolidated at its end."""
        return any(self.functional[index].consolidates for index in self.trained)

    @property
    def consolidation_changes_function(self) -> bool:
        """Whether the consolidation at the end of this task changes, or has changed, what the slot computes."""
        trained = (self.functional[index] for index in self.trained)
        return self.consolidates and not all(adapter.preserves_function(self.config) for adapter in trained)

    @property
    def describing(self) -> bool:
        """Whether the newest adapter's descriptor is in training: it was added in this cycle."""
        return self.expandable and self.newest.rd.encoder.weight.requires_grad

    @property
    def reads_mean(self) -> bool:
        """Whether the mean over all tokens changes anything: a router has a choice, or it or a descriptor learns."""
        learns = self.training and (self.describing or self.router.weight.requires_grad)
        return self.expandable and (self.num_adapters > 1 or learns)

    @property
    def tokenwise(self) -> bool:
        """Whether the slot's output at a token depends on that token and the mean alone."""
        return all(adapter.summands() is not None for adapter in self.functional)

    def forward(self, h: Tensor, mean: Tensor | None = None) -> Tensor:  # (B, N, D), (B, D) -> (B, N, D)
        """Return the slot's output on the un-normalised `h`; in training mode, record the descriptor's losses.

        Args:
            h: Of all tokens, or with `mean` of some.
            mean: Of all tokens' `h`, if `h` is not all of it; any value where `reads_mean` is false.
        """
        if not self.reads_mean:
            return output(self.functional[0], h)
        mean = h.mean(dim=1) if mean is None else mean
        if self.training and self.describing:
            with torch.no_grad(), at_full_precision(h):
                self.newest.observe(mean.detach())  # torch's flop counter follows what asks for a gradient even here
        return self.mix(h, mean)

    def mix(self, h: Tensor, mean: Tensor) -> Tensor:  # (B, N, D), (B, D) -> (B, N, D)
        return mixed(self.functional, self.mixing_weights(mean), h)

    def mixing_weights(self, mean: Tensor) -> Tensor:  # (B, D) -> (B, A)
        """Return the softmax of the router's logits; `new_router` gives that of a new adapter until its cycle ends."""
        with at_full_precision(mean):
            logits = self.router(mean)
            if self.new_router is not None:
                logits = torch.cat([logits, self.new_router(mean)], dim=1)
            return logits.softmax(dim=1)

    def rd_loss(self, mean: Tensor) -> Tensor:  # (B, D) -> ()
        """Return the newest descriptor's training loss, a batch mean, and record the losses."""
        return self.newest.observe(mean).mean()

    @torch.no_grad()
    def z_scores(self, mean: Tensor) -> Tensor:  # (B, D) -> (A, B)
        """Return every adapter's z-scores of a batch, see `Records.z_scores`."""
        modules = self.modules_in_order
        losses = reconstruction_losses([module.rd for module in modules], mean)
        center, std = torch.stack([module.records.moments for module in modules]).mT[:, :, None]  # (A, 1) each
        return (losses - center).abs() / std

    def roles(self) -> Iterator[Role]:
        """Yield every parameter of the slot with its role."""
        for module in self.modules_in_order:
            yield from module.roles()
        for router in (self.router, self.new_router):
            if router is not None:
                yield from (("router", parameter) for parameter in router.parameters())

    def begin_task(self) -> list[int]:
        """Let continual adapters learn again, in a task after the first.

        Returns the indices of those that were re-initialised because they could not learn.
        """
        self.added, self.trained = 0, set()
        self._let_continual_learn()
        revived = []
        for index, adapter in enumerate(self.functional):
            with substream("adapter", adapter.adapter_id):
                if self.continual and adapter.revive():
                    revived.append(index)
        return revived

    def begin_func_phase(self) -> None:
        """Note which adapters the phase trains; those are consolidated at the task's end."""
        for index, adapter in enumerate(self.functional):
            if any(parameter.requires_grad for parameter in adapter.parameters()):
                self.trained.add(index)

    def expand(self) -> None:
        """Add an adapter with a new descriptor and its own router column; both learn until the cycle ends."""
        self.new_router = self._new_router().to(self.router.weight)
        self._add_adapter().to(self.router.weight)

    def end_of_cycle(self) -> None:
        """Freeze what this cycle trained, except continual adapters; join the router's columns."""
        self._freeze()
        self._let_continual_learn()

    def end_of_task_training(self, h: Tensor | None = None, task: int | None = None) -> list[dict[str, Any]]:
        """Consolidate if configured (see `consolidate_nested_lora`), and freeze everything; `task` is for the log."""
        alpha = self.config.nested_lora_consolidation_alpha
        receipts = self.consolidate_nested_lora(alpha, h) if self.consolidates else []
        for receipt in receipts:
            shown = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in receipt.items())
            logger.info("task %s: consolidated %s", task, " ".join(shown))
        self._freeze()
        return receipts

    @torch.no_grad()
    def consolidate_nested_lora(self, alpha: float, h: Tensor | None = None) -> list[dict[str, Any]]:
        """Consolidate the adapters that trained in this task; all others stay bitwise as they are.

        Args:
            alpha: Share of fast that goes into slow.
            h: (B, N, D) inputs of this slot before any layer was consolidated, on which drift, the relative change of
                each adapter's output, is measured; None: not measured.

        Returns:
            One receipt for each adapter: layer, adapter, alpha, mode, reset, norms and rank before and after, drift.

        Raises:
            TypeError: The adapters are of a type that has no consolidation.
        """
        receipts = []
        for index in sorted(self.trained):
            adapter = self.functional[index]
            before, old = adapter.measure(), None if h is None else adapter(h)
            with substream("adapter", adapter.adapter_id):
                settings = adapter.consolidate(alpha)
            norms = {f"{name}_before": value for name, value in before.items()}
            norms |= {f"{name}_after": value for name, value in adapter.measure().items()}
            drift = None if old is None or h is None else relative_change(old, adapter(h))
            receipts.append({"layer": self.layer, "adapter": index, **settings, **norms, "drift": drift})
        return receipts

    def restore_structure(
        self, adapters: Sequence[Mapping[str, tuple[int, ...]]], records: Sequence[int], expanding: bool = False
    ) -> None:
        """Take the structure of a checkpoint and freeze everything; values are undefined until loaded.

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
        return {"added": self.added, "trained": sorted(self.trained)}

    def restore_task_state(self, state: dict[str, Any]) -> None:
        self.added, self.trained = state["added"], set(state["trained"])

    def _new_router(self) -> nn.Linear:
        with substream("router", self._next_id()):
            return nn.Linear(self.config.d_model, 1)

    def _next_id(self) -> str:
        """Return the identifier of the adapter that is added next."""
        return f"{self.layer}.{self.num_adapters}"

    def _add_adapter(self) -> AdapterModule:
        module = AdapterModule(self.config, self._next_id(), described=self.expandable)
        module.functional.let_learn()
        self.adapters.append(module)
        self.added += 1
        return module

    def _let_continual_learn(self) -> None:
        for adapter in self.functional if self.continual else ():
            adapter.let_learn()

    @torch.no_grad()
    def _freeze(self) -> None:
        """Freeze everything, and make the new router one more column of the router."""
        if self.new_router is not None:
            weight = torch.cat([self.router.weight, self.new_router.weight])
            self.router, self.new_router = linear(weight, torch.cat([self.router.bias, self.new_router.bias])), None
        self.requires_grad_(False)


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return ||after - before|| / ||before||, Euclidean over all elements; 0 when both are zero."""
    change, scale = float((after - before).norm()), float(before.norm())
    return 0.0 if change == 0 else change / scale if scale > 0 else float("inf")


def at_full_precision(h: Tensor) -> torch.autocast:
    """Compute in float32 also where the forward pass is in bfloat16: for routers and descriptors, which are small.

    `h` is float32 in either case, as the residual stream is.
    """
    return torch.autocast(h.device.type, enabled=False)


class SEMABlock(nn.Module):
    """A timm Block with a slot beside its MLP; the Block's own modules keep their names.

    `h = x + attn(norm1(x));  y = h + mlp(norm2(h)) + adapters(h)`

    Args:
        block: A plain `timm.models.vision_transformer.Block`, whose modules are used.
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
        freeze_products(block)
        for name, module in block.named_children():
            self.add_module(name, module)
        self.adapter_module = slot
        self.adapters_off = False  # the slot gives zero
        self._recomputes = False

    def compile_frozen(self) -> None:
        """Compile what no expansion changes: the block without its slot. Blocks of one shape share the code."""
        self.attend = torch.compile(self.attend)  # type: ignore[method-assign]
        self.attend_first = torch.compile(self.attend_first)  # type: ignore[method-assign]
        self.transform = torch.compile(self.transform)  # type: ignore[method-assign]
        self.transform_first = torch.compile(self.transform_first)  # type: ignore[method-assign]

    def recompute_frozen(self) -> None:
        """Recompute the frozen parts, but not the slot, in the backward pass to save memory (arXiv 1604.06174)."""
        self._recomputes = True

    def attend(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """Return `h`, the input of the slot."""
        if not understands(self.attn):
            return x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self._projected(attended(cast(Attention, self.attn), self.norm1(x), x.shape[1]))

    def attend_first(self, x: Tensor, of_mean: bool) -> tuple[Tensor, Tensor]:  # (B, N, D) -> (B, 1, D), (B, D)
        """Return `h` of the class token, and with `of_mean` the mean of all tokens' `h`, else nothing of use.

        The projection is linear, so that the mean of its outputs is its output at the mean.
        """
        first = x[:, :1]
        joined = attended(cast(Attention, self.attn), self.norm1(x), x.shape[1] if of_mean else 1)
        h = first + self._projected(joined[:, :1])
        if not of_mean:
            return h, first[:, 0]
        with at_full_precision(x):
            return h, x.mean(dim=1) + self._projected(joined.to(x.dtype).mean(dim=1))

    def _projected(self, joined: Tensor) -> Tensor:
        attn = cast(Attention, self.attn)
        return self.drop_path1(self.ls1(attn.proj_drop(attn.proj(joined))))

    def transform(self, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """Return the block's output for its `h`, without the adapters."""
        return h + self.drop_path2(self.ls2(self.mlp(self.norm2(h))))

    def transform_first(self, h: Tensor) -> Tensor:  # (B, 1, D) -> (B, 1, D)
        """Return `transform` of the class token; apart, as torch.compile keeps few variants of one function."""
        return SEMABlock.transform(self, h)

    def complete(self, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """Return the block's output for its `h`."""
        return self._adapted(self._frozen(self.transform, h), h)

    def _adapted(self, y: Tensor, h: Tensor, mean: Tensor | None = None) -> Tensor:
        return y if self.adapters_off else y + self.adapter_module(h, mean)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        return self.complete(self.adapter_module.tokens(self._frozen(self.attend, x)))

    def first(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, 1, D)
        """Return the output at the class token, which is all that is read of the last block."""
        slot = self.adapter_module
        if not (understands(self.attn) and slot.tokenwise):
            return self(x)[:, :1]
        if slot.tokens._forward_pre_hooks:
            with torch.no_grad():
                slot.tokens(self.attend(x))
        h, mean = self._frozen(self.attend_first, x, slot.reads_mean and not self.adapters_off)
        return self._adapted(self._frozen(self.transform_first, h), h, mean)

    def _frozen(self, function: Callable[..., Out], *inputs: Any) -> Out:
        return cast(Out, checkpoint(function, *inputs, use_reentrant=False)) if self._recomputes else function(*inputs)
