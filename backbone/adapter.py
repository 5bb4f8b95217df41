"""The interface of adapter types, and the bottleneck adapter `adaptmlp`.

Shapes: B batch, N tokens (class token included), D embedding width (`config.d_model`), R bottleneck or rank.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backbone.registry import ADAPTERS
from backbone.streams import substream

Role = tuple[str, nn.Parameter]
ADAPTER = "adapter"  # the role of parameters that are on no time scale


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a Linear with these values (default bias: zeros), without a random draw."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]) if bias is None else bias)
    return layer


def drawn_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a Linear with kaiming-uniform weights (a = sqrt(5), torch's default) and a bias of zeros."""
    return linear(nn.init.kaiming_uniform_(torch.empty(outputs, inputs), a=math.sqrt(5)))


class FunctionalAdapter(nn.Module):
    """Base class of adapters: `forward` maps (B, N, D) to (B, N, D), and to zero before training.

    `@ADAPTERS.register("name")` makes a subclass a choice of the key `ffn_adapter_type`. Every member has a default
    here.

    Args:
        config: The configuration, with `d_model`. Adapters read keys as attributes.
        adapter_id: Name for messages, "layer.index".
        dropout: Ignored, unless the type says otherwise.
    """

    kind: ClassVar[str]  # the registered name
    width_key: ClassVar[str] = "ffn_num"  # configuration key of the inner width, which `tools.match` varies
    keys: ClassVar[tuple[str, ...]] = ()  # keys of shipped types that it reads too; with branches all of nested_lora's
    branches: ClassVar[tuple[str, ...]] = ()  # sub-modules on the time scales of the same names, slowest first
    consolidates: bool = False  # whether `consolidate` runs at the end of a task
    grows: bool = False  # whether `consolidate` adds parameters

    def __init__(self, config: Any, adapter_id: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.adapter_id = adapter_id
        self.active = self.branches  # those that `forward` sums; an evaluation may set fewer

    def roles(self) -> Iterator[Role]:
        """Yield every parameter with its role: the name of its branch, or "adapter"."""
        for name, parameter in self.named_parameters():
            branch = name.partition(".")[0]
            yield (branch if branch in self.branches else ADAPTER), parameter

    @classmethod
    def learning(cls, config: Any) -> tuple[str, ...]:
        """Return the branches that learn with a configuration; the others stay as they are born."""
        return cls.branches

    def let_learn(self) -> None:
        """Let the parameters get gradients, without those of branches that do not learn."""
        frozen = set(self.branches) - set(self.learning(self.config))
        for role, parameter in self.roles():
            parameter.requires_grad_(role not in frozen)

    def summands(self) -> "tuple[Adapter, ...] | None":
        """Return the bottleneck adapters whose sum this adapter is, so that a slot can run all adapters at once.

        None, the default: the slot calls `forward`.
        """
        return None

    def revive(self) -> bool:
        """Re-initialise what cannot learn, before a task trains the adapter again; return whether anything changed."""
        return False

    def consolidate(self, alpha: float) -> dict[str, Any]:
        """Move the share `alpha` of each faster branch into the next slower one, at the end of a task.

        Returns the settings, for the receipt; raises TypeError if the type has no consolidation.
        """
        raise TypeError(f"adapter {self.adapter_id} is of type {self.kind}, which has no consolidation")

    @classmethod
    def preserves_function(cls, config: Any) -> bool:
        """Return whether a consolidation with a configuration leaves the output as it is, up to rounding."""
        return False

    def measure(self) -> dict[str, float]:
        """Return the norms of the branches, and what else a consolidation changes, for the receipt."""
        return {f"{branch}_norm": norm(self.get_submodule(branch)) for branch in self.branches}

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take the inner widths of a checkpoint's tensors, if the type can grow; values are undefined until loaded."""


def norm(module: nn.Module) -> float:
    """Return the Euclidean norm over all parameters, frozen ones included."""
    return math.sqrt(sum(float(parameter.detach().double().square().sum()) for parameter in module.parameters()))


@ADAPTERS.register("adaptmlp")
class Adapter(FunctionalAdapter):
    """Bottleneck adapter `up_proj(relu(down_proj(x)))`; the zero map at birth (`init_option="lora"`: up_proj is zero).

    As in the public SEMA implementation `adapter_scalar` and `dropout` are accepted and do NOT act on the output:
    applying the usual scalar 0.1 would change the baseline tenfold.

    Args:
        config: Gives `d_model` and, unless `bottleneck` is passed, `ffn_num`.
        adapter_id: Name for messages, "layer.index".
        dropout: Ignored, see above.
        bottleneck: R; default `config.ffn_num`.
        init_option: Only "lora" (LoRA, arXiv 2106.09685, section 4.1); else a ValueError.
        adapter_scalar: Ignored, see above.
        branch: Its number, from 0, among the branches of an adapter, which differ in their initial hidden units: 0 and
            1 have, in turn, those of a single adapter of bottleneck 2 R, and later ones are drawn from streams of their
            own. None: a single adapter. The first units of an adapter are the same whatever R is.
    """

    def __init__(
        self,
        config: Any,
        adapter_id: str,
        dropout: float = 0.0,
        bottleneck: int | None = None,
        init_option: str = "lora",
        adapter_scalar: str = "1.0",
        branch: int | None = None,
    ) -> None:
        super().__init__(config, adapter_id)
        if init_option != "lora":
            raise ValueError(f"init_option {init_option!r} is unknown; the only choice is 'lora'")
        rank = config.ffn_num if bottleneck is None else bottleneck
        self.down_proj = nn.Linear(config.d_model, rank)
        self.up_proj = nn.Linear(rank, config.d_model)
        self.branch = branch
        self.reset()

    @property
    def rank(self) -> int:  # R
        return self.down_proj.out_features

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        return self.up_proj(torch.relu(self.down_proj(x)))

    def summands(self) -> tuple["Adapter", ...]:
        return (self,)

    @torch.no_grad()
    def reset(self) -> None:
        """Initialise: down kaiming-uniform, everything else zero; the zero map, able to learn.

        The CPU's generator draws wherever the adapter lies, so that a named stream decides the values on a GPU too.
        """
        if torch.get_default_device().type == "meta":  # no values there
            return
        weight, pair = self.down_proj.weight, self.branch in (0, 1)
        drawn = weight.new_empty((2 if pair else 1) * self.rank, self.down_proj.in_features, device="cpu")
        with substream("units", *([self.branch] if self.branch and not pair else [])):
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        weight.copy_(drawn[self.branch :: 2] if pair else drawn)
        for tensor in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(tensor)

    @torch.no_grad()
    def zero(self) -> None:
        """Set every tensor to zero: the zero map, unable to learn (only `up_proj.bias` would get a gradient)."""
        for parameter in self.parameters():
            parameter.zero_()

    def is_zero(self) -> bool:
        return not any(bool(parameter.any()) for parameter in self.parameters())

    @torch.no_grad()
    def add(self, other: "Adapter", alpha: float) -> None:
        """Add alpha times every tensor of `other`, which is of equal shape."""
        for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
            mine.add_(theirs, alpha=alpha)

    @torch.no_grad()
    def append(self, other: "Adapter", alpha: float) -> None:
        """Become `x -> self(x) + alpha * other(x)` exactly: hidden units concatenated, other's up-projection scaled."""
        self.down_proj = linear(
            torch.cat([self.down_proj.weight, other.down_proj.weight]),
            torch.cat([self.down_proj.bias, other.down_proj.bias]),
        )
        self.up_proj = linear(
            torch.cat([self.up_proj.weight, alpha * other.up_proj.weight], dim=1),
            self.up_proj.bias + alpha * other.up_proj.bias,
        )

    def resize(self, rank: int) -> None:
        """Take another inner width, for checkpoints of grown adapters; values are undefined until loaded."""
        if rank != self.rank:
            self.down_proj = linear(self.down_proj.weight.new_empty(rank, self.down_proj.in_features))
            self.up_proj = linear(self.up_proj.weight.new_empty(self.up_proj.out_features, rank))
