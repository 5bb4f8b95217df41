"""All adapters of a slot at once, and all its descriptors: two products each, however many there are.

Shapes: B batch, N tokens, D embedding width, A adapters, R hidden units of all of them together, E `rd_dim`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from backbone.adapter import Adapter, FunctionalAdapter
from backbone.sema_components import AE, Records

Summands = Sequence[Adapter]  # whose sum is one adapter of the slot; none: the zero map


def output(adapter: FunctionalAdapter, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
    """What one adapter alone answers."""
    summands = adapter.summands()
    return adapter(h) if summands is None else summed(summands, h)


def mixed(adapters: Sequence[FunctionalAdapter], weights: Tensor, h: Tensor) -> Tensor:
    """The sum over a of `weights[:, a] * adapters[a](h)`: (B, A), (B, N, D) -> (B, N, D)."""
    summands = [adapter.summands() for adapter in adapters]
    known = [some for some in summands if some is not None]
    if len(known) == len(adapters):
        return mixed_sums(known, weights, h)
    scaled = (weight[:, :, None] * adapter(h) for weight, adapter in zip(weights.split(1, 1), adapters, strict=True))
    return torch.stack(list(scaled)).sum(dim=0)


def summed(summands: Summands, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
    """The sum of `summand(h)` over the summands."""
    if not summands:
        return torch.zeros_like(h)
    return linear(_hidden(summands, h), _up(summands), _output_bias(summands))


def mixed_sums(adapters: Sequence[Summands], weights: Tensor, h: Tensor) -> Tensor:  # (B, A), (B, N, D) -> (B, N, D)
    """The sum over a of `weights[:, a] * summed(adapters[a], h)`.

    A weight is the same for all tokens of a sample, so it scales the adapter's hidden units instead of its output: the
    outputs of the single adapters, (B, A, N, D), are never made.
    """
    # Weights are concatenated anew each time, frozen ones too: with 16 adapters that is a fiftieth of this function's
    # time, and nothing is kept that could go stale.
    units = [summand for summands in adapters for summand in summands]
    zero = h.new_zeros(h.shape[-1])
    biases = torch.stack([_output_bias(summands) if summands else zero for summands in adapters])  # (A, D)
    offset = (weights @ biases)[:, None]  # (B, 1, D)
    if not units:
        return torch.zeros_like(h) + offset
    ranks = [sum(summand.rank for summand in summands) for summands in adapters]
    hidden = _hidden(units, h)  # (B, N, R)
    scaled = hidden * _for_each_unit(weights, ranks)[:, None].to(hidden.dtype)
    return linear(scaled, _up(units)) + offset


def reconstruction_losses(descriptors: Sequence[AE], mean: Tensor) -> Tensor:  # (B, D) -> (A, B)
    """The losses `descriptor.loss(mean)` of the descriptors, which are of one size."""
    encoders, decoders = [rd.encoder for rd in descriptors], [rd.decoder for rd in descriptors]
    weight = joined([encoder.weight for encoder in encoders], dim=0)  # (A * E, D)
    codes = linear(mean, weight, joined([encoder.bias for encoder in encoders], dim=0))  # (B, A * E)
    codes = codes.unflatten(1, (len(encoders), -1)).transpose(0, 1)  # (A, B, E)
    up = torch.stack([decoder.weight for decoder in decoders]).mT  # (A, E, D)
    rebuilt = torch.baddbmm(torch.stack([decoder.bias for decoder in decoders])[:, None], codes, up)  # (A, B, D)
    return (rebuilt - mean).square().mean(dim=-1)


def z_scores(records: Sequence[Records], losses: Tensor) -> Tensor:  # (A, B) -> (A, B)
    """`record.z_scores(loss)` of each descriptor's losses."""
    mean, std = torch.stack([record.moments for record in records]).mT[:, :, None]  # (A, 1) each
    return (losses - mean).abs() / std


def joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The concatenation; one tensor alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _hidden(units: Summands, h: Tensor) -> Tensor:  # (B, N, D) -> (B, N, R)
    weight = joined([unit.down_proj.weight for unit in units], dim=0)
    return torch.relu(linear(h, weight, joined([unit.down_proj.bias for unit in units], dim=0)))


def _up(units: Summands) -> Tensor:  # -> (D, R)
    return joined([unit.up_proj.weight for unit in units], dim=1)


def _output_bias(summands: Summands) -> Tensor:  # -> (D,)
    first, *others = (summand.up_proj.bias for summand in summands)
    return sum(others, first)


def _for_each_unit(weights: Tensor, ranks: Sequence[int]) -> Tensor:  # (B, A) -> (B, R)
    """Every adapter's weight once for each of its hidden units."""
    columns = zip(weights.split(1, dim=1), ranks, strict=True)
    return joined([column.expand(-1, rank) for column, rank in columns], dim=1)
