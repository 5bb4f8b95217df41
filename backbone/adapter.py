"""What an adapter type is, and the bottleneck adapter `adaptmlp`.

Shapes: B batch, N tokens (class token included), D embedding width (`config.d_model`), R bottleneck or rank.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backbone.registry import ADAPTERS

Role = tuple[str, nn.Parameter]
ADAPTER = "adapter"  # the role of parameters that are on no time scale


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A Linear that holds these values (no bias: zeros), made without a random draw."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]) if bias is None else bias)
    return layer


class FunctionalAdapter(nn.Module):
    """One adapter of a slot: `forward` (B, N, D) -> (B, N, D), and the zero map at birth.

    A subclass is an adapter type once it is registered: `@ADAPTERS.register("name")` makes `name` a choice of the key
    `ffn_adapter_type`. It says what is special about it; everything else has a default here.

    Args:
        config: The configuration, with `d_model`. Adapters read keys as attributes.
        adapter_id: Name for messages, "layer.index".
        dropout: Without effect unless the type says otherwise.

    Attributes:
        kind: The registered name.
        width_key: Configuration key of the inner width, which `tools.match` varies.
        branches: Names of the sub-modules that learn on the time scales of the same names, slowest first.
        lifetime: "expansion": frozen after the task that added it; "continual": learns again in every task.
        consolidates: Whether `consolidate` runs at the end of a task.
        grows: Whether that adds parameters.
        active: The branches that answer: all of them, unless an evaluation asks for fewer.
    """

    kind: ClassVar[str]
    width_key: ClassVar[str] = "ffn_num"
    branches: ClassVar[tuple[str, ...]] = ()
    lifetime: str = "expansion"
    consolidates: bool = False
    grows: bool = False

    def __init__(self, config: Any, adapter_id: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.adapter_id = adapter_id
        self.active = self.branches

    def roles(self) -> Iterator[Role]:
        """Every parameter with what it is: the branch it belongs to, or "adapter"."""
        for name, parameter in self.named_parameters():
            branch = name.partition(".")[0]
            yield (branch if branch in self.branches else ADAPTER), parameter

    def summands(self) -> "tuple[Adapter, ...] | None":
        """The bottleneck adapters whose sum this is, so that a slot can run all its adapters in two products.

        None, the default: the slot calls `forward`.
        """
        return None

    def revive(self) -> bool:
        """Before a task trains the adapter again: make it able to learn if it is not; whether that was needed."""
        return False

    def consolidate(self, alpha: float) -> dict[str, Any]:
        """Move the share `alpha` of what a faster branch learned into the next slower one, at the end of a task.

        Returns:
            The settings, for the receipt.

        Raises:
            TypeError: The type has no consolidation.
        """
        raise TypeError(f"adapter {self.adapter_id} is of type {self.kind}, which has no consolidation")

    def measure(self) -> dict[str, float]:
        """Norms of the branches, and what else a consolidation changes, for the receipt."""
        return {f"{branch}_norm": norm(self.get_submodule(branch)) for branch in self.branches}

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take the inner widths of a checkpoint's tensors, values undefined until loaded; for types that grow."""


def norm(module: nn.Module) -> float:
    """Euclidean norm over all parameters, whatever `requires_grad` says."""
    return math.sqrt(sum(float(parameter.detach().double().square().sum()) for parameter in module.parameters()))


@ADAPTERS.register("adaptmlp")
class Adapter(FunctionalAdapter):
    """Bottleneck adapter `up_proj(relu(down_proj(x)))`; the zero map at birth (`init_option="lora"`: up_proj is zero).

    As in the public SEMA implementation `adapter_scalar` and `dropout` are accepted and do NOT act on the output:
    applying the usual scalar 0.1 would change the baseline tenfold.

    Args:
        config: Gives `d_model` and, unless `bottleneck` is passed, `ffn_num`.
        adapter_id: Name for messages, "layer.index".
        dropout: Without effect, see above.
        bottleneck: R; default `config.ffn_num`.
        init_option: Only "lora" (LoRA, arXiv 2106.09685, section 4.1).
        adapter_scalar: Without effect, see above.

    Raises:
        ValueError: `init_option` is not "lora".
    """

    def __init__(
        self,
        config: Any,
        adapter_id: str,
        dropout: float = 0.0,
        bottleneck: int | None = None,
        init_option: str = "lora",
        adapter_scalar: str = "1.0",
    ) -> None:
        super().__init__(config, adapter_id)
        if init_option != "lora":
            raise ValueError(f"init_option {init_option!r} is unknown; the one choice is 'lora'")
        rank = config.ffn_num if bottleneck is None else bottleneck
        self.down_proj = nn.Linear(config.d_model, rank)
        self.up_proj = nn.Linear(rank, config.d_model)
        self.reset()

    @property
    def rank(self) -> int:
        """R, the inner width."""
        return self.down_proj.out_features

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        return self.up_proj(torch.relu(self.down_proj(x)))

    def summands(self) -> tuple["Adapter", ...]:
        """The adapters whose sum this is: itself."""
        return (self,)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the zero function that can learn: down kaiming-uniform, everything else zero.

        The draw is the CPU generator's wherever the adapter lies, so that a named stream decides it on a GPU too.
        """
        if torch.get_default_device().type == "meta":  # a sketch, of which only shapes are asked
            return
        drawn = torch.empty_like(self.down_proj.weight, device="cpu")
        self.down_proj.weight.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5)))
        for tensor in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(tensor)

    @torch.no_grad()
    def zero(self) -> None:
        """Set every tensor to zero: the zero function that cannot learn (only `up_proj.bias` would get a gradient)."""
        for parameter in self.parameters():
            parameter.zero_()

    def is_zero(self) -> bool:
        """Whether every tensor is zero."""
        return not any(bool(parameter.any()) for parameter in self.parameters())

    @torch.no_grad()
    def add(self, other: "Adapter", alpha: float) -> None:
        """Every tensor += alpha * the same tensor of `other` (of equal shape)."""
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
        """Take another inner width, values undefined until loaded (for checkpoints of grown adapters)."""
        if rank != self.rank:
            self.down_proj = linear(self.down_proj.weight.new_empty(rank, self.down_proj.in_features))
            self.up_proj = linear(self.up_proj.weight.new_empty(self.up_proj.out_features, rank))
