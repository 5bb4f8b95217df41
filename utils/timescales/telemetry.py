"""Telemetry of nested adapters: how large, how fast, how much of the output, how alike, and of which rank.

Sits beside a training step: `arm()` before its forward pass, `measure()` after its optimizer step. Neither changes an
output, a gradient, a parameter or the state of a random generator.

Shapes: B batch, I images kept of it, N tokens, D embedding width, R rank of a branch, K = min(D, R).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

BRANCHES = ("slow", "fast")


@dataclass
class _Watched:
    """A nested adapter, its values at the last measurement and, while a step is watched, that step's input."""

    layer: int
    adapter: int
    nested: nn.Module
    entrance: nn.Module
    last: dict[str, dict[str, Tensor]]
    h: Tensor | None = None


class Telemetry:
    """Measures nested adapters at chosen training steps; made when a func phase begins, for that phase.

    Everything that grows with D or the batch is computed on the device, in the parameters' precision; one transfer
    then brings all scalars and the K x K cores of the maps to the host, which takes the cores' singular values (on
    the device every one of these decompositions would wait for the host by itself).

    Of the watched batch only the first `images` images are used (a training batch is shuffled), with all their tokens.

    Args:
        adapters: Layer, index of the adapter in it, the nested module, and the module whose forward takes its input
            first (it may run the adapters of a layer all at once, without calling them). The nested module: `slow` and
            `fast`, each with Linears `down_proj` and `up_proj` and without randomness in its forward, whose sum it is.
        images: I, how many images of the watched batch are used.
    """

    def __init__(self, adapters: Iterable[tuple[int, int, nn.Module, nn.Module]], images: int = 8) -> None:
        self.images = images
        self._watched = [
            _Watched(layer, index, nested, entrance, _values(nested)) for layer, index, nested, entrance in adapters
        ]
        self._hooks: dict[nn.Module, RemovableHandle] = {}

    def arm(self) -> None:
        """Keep a copy of every adapter's input in the next forward pass; each hook goes when it has served once."""
        self.disarm()
        for entrance in dict.fromkeys(watched.entrance for watched in self._watched):
            self._hooks[entrance] = entrance.register_forward_pre_hook(self._keep)

    def disarm(self) -> None:
        """Remove what hooks there are and forget the inputs: for a step that was armed and is not measured."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        for watched in self._watched:
            watched.h = None

    def measure(self) -> list[dict[str, Any]]:
        """The entries of a telemetry event's `layers`, one for each adapter in the order given, and disarm.

        With W_b the tensors of branch b now, `last` at the previous measurement (or when this object was made), h the
        kept input, ||.|| the Euclidean norm over all elements, <.,.> the sum of the elementwise products:

        - `norms`: ||w|| of every tensor w, whatever `requires_grad` says;
        - `update_norms`: ||d_b||, d_b = W_b - last W_b over all tensors of b. Between two measurements: not a path
          length. None if b has grown since;
        - `share`: ||b(h)|| / (||slow(h)|| + ||fast(h)||), with the values after the step;
        - `output_cosine`: <slow(h), fast(h)> / (||slow(h)|| ||fast(h)||);
        - `update_cosine`: <d_slow, d_fast> / (||d_slow|| ||d_fast||). None if slow has grown, now or earlier, so that
          the branches' tensors differ in shape;
        - `effective_rank`: see `effective_rank`, of `up_proj.weight @ down_proj.weight`: the map without the ReLU.

        None also stands for every 0/0 (a share when both outputs are zero, a cosine when one is) and for anything
        that is not finite.

        Raises:
            RuntimeError: An adapter saw no forward pass since `arm`, or `arm` was not called.
        """
        missed = [f"layer {w.layer} adapter {w.adapter}" for w in self._watched if w.h is None]
        if missed:
            self.disarm()
            raise RuntimeError(f"telemetry: no forward pass since arm() at {', '.join(missed)}")
        with torch.no_grad():
            found = to_host([_on_device(w, w.h) for w in self._watched if w.h is not None])
        self.disarm()
        return [_entry(watched, values) for watched, values in zip(self._watched, found, strict=True)]

    def state(self) -> list[dict[str, dict[str, Tensor]]]:
        """The values at the last measurement, from which the next one's changes count; for `restore`."""
        return [watched.last for watched in self._watched]

    def restore(self, state: Sequence[dict[str, dict[str, Tensor]]]) -> None:
        """Go on from another's last measurement of the same adapters."""
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


def _values(nested: nn.Module) -> dict[str, dict[str, Tensor]]:
    """A copy of every tensor by branch and kind."""
    return {
        branch: {kind: value.detach().clone() for kind, value in getattr(nested, branch).named_parameters()}
        for branch in BRANCHES
    }


def _on_device(watched: _Watched, h: Tensor) -> dict[str, Tensor]:  # (I, N, D)
    """Every scalar of one adapter and the cores of its maps; `last` becomes the values of now."""
    now, last = _values(watched.nested), watched.last
    watched.last = now
    h = h.to(now["fast"]["down_proj.weight"])  # it may come from autocast
    outputs = [getattr(watched.nested, branch)(h).flatten() for branch in BRANCHES]
    changes = [_change(now[branch], last[branch]) for branch in BRANCHES]
    norms = {f"{b}.{kind}": torch.linalg.vector_norm(value) for b in BRANCHES for kind, value in now[b].items()}
    cores = {f"core {b}": core_of_map(now[b]["up_proj.weight"], now[b]["down_proj.weight"]) for b in BRANCHES}
    return norms | _compared("update", *changes) | _compared("output", *outputs) | cores


def _change(now: dict[str, Tensor], last: dict[str, Tensor]) -> Tensor:  # (numbers in a branch,)
    """All differences in one vector; a single NaN if the branch has grown."""
    if any(now[kind].shape != last[kind].shape for kind in now):
        return next(iter(now.values())).new_full((1,), math.nan)
    return torch.cat([(now[kind] - last[kind]).flatten() for kind in now])


def _compared(what: str, slow: Tensor, fast: Tensor) -> dict[str, Tensor]:
    """Norms, shares and cosine of two vectors; 0/0 comes out as NaN, and so does the cosine of unequal lengths."""
    norms = torch.stack([torch.linalg.vector_norm(slow), torch.linalg.vector_norm(fast)])
    share = norms / norms.sum()
    # Of the unit vectors: the product of two small norms would underflow.
    alike = len(slow) == len(fast)
    cosine = torch.dot(slow / norms[0], fast / norms[1]).clamp(-1, 1) if alike else norms.new_full((), math.nan)
    found = {"norm slow": norms[0], "norm fast": norms[1], "share slow": share[0], "share fast": share[1]}
    return {f"{what} {name}": value for name, value in {**found, "cosine": cosine}.items()}


def core_of_map(up: Tensor, down: Tensor) -> Tensor:  # (D, R), (R, D) -> (K, K)
    """A small matrix whose singular values are, up to a factor, the non-zero ones of `up @ down`, never formed.

    With the QR decompositions up = Q_u R_u and down^T = Q_d R_d, up @ down = Q_u (R_u R_d^T) Q_d^T; the Q have
    orthonormal columns, so the core is R_u R_d^T. Up and down are first scaled to a largest element of 1, so that the
    core cannot underflow; the effective rank does not depend on scale.
    """
    tiny = torch.finfo(up.dtype).tiny
    scaled = (factor / factor.abs().max().clamp_min(tiny) for factor in (up, down.mT))
    upper, lower = (torch.linalg.qr(factor, mode="r").R for factor in scaled)
    return upper @ lower.mT


def effective_rank(core: Tensor) -> float:  # (K, K)
    """exp(-sum_i p_i ln p_i) with p_i = s_i / sum_j s_j and s the singular values; 0 for the zero map, else >= 1.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1; they
    leave the zero map undefined. NaN if an element is not finite.
    """
    if not bool(core.isfinite().all()):
        return math.nan
    s = torch.linalg.svdvals(core.double())
    return float(torch.special.entr(s / s.sum()).sum().exp()) if bool(s.any()) else 0.0


def to_host(groups: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same dictionaries with their tensors on the CPU, by one transfer; all are of one device."""
    tensors = [value for group in groups for value in group.values()]
    if not tensors:
        return [{} for _ in groups]
    flat = torch.cat([value.flatten() for value in tensors]).cpu().split([value.numel() for value in tensors])
    parts = iter(part.view(value.shape) for part, value in zip(flat, tensors, strict=True))
    return [{name: next(parts) for name in group} for group in groups]


def _entry(watched: _Watched, values: dict[str, Tensor]) -> dict[str, Any]:
    """An adapter's entry in the event."""

    def each(title: str) -> dict[str, float | None]:
        return {branch: _finite(float(values[f"{title} {branch}"])) for branch in BRANCHES}

    kinds = [f"{branch}.{kind}" for branch in BRANCHES for kind in watched.last[branch]]
    return {
        "layer": watched.layer,
        "adapter": watched.adapter,
        "norms": {kind: _finite(float(values[kind])) for kind in kinds},
        "update_norms": each("update norm"),
        "share": each("output share"),
        "output_cosine": _finite(float(values["output cosine"])),
        "update_cosine": _finite(float(values["update cosine"])),
        "effective_rank": {branch: _finite(effective_rank(values[f"core {branch}"])) for branch in BRANCHES},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
