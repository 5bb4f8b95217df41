"""Which operators the time of a phase goes to, in float32 and in bfloat16."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from backbone.frozen import FrozenLinear, packed_product, packs, plain_attention
from backbone.vit_sema import sema_blocks
from benchmarks.measure import Timer, Work, best_of
from benchmarks.timing import NEEDS_UNITS, Report, described, origin
from benchmarks.workloads import Setting, Workshop
from tools.generated import markdown_table

PHASES = ("forward", "func step")
VARIANTS = ("exact", "bf16")
REST = "everything else"
FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# By the beginning of the name that torch gives an operator; the first that fits.
KINDS = {
    "aten::addmm": "matrix products",
    "aten::mm": "matrix products",
    "aten::bmm": "matrix products",
    "aten::baddbmm": "matrix products",
    "mkldnn::_linear_pointwise": "matrix products",
    "aten::_scaled_dot_product": "fused attention",
    "aten::_flash_attention": "fused attention",
    "aten::_efficient_attention": "fused attention",
    "aten::convolution": "patch embedding",
    "aten::gelu": "GELU",
    "aten::native_layer_norm": "LayerNorm",
    "aten::add": "additions",
    "aten::copy_": "copies and casts",
    "aten::_to_copy": "copies and casts",
    "aten::clone": "copies and casts",
}
Parts = dict[str, float]  # seconds by kind of operator


def report(setting: Setting, rounds: int, timer: Timer) -> dict[str, Any]:
    """Everything measured, JSON-ready.

    Keys: `setting`, `machine`, `parts` (phase -> variant -> seconds by kind of operator, each the best of the rounds)
    and `kernels` (part of a frozen block -> way -> seconds).
    """
    shop = Workshop(setting)
    works = {(phase, variant): shop.work((phase, variant)) for phase in PHASES for variant in VARIANTS}
    taken = [{key: parts(work, timer) for key, work in works.items()} for _ in range(rounds)]
    best = {key: _best([one[key] for one in taken]) for key in works}
    seconds = best_of(ways := kernels(setting), rounds, timer)
    return {
        **origin(setting, rounds, timer),
        "parts": {phase: {variant: best[phase, variant] for variant in VARIANTS} for phase in PHASES},
        "kernels": {part: {w: seconds[p, w] for p, w in ways if p == part} for part, _ in ways},
    }


class Stopwatch(TorchDispatchMode):
    """Times each operator that runs while it is active.

    torch's profiler knows wall time alone, of which on a busy machine any part may be another process's.

    Attributes:
        spent: Seconds by kind of operator.
    """

    def __init__(self, timer: Timer) -> None:
        super().__init__()
        self.timer = replace(timer, repeats=1)
        self.spent: Parts = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = []
        seconds = self.timer(lambda: results.append(func(*args, **(kwargs or {}))))
        kind = kind_of(func.name())
        self.spent[kind] = self.spent.get(kind, 0.0) + seconds
        return results[0]


def parts(work: Work, timer: Timer) -> Parts:
    """Seconds of one run by kind of operator."""
    with Stopwatch(timer) as watch:
        work()
    return watch.spent


def kind_of(operator: str) -> str:
    """What the table calls it."""
    return next((kind for start, kind in KINDS.items() if operator.startswith(start)), REST)


def _best(rounds: list[Parts]) -> Parts:
    kinds = dict.fromkeys([*KINDS.values(), REST])
    return {kind: min(one.get(kind, 0.0) for one in rounds) for kind in kinds}


def kernels(setting: Setting) -> dict[tuple[str, str], Work]:
    """A frozen block's products, and its attention with a gradient, in each way that there is, by what and way."""
    block = sema_blocks(Workshop(setting).learner("bf16").network.backbone)[0]
    attn = cast(Attention, block.attn)
    tokens = setting.sketch.patch_embed.num_patches + 1
    works: dict[tuple[str, str], Work] = {}
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        layer = block.get_submodule(name)
        assert isinstance(layer, FrozenLinear)
        x = torch.randn(setting.batch, tokens, layer.in_features, device=setting.device)
        works |= {(name, way): torch.no_grad()(work) for way, work in _products(layer, x).items()}
    shape = (setting.batch, attn.num_heads, tokens, attn.head_dim)
    for dtype in FORMATS:
        q, k, v = (torch.randn(shape, device=setting.device, dtype=dtype).requires_grad_() for _ in range(3))
        both = {"fused": scaled_dot_product_attention, "plain": partial(plain_attention, scale=attn.scale)}
        for way, attention in both.items():
            works["attention and its gradient", f"{way} {FORMATS[dtype]}"] = _forth_and_back(attention, q, k, v)
    return works


def _products(layer: FrozenLinear, x: Tensor) -> dict[str, Work]:
    weight, bias, rows = layer.weight, layer.bias, (0, layer.out_features)
    rounded, half = (weight.bfloat16(), bias.bfloat16()), x.bfloat16()
    works: dict[str, Work] = {
        "float32": lambda: linear(x, weight, bias),
        "bfloat16, rounded anew": lambda: linear(half, weight.bfloat16(), bias.bfloat16()),
        "bfloat16": lambda: linear(half, *rounded),
    }
    if x.device.type == "cpu" and packs():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        works["float32, packed"] = lambda: packed_product(x, packed, bias)
        reduced = layer.packed(rows, backwards=False), layer.rounded_bias(rows)
        works["bfloat16, packed"] = lambda: packed_product(half, *reduced)
    return works


def _forth_and_back(attention: Callable[..., Tensor], *inputs: Tensor) -> Work:
    return lambda: torch.autograd.grad(attention(*inputs).sum(), inputs)


def tables(report: Report) -> str:
    """Where it was measured, a table for each phase, and the ways of the parts."""
    note = (
        f"{described(report)} Rounds are compared for each kind of operator."
        f"{f' {NEEDS_UNITS}' if report['machine']['kind'] == 'cpu' else ''}\n"
    )
    return "\n".join(
        [note, *(_table(phase, found) for phase, found in report["parts"].items()), _ways(report["kernels"])]
    )


def _ways(kernels: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [name, way, f"{next(iter(ways.values())) / seconds:.2f}"]
        for name, ways in kernels.items()
        for way, seconds in ways.items()
    ]
    return markdown_table(["part of a frozen block", "way", "the first way / it"], rows)


def _table(phase: str, found: Mapping[str, Parts]) -> str:
    exact, reduced = (found[variant] for variant in VARIANTS)
    header = [phase, "share in float32", "share in bfloat16", "float32 / bfloat16"]
    kinds = [kind for kind in exact if exact[kind] or reduced[kind]]
    rows = [_row(kind, exact[kind], reduced[kind], exact, reduced) for kind in kinds]
    return markdown_table(header, [*rows, _row("all", sum(exact.values()), sum(reduced.values()), exact, reduced)])


def _row(kind: str, plain: float, reduced: float, in_exact: Parts, in_reduced: Parts) -> list[str]:
    shares = [f"{100 * part / sum(whole.values()):.1f} %" for part, whole in ((plain, in_exact), (reduced, in_reduced))]
    return [kind, *shares, f"{plain / reduced:.2f}" if reduced else ""]
