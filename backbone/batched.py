"""All adapters of a slot in two matrix products, and all its descriptors in two.

Shapes: B batch, N tokens, D embedding width, A adapters, R hidden units of all of them together, E `rd_dim`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from backbone.adapter import Adapter, FunctionalAdapter
from backbone.sema_components import AE

Summands = Sequence[Adapter]  # of one adapter of the slot; none: the zero map


def output(adapter: FunctionalAdapter, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
    """Return the output of one adapter."""
    summands = adapter.summands()
    if summands is None:
        return adapter(h)
    return linear(_hidden(summands, h), _up(summands), _output_bias(summands)) if summands else torch.zeros_like(h)


def mixed(adapters: Sequence[FunctionalAdapter], weights: Tensor, h: Tensor) -> Tensor:
    """Return the sum over a of `weights[:, a] * adapters[a](h)`: (B, A), (B, N, D) -> (B, N, D)."""
    summands = [adapter.summands() for adapter in adapters]
    known = [some for some in summands if some is not None]
    if len(known) == len(adapters):
        return mixed_sums(known, weights, h)
    scaled = (weight[:, :, None] * adapter(h) for weight, adapter in zip(weights.split(1, 1), adapters, strict=True))
    return torch.stack(list(scaled)).sum(dim=0)


def mixed_sums(adapters: Sequence[Summands], weights: Tensor, h: Tensor) -> Tensor:  # (B, A), (B, N, D) -> (B, N, D)
    """Return `mixed` of adapters that are sums of bottleneck adapters.

    A weight is the same for all tokens of a sample, so it scales the adapter's hidden units instead of its output: the
    outputs of the single adapters, (B, A, N, D), are never made.
    """
    # The weights are concatenated anew each time, frozen ones too: with 16 adapters that is a fiftieth of this
    # function's time, and there is no cache that could go stale.
    units = [summand for summands in adapters for summand in summands]
    zero = h.new_zeros(h.shape[-1])
    biases = torch.stack([_output_bias(summands) if summands else zero for summands in adapters])  # (A, D)
    offset = (weights @ biases)[:, None]  # (B, 1, D)
    if not units:
        return torch.zeros_like(h) + offset
    ranks = [sum(summand.rank for summand in summands) for summands in adapters]
    columns = [weight.expand(-1, rank) for weight, rank in zip(weights.split(1, dim=1), ranks, strict=True)]
    hidden = _hidden(units, h)  # (B, N, R)
    scaled = hidden * joined(columns, dim=1)[:, None].to(hidden.dtype)
    return linear(scaled, _up(units)) + offset


def reconstruction_losses(descriptors: Sequence[AE], mean: Tensor) -> Tensor:  # (B, D) -> (A, B)
    """Return `descriptor.loss(mean)` of every descriptor; all are of one size."""
    encoders, decoders = [rd.encoder for rd in descriptors], [rd.decoder for rd in descriptors]
    weight = joined([encoder.weight for encoder in encoders], dim=0)  # (A * E, D)
    codes = linear(mean, weight, joined([encoder.bias for encoder in encoders], dim=0))  # (B, A * E)
    codes = codes.unflatten(1, (len(encoders), -1)).transpose(0, 1)  # (A, B, E)
    up = torch.stack([decoder.weight for decoder in decoders]).mT  # (A, E, D)
    rebuilt = torch.baddbmm(torch.stack([decoder.bias for decoder in decoders])[:, None], codes, up)  # (A, B, D)
    return (rebuilt - mean).square().mean(dim=-1)


def joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Return the concatenation; a single tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _hidden(units: Summands, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, R)
    weight = joined([unit.down_proj.weight for unit in units], dim=0)
    return torch.relu(linear(h, weight, joined([unit.down_proj.bias for unit in units], dim=0)))


def _up(units: Summands) -> Tensor:  # -> (D, R)
    return joined([unit.up_proj.weight for unit in units], dim=1)


def _output_bias(summands: Summands) -> Tensor:  # -> (D,)
    first, *others = (summand.up_proj.bias for summand in summands)
    return sum(others, first)
