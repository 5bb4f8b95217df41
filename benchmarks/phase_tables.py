"""What `benchmarks.phases` measured, as tables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.timing import Report, described, peaks
from benchmarks.workloads import MANY
from tools.generated import markdown_table


@dataclass(frozen=True)
class Target:
    """A ratio and the bound it is to keep.

    Attributes:
        title: What is divided by what.
        of: The ratio in a report.
        sense: Whether `bound` is the least or the most it may be.
        bound: See `sense`.
    """

    title: str
    of: Callable[[Report], float]
    sense: Literal[">=", "<="]
    bound: float

    def kept(self, ratio: float) -> bool:
        """Whether the ratio keeps the bound."""
        return ratio >= self.bound if self.sense == ">=" else ratio <= self.bound


def seconds(report: Report, phase: str, variant: str) -> float:
    """Of one run."""
    return report["costs"][phase][variant]["seconds"]


def times(phase: str, variant: str, other_phase: str, other_variant: str) -> Callable[[Report], float]:
    """The ratio of two times."""
    return lambda report: seconds(report, phase, variant) / seconds(report, other_phase, other_variant)


def share(report: Report, phase: str, variant: str) -> float:
    """Of the matrix-product peak of its number format, the part that a work reaches."""
    cost = report["costs"][phase][variant]
    return cost["multiply_adds"] / cost["seconds"] / report["peaks"][report["formats"].get(variant, "float32")]


TARGETS = (
    Target("rd step: reference / exact", times("rd step", "reference", "rd step", "exact"), ">=", 2.0),
    Target("forward pass: timm / exact", times("forward", "timm", "forward", "exact"), ">=", 0.95),
    Target(
        "share of the matrix peak: func step / timm's forward pass",
        lambda report: share(report, "func step", "exact") / share(report, "forward", "timm"),
        ">=",
        0.6,
    ),
    Target("func step: nested / adaptmlp", times("func step", "nested", "func step", "exact"), "<=", 1.05),
    Target(
        f"func step: {MANY} adapters a layer / 1",
        times(f"func step, {MANY} adapters a layer", "exact", "func step, 1 adapter a layer", "exact"),
        "<=",
        1.3,
    ),
    Target("reference: func step / forward pass", times("func step", "reference", "forward", "reference"), "<=", 2.1),
    Target("reference: rd step / forward pass", times("rd step", "reference", "forward", "reference"), "<=", 2.1),
)


def tables(report: Report) -> str:
    """Where it was measured, the ratios, and every work."""
    return "\n".join([f"{described(report)} {peaks(report)}\n", ratio_table(report), cost_table(report)])


def ratio_table(report: Report) -> str:
    """Every target with the ratio measured."""
    rows = [(target, target.of(report)) for target in TARGETS]
    return markdown_table(
        ["ratio", "measured", "target", "kept"],
        [[t.title, f"{r:.2f}", f"{t.sense} {t.bound:g}", "yes" if t.kept(r) else "no"] for t, r in rows],
    )


def cost_table(report: Report) -> str:
    """Every phase and variant, one line each."""
    header = ["phase", "variant", "ms", "images/s", "reference / it", "G multiply-adds", "share of peak", "peak MiB"]
    pairs = [(phase, variant) for phase, variants in report["costs"].items() for variant in variants]
    return markdown_table(header, [[*pair, *_cells(report, *pair)] for pair in pairs])


def _cells(report: Report, phase: str, variant: str) -> list[str]:
    cost, compared = report["costs"][phase][variant], report["costs"][phase].get("reference")
    return [
        f"{1e3 * cost['seconds']:,.1f}",
        f"{report['setting']['batch'] / cost['seconds']:,.2f}",
        f"{compared['seconds'] / cost['seconds']:.2f}" if compared else "",
        f"{cost['multiply_adds'] / 1e9:,.1f}",
        f"{100 * share(report, phase, variant):.0f} %",
        "" if cost["memory"] is None else f"{cost['memory'] / 2**20:,.0f}",
    ]
