"""What `benchmarks.run` measured, as tables: whole runs in units of the plain one, and the counts behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.composition import Counts, Run, measured_beside, our_counts, plain_counts, room_for, total
from benchmarks.timing import Report, described, peaks
from tools.generated import markdown_table


@dataclass(frozen=True)
class Mode:
    """A way to make a whole run.

    Attributes:
        title: The keys that differ from the default.
        variant: Whose times of the phases.
        targets: By kind of device, the least ratio to the plain run; empty: there is none.
        views: The key `views`.
    """

    title: str
    variant: str
    targets: Mapping[str, float]
    views: int = 0


PLAIN = Mode("reference", "reference", {})
# Only the network's work is timed here; what makes the images ready, such as augmentation on the device, comes on top.
MODES = (
    Mode("exact", "exact", {"cpu": 2.6, "cuda": 3}),
    Mode("bf16", "bf16", {"cpu": 4.8, "cuda": 8}),
    Mode("fp32, views 5", "exact", {"cpu": 6, "cuda": 10}, views=5),
    Mode("bf16, views 5", "bf16", {"cpu": 11, "cuda": 30}, views=5),
    Mode("bf16, views 2", "bf16", {"cpu": 15, "cuda": 40}, views=2),
    Mode("bf16, views 1", "bf16", {}, views=1),
)
FORMATS = {"bf16": "bfloat16"}  # of matrix products; float32 in all other variants


def counts(report: Report, mode: Mode, run: Run) -> Counts:
    """Images by phase."""
    if mode is PLAIN:
        return plain_counts(run)
    cache = report["cache"]
    kept = room_for(cache["gib"], cache["image_bytes"], cache["batch"])
    return our_counts(run, kept, cache["batch"], mode.views)


def seconds(report: Report, mode: Mode, run: Run) -> float:
    """Of a whole run."""
    return total(counts(report, mode, run), report["seconds"][mode.variant]) / report["setting"]["batch"]


def ratio(report: Report, mode: Mode, run: Run) -> float:
    """How many times as long the plain run takes."""
    return seconds(report, PLAIN, run) / seconds(report, mode, run)


def ratio_beside(report: Report, mode: Mode, run: Run) -> float:
    """The ratio to a run that also measures what it does by default."""
    beside = total(measured_beside(run), report["seconds"][mode.variant]) / report["setting"]["batch"]
    return seconds(report, PLAIN, run) / (seconds(report, mode, run) + beside)


def bound(report: Report, mode: Mode, run: Run) -> float:
    """The ratio there would be if every multiply-add of the mode were done at the peak of its number format."""
    products = total(counts(report, mode, run), report["multiply_adds"]) / report["setting"]["batch"]
    least = products / report["peaks"][FORMATS.get(mode.variant, "float32")]
    return seconds(report, PLAIN, run) / least


def tables(report: Report) -> str:
    """Where it was measured, the ratios, and the counts."""
    run = Run()
    parts = (ratio_table(report, run), count_table(report, run), pass_table(report))
    return "\n".join([f"{described(report)} {peaks(report)}\n", shape_of(report, run), *parts])


def shape_of(report: Report, run: Run) -> str:
    """A paragraph on the run that is put together."""
    reuse = ", ".join(str(task) for task in run.tasks if not run.adds(task))
    cache = report["cache"]
    kept = room_for(cache["gib"], cache["image_bytes"], cache["batch"])
    return (
        f"A run of {len(run.tasks)} tasks with {run.train_images} training and {run.test_images} test images each, "
        f"{run.func_epochs} func and {run.rd_epochs} rd epochs; tasks {reuse} add no adapter, each of the others adds "
        f"one to the middle layer. The cache has room for {kept} test images. Other orders of the tasks change what "
        f"the reference scores: the ratios lie between those with all expansions first and with all last.\n"
    )


def ratio_table(report: Report, run: Run) -> str:
    """Every mode's ratio, its target, its range over orders, with what a run measures, and the bound by the peak."""
    header = ["run", "reference / it", "target", "kept", "other orders"]
    header += ["with readouts and adapters off", "bound by the peak", "share of the bound"]
    return markdown_table(header, [_ratio_row(report, mode, run) for mode in MODES])


def _ratio_row(report: Report, mode: Mode, run: Run) -> list[str]:
    found, target = ratio(report, mode, run), mode.targets.get(report["machine"]["kind"])
    ends = sorted(ratio(report, mode, run.in_order(first)) for first in (True, False))
    most = bound(report, mode, run)
    kept = "" if target is None else "yes" if found >= target else "no"
    orders = f"{ends[0]:.2f} to {ends[1]:.2f}"
    return [
        mode.title,
        f"{found:.2f}",
        "" if target is None else f">= {target:g}",
        kept,
        orders,
        f"{ratio_beside(report, mode, run):.2f}",
        f"{most:.2f}",
        f"{100 * found / most:.0f} %",
    ]


def count_table(report: Report, run: Run) -> str:
    """Images through each phase, and the share of a run's time that they take."""
    modes = (PLAIN, *MODES)
    counted = {mode.title: counts(report, mode, run) for mode in modes}
    phases = [phase for phase in report["multiply_adds"] if any(counted[mode.title][phase] for mode in modes)]
    rows = [
        [phase, *(_count_cell(report, mode, run, counted[mode.title], phase) for mode in modes)] for phase in phases
    ]
    return markdown_table(["images (share of the run's time)", *(mode.title for mode in modes)], rows)


def _count_cell(report: Report, mode: Mode, run: Run, counted: Counts, phase: str) -> str:
    if not counted[phase]:
        return ""
    part: Any = counted[phase] * report["seconds"][mode.variant][phase] / report["setting"]["batch"]
    return f"{counted[phase]:,} ({100 * part / seconds(report, mode, run):.1f} %)"


def pass_table(report: Report) -> str:
    """A forward pass in every way, against timm's own in float32."""
    passes = report["passes"]
    rows = [[variant, f"{passes['timm'] / taken:.2f}"] for variant, taken in passes.items()]
    return markdown_table(["forward pass", "timm's in float32 / it"], rows)
