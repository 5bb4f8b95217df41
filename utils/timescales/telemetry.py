"""Telemetry of the branches of adapters: norms, updates, shares of the output, cosines, and effective ranks.

Call `arm()` before a training step's forward pass and `measure()` after its optimizer step. Neither changes an output,
a gradient, a parameter or the state of a random generator.

Shapes: B batch, I images kept of it, N tokens, D embedding width, R rank of a branch, K = min(D, R).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

UP, DOWN = "up_proj.weight", "down_proj.weight"


@dataclass
class _Watched:
    """An adapter, its values at the last measurement, and the input of the step that is measured."""

    layer: int
    adapter: int
    module: nn.Module
    branches: tuple[str, ...]
    entrance: nn.Module
    last: dict[str, dict[str, Tensor]]
    h: Tensor | None = None


class Telemetry:
    """Measures adapters with branches at chosen steps of one func phase.

    Everything that grows with D or the batch is computed on the device, in the parameters' precision. One transfer then
    brings all scalars and the K x K cores of the maps to the host, which computes the cores' singular values (on the
    device each decomposition would wait for the host).

    Args:
        adapters: Layer, index in the layer, the adapter (a sum of its `branches`, without randomness), and the module
            whose input is the adapter's, as a slot may run its adapters without calling them.
        images: I, number of images that are used of a batch, with all their tokens.
    """

    def __init__(self, adapters: Iterable[tuple[int, int, Any, nn.Module]], images: int = 8) -> None:
        self.images = images
        self._watched = [
            _Watched(layer, index, module, module.branches, entrance, _values(module, module.branches))
            for layer, index, module, entrance in adapters
        ]
        self._hooks: dict[nn.Module, RemovableHandle] = {}

    def __bool__(self) -> bool:
        return bool(self._watched)

    def arm(self) -> None:
        """Copy every adapter's input in the next forward pass, by hooks that remove themselves."""
        self.disarm()
        for entrance in dict.fromkeys(watched.entrance for watched in self._watched):
            self._hooks[entrance] = entrance.register_forward_pre_hook(self._keep)

    def disarm(self) -> None:
        """Remove the hooks and the inputs, for a step that is not measured after all."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        for watched in self._watched:
            watched.h = None

    def measure(self) -> list[dict[str, Any]]:
        """Return the entries of a telemetry event's `layers`, one for each adapter, and disarm.

        With W_b the tensors of branch b now, `last` at the previous measurement (or when this object was made), h the
        kept input, ||.|| the Euclidean norm over all elements, <.,.> the sum of the elementwise products:

        - `norms`: ||w|| of every tensor w, whatever `requires_grad` says;
        - `update_norms`: ||d_b||, d_b = W_b - last W_b over all tensors of b; None if b has grown since;
        - `share`: ||b(h)|| / sum over branches c of ||c(h)||, with the values after the step;
        - `output_cosine`: for each pair of branches, under "b+c": <b(h), c(h)> / (||b(h)|| ||c(h)||);
        - `update_cosine`: likewise <d_b, d_c> / (||d_b|| ||d_c||); None if their tensors differ in shape;
        - `effective_rank`: of `up_proj.weight @ down_proj.weight`, the map without the ReLU; None for a branch without
          these two.

        None also stands for 0/0 and for anything that is not finite.

        Raises:
            RuntimeError: An adapter saw no forward pass since `arm`, or `arm` was not called.
        """
        missed = [f"layer {w.layer} adapter {w.adapter}" for w in self._watched if w.h is None]
        if missed:
            self.disarm()
            raise RuntimeError(f"telemetry: no forward pass since arm() at {', '.join(missed)}")
        with torch.no_grad():
            found = [_on_device(w, w.h) for w in self._watched if w.h is not None]
        self.disarm()
        groups = iter(to_host([group for entry in found for group in entry.values()]))
        entries = [{key: {n: _number(v) for n, v in next(groups).items()} for key in entry} for entry in found]
        return [{"layer": w.layer, "adapter": w.adapter, **e} for w, e in zip(self._watched, entries, strict=True)]

    def state(self) -> list[dict[str, dict[str, Tensor]]]:
        """Return the values at the last measurement, for `restore`."""
        return [watched.last for watched in self._watched]

    def restore(self, state: Sequence[dict[str, dict[str, Tensor]]]) -> None:
        for watched, last in zip(self._watched, state, strict=True):
            watched.last = {
                branch: {kind: value.to(watched.last[branch][kind]) for kind, value in values.items()}
                for branch, values in last.items()
            }

    def _keep(self, entrance: nn.Module, inputs: tuple[Any, ...]) -> None:
        # A copy: a view would hold the whole batch in memory, and change if the step changed it in place.
        h = inputs[0].detach()[: self.images].clone()
        for watched in self._watched:
            if watched.entrance is entrance:
                watched.h = h
        self._hooks.pop(entrance).remove()


def _values(module: nn.Module, branches: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Copy every tensor, by branch and kind."""
    return {
        branch: {kind: value.detach().clone() for kind, value in module.get_submodule(branch).named_parameters()}
        for branch in branches
    }


def _on_device(watched: _Watched, h: Tensor) -> dict[str, dict[str, Tensor]]:  # (I, N, D)
    """Return an adapter's entry on the device, a core for each effective rank; set `last` to the current values."""
    now, last = _values(watched.module, watched.branches), watched.last
    watched.last = now
    h = h.to(next(iter(now[watched.branches[0]].values())))  # it may come from autocast
    outputs = {branch: watched.module.get_submodule(branch)(h).flatten() for branch in watched.branches}
    changes = {branch: _change(now[branch], last[branch]) for branch in watched.branches}
    output_norms, update_norms = _norms(outputs), _norms(changes)
    total = torch.stack(list(output_norms.values())).sum()
    return {
        "norms": {f"{b}.{kind}": torch.linalg.vector_norm(value) for b in now for kind, value in now[b].items()},
        "update_norms": update_norms,
        "share": {branch: norm / total for branch, norm in output_norms.items()},
        "output_cosine": _cosines(outputs, output_norms),
        "update_cosine": _cosines(changes, update_norms),
        "effective_rank": {branch: _core(tensors) for branch, tensors in now.items()},
    }


def _change(now: dict[str, Tensor], last: dict[str, Tensor]) -> Tensor:  # (numbers in a branch,)
    """Return all differences in one vector; a single NaN if the branch has grown."""
    if any(now[kind].shape != last[kind].shape for kind in now):
        return next(iter(now.values())).new_full((1,), math.nan)
    return torch.cat([(now[kind] - last[kind]).flatten() for kind in now])


def _norms(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {branch: torch.linalg.vector_norm(vector) for branch, vector in vectors.items()}


def _cosines(vectors: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the cosine of every pair; NaN for 0/0 and for vectors of unequal lengths."""
    found = {}
    for a, b in combinations(vectors, 2):
        # Of the unit vectors: the product of two small norms would underflow.
        x, y = vectors[a] / norms[a], vectors[b] / norms[b]
        cosine = torch.dot(x, y).clamp(-1, 1) if len(x) == len(y) else norms[a].new_full((), math.nan)
        found[f"{a}+{b}"] = cosine
    return found


def _core(tensors: Mapping[str, Tensor]) -> Tensor:  # (K, K)
    if {UP, DOWN} <= tensors.keys():
        return core_of_map(tensors[UP], tensors[DOWN])
    return next(iter(tensors.values())).new_full((1, 1), math.nan)


def core_of_map(up: Tensor, down: Tensor) -> Tensor:  # (D, R), (R, D) -> (K, K)
    """Return a small matrix with the non-zero singular values of `up @ down`, up to a factor.

    With the QR decompositions up = Q_u R_u and down^T = Q_d R_d, up @ down = Q_u (R_u R_d^T) Q_d^T; the Q have
    orthonormal columns, so the core is R_u R_d^T. Up and down are first scaled to a largest element of 1, so that the
    core cannot underflow; the effective rank does not depend on scale.
    """
    tiny = torch.finfo(up.dtype).tiny
    scaled = (factor / factor.abs().max().clamp_min(tiny) for factor in (up, down.mT))
    upper, lower = (torch.linalg.qr(factor, mode="r").R for factor in scaled)
    return upper @ lower.mT


def effective_rank(core: Tensor) -> float:  # (K, K)
    """Return exp(-sum_i p_i ln p_i) with p_i = s_i / sum_j s_j and s the singular values.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1. 0 for the
    zero map, which they leave undefined; NaN if an element is not finite.
    """
    if not bool(core.isfinite().all()):
        return math.nan
    s = torch.linalg.svdvals(core.double())
    return float(torch.special.entr(s / s.sum()).sum().exp()) if bool(s.any()) else 0.0


def to_host(groups: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return the same dictionaries with their tensors on the CPU, by one transfer; all are of one device."""
    tensors = [value for group in groups for value in group.values()]
    if not tensors:
        return [{} for _ in groups]
    flat = torch.cat([value.flatten() for value in tensors]).cpu().split([value.numel() for value in tensors])
    parts = iter(part.view(value.shape) for part, value in zip(flat, tensors, strict=True))
    return [{name: next(parts) for name in group} for group in groups]


def _number(value: Tensor) -> float | None:
    """Return a scalar, or the effective rank of a core; None if it is not finite."""
    number = effective_rank(value) if value.dim() == 2 else float(value)
    return number if math.isfinite(number) else None
