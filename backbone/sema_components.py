"""The parts of a SEMA slot: an adapter with its representation descriptor, and the descriptor's records.

Shapes: B batch, N tokens (class token included), D embedding width (`config.d_model`).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from backbone.adapter import Adapter as Adapter
from backbone.adapter import FunctionalAdapter, Role, drawn_linear
from backbone.nested_lora import NestedLoRAAdapter as NestedLoRAAdapter
from backbone.registry import ADAPTERS
from backbone.streams import substream


class AE(nn.Module):
    """Representation descriptor: a linear auto-encoder of token means, `decoder(encoder(m))`.

    Args:
        config: Gives `d_model` and `rd_dim`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.encoder = drawn_linear(config.d_model, config.rd_dim)
        self.decoder = drawn_linear(config.rd_dim, config.d_model)

    def forward(self, mean: Tensor) -> Tensor:  # (B, D) -> (B, D)
        return self.decoder(self.encoder(mean))

    def loss(self, mean: Tensor) -> Tensor:  # (B, D) -> (B,)
        """Return the reconstruction error of each sample: the mean over D of the squared difference."""
        return (self(mean) - mean).square().mean(dim=-1)


LEAST_RECORDS = 3  # for a z-score


class Records(nn.Module):
    """The last `size` reconstruction losses of a descriptor in training.

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
        """Add the losses of one batch in order."""
        room = self.size - len(self.losses)
        taken = losses.detach()[:room] if room > 0 else losses.detach()
        self.losses = torch.cat([self.losses.to(taken), taken])[-self.size :]

    def clear(self) -> None:
        self.losses = self.losses[:0]

    @property
    def moments(self) -> Tensor:  # (2,)
        """Mean and unbiased standard deviation of the records; 0 and infinity while there are too few.

        Cached until `losses` is another tensor or has changed in place.
        """
        if self._measured is None or self._measured[0] is not self.losses or self._measured[1] != self.losses._version:
            self._measured = (self.losses, self.losses._version, self._moments())
        return self._measured[2]

    @torch.no_grad()
    def _moments(self) -> Tensor:  # (2,)
        if len(self.losses) < LEAST_RECORDS:
            return self.losses.new_tensor([0.0, math.inf])
        return torch.stack([self.losses.mean(), self.losses.std()])

    def z_scores(self, losses: Tensor) -> Tensor:  # (B,) -> (B,)
        """Return |loss - mean| / unbiased std of the records; 0 while there are fewer than `LEAST_RECORDS`."""
        mean, std = self.moments
        return (losses - mean).abs() / std


class AdapterModule(nn.Module):
    """One adapter (`functional`) and, in an expandable layer, its descriptor (`rd`) with its records.

    Args:
        config: Gives `ffn_adapter_type`, `buffer_size` and what the parts read.
        adapter_id: Name for messages, "layer.index".
        described: Whether it has a descriptor.
    """

    rd: AE
    records: Records
    deferred: Tensor | None

    def __init__(self, config: Any, adapter_id: str, described: bool) -> None:
        super().__init__()
        with substream("adapter", adapter_id):
            self.functional: FunctionalAdapter = ADAPTERS[config.ffn_adapter_type](config, adapter_id)
        self.described = described
        self.defers, self.deferred = False, None  # see `observe`
        if described:
            with substream("descriptor", adapter_id):
                self.rd = AE(config)
            self.records = Records(config.buffer_size)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        return self.functional(x)

    def roles(self) -> Iterator[Role]:
        """Yield every parameter with its role: the adapter's own roles and "descriptor"."""
        yield from self.functional.roles()
        if self.described:
            yield from (("descriptor", parameter) for parameter in self.rd.parameters())

    def observe(self, mean: Tensor) -> Tensor:  # (B, D) -> (B,)
        """Return the descriptor's losses on a training batch, and record them, or keep them for whoever defers that."""
        losses = self.rd.loss(mean)
        if self.defers:
            self.deferred = losses.detach()
        else:
            self.records.add(losses)
        return losses
