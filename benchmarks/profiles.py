"""Which operators the time of a phase goes to, in float32 and in bfloat16."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import Timer, Work, best_of
from benchmarks.timing import NEEDS_UNITS, Report, described, origin
from benchmarks.workloads import Setting, Workshop
from tools.generated import markdown_table
from utils.inc_net import SEMAVitNet

PHASES = ("forward", "func step")
VARIANTS = ("exact", "bf16")
REST = "everything else"
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
    and `casts` (seconds of a forward pass in bfloat16, and of casting all frozen weights once).
    """
    shop = Workshop(setting)
    works = {(phase, variant): shop.work((phase, variant)) for phase in PHASES for variant in VARIANTS}
    taken = [{key: parts(work, timer) for key, work in works.items()} for _ in range(rounds)]
    best = {key: _best([one[key] for one in taken]) for key in works}
    casts = {"forward": works["forward", "bf16"], "casts": _casts(shop.learner("bf16").network)}
    return {
        **origin(setting, rounds, timer),
        "parts": {phase: {variant: best[phase, variant] for variant in VARIANTS} for phase in PHASES},
        "casts": best_of(casts, rounds, timer),
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


def _casts(network: SEMAVitNet) -> Work:
    """What autocast does to the weights of the frozen matrix products in each forward pass."""
    learns = {id(parameter) for _, parameter in network.roles()}
    products = [module for module in network.backbone.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    weights: list[Tensor] = [p for m in products for p in m.parameters() if id(p) not in learns]
    return lambda: [weight.to(torch.bfloat16) for weight in weights]


def tables(report: Report) -> str:
    """A paragraph on the casts of weights, and a table for each phase."""
    seconds = report["casts"]
    note = (
        f"{described(report)} Rounds are compared for each kind of operator. Casting all frozen weights to bfloat16, "
        f"which every forward pass does anew, takes {100 * seconds['casts'] / seconds['forward']:.1f} % of one."
        f"{f' {NEEDS_UNITS}' if report['machine']['kind'] == 'cpu' else ''}\n"
    )
    return "\n".join([note, *(_table(phase, found) for phase, found in report["parts"].items())])


def _table(phase: str, found: Mapping[str, Parts]) -> str:
    exact, reduced = (found[variant] for variant in VARIANTS)
    header = [phase, "share in float32", "share in bfloat16", "float32 / bfloat16"]
    kinds = [kind for kind in exact if exact[kind] or reduced[kind]]
    rows = [_row(kind, exact[kind], reduced[kind], exact, reduced) for kind in kinds]
    return markdown_table(header, [*rows, _row("all", sum(exact.values()), sum(reduced.values()), exact, reduced)])


def _row(kind: str, plain: float, reduced: float, in_exact: Parts, in_reduced: Parts) -> list[str]:
    shares = [f"{100 * part / sum(whole.values()):.1f} %" for part, whole in ((plain, in_exact), (reduced, in_reduced))]
    return [kind, *shares, f"{plain / reduced:.2f}" if reduced else ""]
