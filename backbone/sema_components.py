"""The parts of a SEMA slot: adapters, representation descriptors and their records.

Shapes: B batch, N tokens (class token included), D embedding width (`config.d_model`), R bottleneck or rank.
Everything here reads attributes of the configuration object it is given and imports nothing of the project.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Role = tuple[str, nn.Parameter]


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A Linear that holds these values (no bias: zeros), made without a random draw."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]) if bias is None else bias)
    return layer


class Adapter(nn.Module):
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
        super().__init__()
        if init_option != "lora":
            raise ValueError(f"init_option {init_option!r} is unknown; the one choice is 'lora'")
        self.adapter_id = adapter_id
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

    def roles(self) -> Iterator[Role]:
        """Every parameter with what it is."""
        return (("adapter", parameter) for parameter in self.parameters())

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

    def norm(self) -> float:
        """Euclidean norm over all tensors, whatever `requires_grad` says."""
        return math.sqrt(sum(float(parameter.detach().double().square().sum()) for parameter in self.parameters()))

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


class NestedLoRAAdapter(nn.Module):
    """Two adapters on two time scales, always summed: `slow(x) + fast(x)`; the zero map at birth.

    The time scales themselves are the optimizer's (two groups and the slow gate); this module declares which of its
    parameters belong to which. After Nested Learning's continuum of update frequencies (Behrouz et al., 2025).

    Args:
        config: Gives `d_model`, `nested_lora_rank`, `nested_lora_consolidation_mode`, `nested_lora_fast_reset`.
        adapter_id: Name for messages, "layer.index".
        dropout: Without effect, as in `Adapter`.
    """

    def __init__(self, config: Any, adapter_id: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.adapter_id = adapter_id
        self.slow = Adapter(config, f"{adapter_id}.slow", dropout, config.nested_lora_rank)
        self.fast = Adapter(config, f"{adapter_id}.fast", dropout, config.nested_lora_rank)
        self.active: tuple[str, ...] = ("slow", "fast")

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        """The sum of the active branches, which are both unless an evaluation asks for fewer."""
        if self.active == ("slow", "fast"):
            return self.slow(x) + self.fast(x)
        return sum((getattr(self, branch)(x) for branch in self.active), torch.zeros_like(x))

    def summands(self) -> tuple[Adapter, ...]:
        """The adapters whose sum this is: the active branches."""
        return tuple(getattr(self, branch) for branch in self.active)

    def roles(self) -> Iterator[Role]:
        """Every parameter as "slow" or "fast"."""
        yield from (("slow", parameter) for parameter in self.slow.parameters())
        yield from (("fast", parameter) for parameter in self.fast.parameters())

    def consolidate(self, alpha: float) -> None:
        """Move the share `alpha` of fast into slow, then reset fast, as the configuration says.

        Mode "weights": every slow tensor += alpha * fast tensor. Mode "function": slow becomes
        `x -> slow(x) + alpha * fast(x)` and its rank grows by fast's.
        """
        into_slow = {"weights": self.slow.add, "function": self.slow.append}
        into_slow[self.config.nested_lora_consolidation_mode](self.fast, alpha)
        reset = {"zero": self.fast.zero, "reinit": self.fast.reset}
        if self.config.nested_lora_fast_reset != "keep":
            reset[self.config.nested_lora_fast_reset]()

    def revive(self) -> bool:
        """Give a zeroed fast, which could not learn, the zero function that can; whether that was needed."""
        dead = self.fast.is_zero()
        if dead:
            self.fast.reset()
        return dead


ADAPTER_TYPES: dict[str, type[Adapter] | type[NestedLoRAAdapter]] = {
    "adaptmlp": Adapter,
    "nested_lora": NestedLoRAAdapter,
}


class AE(nn.Module):
    """Representation descriptor: a linear auto-encoder of token means, `decoder(encoder(m))`.

    Args:
        config: Gives `d_model` and `rd_dim`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.encoder = nn.Linear(config.d_model, config.rd_dim)
        self.decoder = nn.Linear(config.rd_dim, config.d_model)
        for layer in (self.encoder, self.decoder):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
            nn.init.zeros_(layer.bias)

    def forward(self, mean: Tensor) -> Tensor:  # (B, D) -> (B, D)
        return self.decoder(self.encoder(mean))

    def loss(self, mean: Tensor) -> Tensor:  # (B, D) -> (B,)
        """Reconstruction error of each sample: the mean over D of the squared difference."""
        return (self(mean) - mean).square().mean(dim=-1)


class Records(nn.Module):
    """The last `size` reconstruction losses an RD has seen in training.

    The batch that fills the buffer is cut there and its surplus dropped; after that the buffer slides.
    """

    losses: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("losses", torch.empty(0))
        self._measured: tuple[Tensor, int, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_measured": None}  # a copy's losses count their versions anew

    def __len__(self) -> int:
        return len(self.losses)

    def add(self, losses: Tensor) -> None:  # (B,)
        """Take the losses of one batch in order."""
        room = self.size - len(self.losses)
        taken = losses.detach()[:room] if room > 0 else losses.detach()
        self.losses = torch.cat([self.losses.to(taken), taken])[-self.size :]

    def clear(self) -> None:
        """Forget everything."""
        self.losses = self.losses[:0]

    @property
    def moments(self) -> Tensor:  # (2,)
        """Mean and unbiased standard deviation of the records; 0 and infinity while there are two or fewer.

        Computed once for these losses: whoever changes them gives another tensor or counts up this one's version.
        """
        if self._measured is None or self._measured[0] is not self.losses or self._measured[1] != self.losses._version:
            self._measured = (self.losses, self.losses._version, self._moments())
        return self._measured[2]

    @torch.no_grad()
    def _moments(self) -> Tensor:  # (2,)
        if len(self.losses) <= 2:
            return self.losses.new_tensor([0.0, math.inf])
        return torch.stack([self.losses.mean(), self.losses.std()])

    def z_scores(self, losses: Tensor) -> Tensor:  # (B,) -> (B,)
        """|loss - mean| / unbiased std of the records; 0 while there are two records or fewer."""
        mean, std = self.moments
        return (losses - mean).abs() / std


class AdapterModule(nn.Module):
    """One adapter (`functional`) and, in an expandable layer, its descriptor (`rd`) with its records.

    Args:
        config: Gives `ffn_adapter_type`, `buffer_size` and what the parts read.
        adapter_id: Name for messages, "layer.index".
        described: Whether it has a descriptor.

    Raises:
        ValueError: `ffn_adapter_type` is unknown; the message lists the types there are.
    """

    rd: AE
    records: Records

    def __init__(self, config: Any, adapter_id: str, described: bool) -> None:
        super().__init__()
        if config.ffn_adapter_type not in ADAPTER_TYPES:
            raise ValueError(
                f"ffn_adapter_type {config.ffn_adapter_type!r} is unknown; choose one of {', '.join(ADAPTER_TYPES)}"
            )
        self.functional: Adapter | NestedLoRAAdapter = ADAPTER_TYPES[config.ffn_adapter_type](config, adapter_id)
        self.described = described
        if described:
            self.rd = AE(config)
            self.records = Records(config.buffer_size)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        return self.functional(x)

    def roles(self) -> Iterator[Role]:
        """Every parameter with what it is: the adapter's own roles and "descriptor"."""
        yield from self.functional.roles()
        if self.described:
            yield from (("descriptor", parameter) for parameter in self.rd.parameters())

    def train_functional(self, trains: bool) -> None:
        """Let the adapter itself learn, or freeze it."""
        self.functional.requires_grad_(trains)

    def observe(self, mean: Tensor) -> Tensor:  # (B, D) -> (B,)
        """The descriptor's losses on a training batch, taken into the records."""
        losses = self.rd.loss(mean)
        self.records.add(losses)
        return losses

    @torch.no_grad()
    def z_scores(self, mean: Tensor) -> Tensor:  # (B, D) -> (B,)
        """How far each sample's reconstruction lies from what the descriptor was trained on, in standard deviations."""
        return self.records.z_scores(self.rd.loss(mean))
