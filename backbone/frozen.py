"""Products and attention of the frozen backbone: the same numbers as timm's modules, with less work.

In bfloat16 (the key `precision`) the weights of a frozen layer are rounded once instead of in every pass. On a CPU with
units for bfloat16 they are kept in the order in which oneDNN reads them, and where a gradient is needed attention is
computed by plain products, as torch's fused kernel there is slow backwards. These choices depend on the machine alone,
so that equal runs have equal numbers.

Shapes: B batch, N tokens, Q queries, H heads, E width of a head, D embedding width.
"""

from functools import cache
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

Rows = tuple[int, int]  # the first of some outputs of a layer, and the one after the last


class FrozenLinear(nn.Linear):
    """A Linear whose parameters never learn; its parameters are those of `layer`, with equal names.

    Values that are derived from the parameters follow them when they are loaded or moved.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._derived: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": {}}  # a copy has parameters of its own

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return self.rows(x, (0, self.out_features))

    def rows(self, x: Tensor, rows: Rows) -> Tensor:  # (..., in) -> (..., rows)
        """Return some of the outputs."""
        if torch.compiler.is_compiling() or not torch.is_autocast_enabled(x.device.type):
            return linear(x, *self._values(rows))
        x = x.to(torch.bfloat16)
        if x.device.type == "cpu" and packs():
            return _Packed.apply(x, self, rows)  # type: ignore[no-untyped-call]
        return linear(x, *self._once(("rounded", rows), lambda: self._rounded(rows)))

    def packed(self, rows: Rows, backwards: bool) -> Tensor:
        """Return the rounded weight in oneDNN's order, for the product forwards or that of the gradient."""

        def pack() -> Tensor:
            weight = self._rounded(rows)[0]
            return torch.ops.mkldnn._reorder_linear_weight(weight.mT.contiguous() if backwards else weight)

        return self._once(("packed", rows, backwards), pack)

    def rounded_bias(self, rows: Rows) -> Tensor | None:
        return self._once(("bias", rows), lambda: self._rounded(rows)[1])

    def _values(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        first, end = rows
        if end - first == self.out_features:
            return self.weight, self.bias
        return self.weight[first:end], None if self.bias is None else self.bias[first:end]

    def _rounded(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._values(rows)
        return weight.bfloat16(), None if bias is None else bias.bfloat16()

    def _once(self, name: Any, make: Any) -> Any:
        """Return a value that is made again when the weight is another, or has changed in place."""
        now = (self.weight.data_ptr(), self.weight._version, self.weight.device)
        made = self._derived.get(name)
        if made is None or made[0] != now:
            with torch.no_grad():
                made = self._derived[name] = now, make()
        return made[1]


class _Packed(torch.autograd.Function):
    """The product of x with packed rows of a `FrozenLinear`, in bfloat16; x alone gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear, rows: Rows) -> Tensor:
        ctx.layer, ctx.rows = layer, rows
        return packed_product(x, layer.packed(rows, backwards=False), layer.rounded_bias(rows))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return packed_product(gradient.contiguous(), ctx.layer.packed(ctx.rows, backwards=True), None), None, None


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return oneDNN's product of x (..., in) with a weight in its own order: (..., out)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def packs() -> bool:
    """Return whether this machine and this torch have packed products in bfloat16."""
    ops, names = torch.ops.mkldnn, ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    known = torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in names)
    return known and bool(ops._is_mkldnn_bf16_supported())


def freeze_products(module: nn.Module) -> None:
    """Replace every Linear within a frozen module by a `FrozenLinear` of the same parameters."""
    for name, child in list(module.named_modules()):
        if type(child) is nn.Linear:
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, FrozenLinear(child))


def attended(attn: Attention, x: Tensor, queries: int) -> Tensor:  # (B, N, D) -> (B, Q, D)
    """Return what timm's Attention projects, for the first `queries` tokens: the values they attend to, by head."""
    qkv = attn.qkv
    assert isinstance(qkv, FrozenLinear)
    width = attn.num_heads * attn.head_dim
    if queries == x.shape[1]:
        q, k, v = _heads(attn, qkv(x), 3)
    else:
        (q,) = _heads(attn, qkv.rows(x[:, :queries], (0, width)), 1)
        k, v = _heads(attn, qkv.rows(x, (width, 3 * width)), 2)
    joined = _attention(attn.q_norm(q), attn.k_norm(k), v, attn.scale)
    return joined.transpose(1, 2).reshape(x.shape[0], queries, width)


def _heads(attn: Attention, x: Tensor, parts: int) -> tuple[Tensor, ...]:  # (B, N, parts * D) -> (B, H, N, E) each
    return x.unflatten(2, (parts, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # (B, H, Q, E), (B, H, N, E) twice
    if q.device.type == "cpu" and v.dtype == torch.bfloat16 and v.requires_grad:
        return plain_attention(q, k, v, scale)
    return scaled_dot_product_attention(q, k, v)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return softmax(q k^T scale) v by plain products: (B, H, Q, E), (B, H, N, E) twice -> (B, H, Q, E)."""
    return (q * scale @ k.mT).softmax(dim=-1).to(v.dtype) @ v


def understands(attn: nn.Module) -> bool:
    """Return whether `attended` computes what this module does."""
    extras = (getattr(attn, "gate", None), getattr(attn, "norm", None))
    return type(attn) is Attention and all(extra is None or isinstance(extra, nn.Identity) for extra in extras)
