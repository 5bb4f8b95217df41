"""The sections of a report, in the order in which they are read. One without data says what it would need."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from tools.compare.comparison import Comparison, Group, value_text
from tools.compare.tables import Table
from tools.compare.tables import page as tables_and_lists
from tools.finished.reader import Run
from tools.report import figures
from tools.report.data import Consolidation, cadence, consolidations, scans, shared_branches
from tools.report.drawing import Drawing
from tools.report.page import Drawings, Folded, Part, Section, Sentences

NESTED = "runs of adapter type nested_lora write them"
Named = tuple[str, Run]


def named_runs(comparison: Comparison) -> list[Named]:
    """Every run with what it is called: its configuration and seed."""
    return [
        (f"{group.name}, {'seed unknown' if run.seed is None else f'seed {run.seed}'}", run)
        for group in comparison.groups
        for run in group.runs
    ]


def summary(comparison: Comparison) -> Section:
    """What `tools.compare` says, but for the configurations and the legend."""
    whole = tables_and_lists(comparison)
    alarms = whole.lists.get("Warnings", [])
    parts = [Sentences("Warnings", alarms, alarming=True)] if alarms else []
    tables = [table for table in whole.tables if table.header[0] != "key"]
    return Section("summary", "Summary", "Measures over seeds; the legend is at the end.", [*parts, *tables])


def accuracy(comparison: Comparison) -> Section:
    """The curves of all configurations."""
    drawings = [figures.accuracy_curves(comparison.groups)]
    intro = "Accuracy on the test images of all classes seen, after every task: mean over seeds, and a band of one "
    intro += "standard deviation to either side where there are several."
    return Section("accuracy", "Accuracy curves", intro, [Drawings("", drawings)])


def matrices(comparison: Comparison) -> Section:
    """R of every configuration, and of its branches."""
    parts = [
        *_drawings("Whole networks", [d for d in map(figures.accuracy_matrix, comparison.groups) if d]),
        *(part for group in comparison.groups for part in _branches(group)),
    ]
    intro = (
        "Row: after learning that task; column: accuracy on the test images of that task, per cent, mean over seeds."
    )
    if not any(map(shared_branches, comparison.groups)):
        intro += f" No matrices of single branches: no run has measured them; {NESTED} unless branch_eval is false."
    if not parts:
        intro = "No run knows its accuracy matrix."
    return Section("matrices", "Accuracy matrices", intro, parts)


def _branches(group: Group) -> list[Drawings]:
    curves = figures.branch_curves(group)
    return _drawings(f"Branches of {group.name}", [*([curves] if curves else []), *figures.branch_matrices(group)])


def _drawings(title: str, drawings: Sequence[Drawing]) -> list[Drawings]:
    return [Drawings(title, drawings)] if drawings else []


def time_scales(comparison: Comparison) -> Section:
    """Norms, contribution and agreement of fast and slow."""
    parts = [part for group in comparison.groups for part in _drawings(group.name, list(figures.time_scales(group)))]
    intro = f"No run has telemetry events, so there is nothing to show of fast and slow; {NESTED}."
    if parts:
        intro = "How large fast and slow are, how much they change, how much of the adapters' output is theirs, and "
        intro += "whether they agree, at every telemetry reading."
    return Section("time-scales", "Fast and slow over steps and tasks", intro, parts)


# ---- cadence


def cadences(comparison: Comparison) -> Section:
    """Expected and observed updates of slow."""
    found = [(name, rows) for name, run in named_runs(comparison) if (rows := cadence(run))]
    if not found:
        intro = f"No run has cadence events, so when slow moved is not on record; {NESTED}."
        return Section("cadence", "Cadence of slow", intro)
    header = ["run", "func phases", "steps", "expected updates", "observed updates", "as configured"]
    whole = Table("Slow updates by run", header, [_cadence_row(name, rows) for name, rows in found])
    phases = [_phase_table(name, rows) for name, rows in found]
    intro = (
        "Optimizer steps at which the values of slow changed, against those at which the configuration says they do."
    )
    return Section("cadence", "Cadence of slow", intro, [whole, Folded("Every func phase", phases)])


def _cadence_row(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    judged = [row["expected"] for row in rows if row["expected"] is not None]
    expected = str(sum(map(len, judged))) if judged else "not stated"
    failed = sum(not row["passed"] for row in rows)
    verdict = f"NO: {failed} of {len(rows)} phases differ" if failed else "yes" if judged else "not judged"
    steps, observed = sum(row["steps"] for row in rows), sum(len(row["observed"]) for row in rows)
    return [name, str(len(rows)), str(steps), expected, str(observed), verdict]


def _phase_table(name: str, rows: Sequence[dict[str, Any]]) -> Table:
    header = ["task, cycle", "steps", "slow's tensors", "expected at", "observed at", "as configured"]
    return Table(name, header, [_phase_row(row) for row in rows])


def _phase_row(row: dict[str, Any]) -> list[str]:
    expected = "not stated" if row["expected"] is None else progression(row["expected"])
    verdict = "NO" if not row["passed"] else "not judged" if row["expected"] is None else "yes"
    place = f"{row['task']}, {row['cycle']}"
    return [place, str(row["steps"]), str(row["tensors"]), expected, progression(row["observed"]), verdict]


def progression(steps: Sequence[int]) -> str:
    """Step numbers in few words: `5, 10, ..., 60 (12)`."""
    gaps = {after - before for before, after in pairwise(steps)}
    if len(steps) > 4 and len(gaps) == 1:
        return f"{steps[0]}, {steps[1]}, ..., {steps[-1]} ({len(steps)})"
    shown = ", ".join(map(str, steps[:12]))
    return f"{shown}, ... ({len(steps)})" if len(steps) > 12 else shown or "never"


# ---- consolidation and expansion


def consolidation(comparison: Comparison) -> Section:
    """Drift and receipts."""
    found = [(name, made) for name, run in named_runs(comparison) if (made := consolidations(run))]
    curve = figures.drift(comparison.groups)
    if not curve:
        intro = (
            "No run has consolidation events: fast was never consolidated into slow (nested_lora_use_consolidation)."
        )
        return Section("consolidation", "Consolidation", intro)
    header = ["task", "alpha", "mode", "reset", "norm of slow", "rank of slow", "norm of fast"]
    header += ["drift: mean", "drift: largest", "z: mean", "z: deviation", "accuracy (%)"]
    receipts = [Table(name, header, [_receipt_row(event) for event in made]) for name, made in found]
    intro = "What consolidating fast into slow changed; drift is the change of the adapters' output on a probe batch, "
    intro += "relative to the output before. z is that of the task's training images as they look after consolidation, "
    intro += "against the descriptors' records from before it and against those taken anew."
    parts: list[Part] = [Drawings("", [curve])]
    parts += [Folded("Receipts: means over layers and adapters, before → after", receipts)]
    return Section("consolidation", "Consolidation", intro, parts)


def _receipt_row(made: Consolidation) -> list[str]:
    return [
        str(made.task),
        *(made.texts(key) for key in ("alpha", "mode", "reset")),
        *(_change(made, key) for key in ("slow_norm", "slow_rank", "fast_norm")),
        _decimal(made.mean("drift")),
        _decimal(made.largest_drift),
        *(_change(made, key) for key in ("z_mean", "z_std")),
        f"{made.before:.2f} → {made.after:.2f}",
    ]


def _change(made: Consolidation, key: str) -> str:
    before, after = made.mean(f"{key}_before"), made.mean(f"{key}_after")
    return "-" if math.isnan(before) and math.isnan(after) else f"{_decimal(before)} → {_decimal(after)}"


def _decimal(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def expansion(comparison: Comparison) -> Section:
    """When layers asked for adapters, and how many they have."""
    timelines = [
        figures.expansion(group.name, run, scan)
        for group in comparison.groups
        for run in group.runs
        if (scan := scans(run))
    ]
    layers = [drawing for drawing in map(figures.adapters, comparison.groups) if drawing]
    parts = [*_drawings("z-scores in the scans", timelines), *_drawings("Adapters per layer", layers)]
    intro = (
        "A layer asks for an adapter when a batch is strange to all it has: when its smallest z is above the threshold."
    )
    if not timelines:
        intro = "No run has scan events: with one task, or without expansion, nothing is scanned."
    return Section("expansion", "Expansion", intro, parts)


# ---- configurations and runs


def configurations(comparison: Comparison) -> Section:
    """The keys that differ."""
    names = [group.name for group in comparison.groups]
    rows = [[key, *(value_text(value, "-") for value in values)] for key, values in comparison.differing.items()]
    if rows:
        intro = "Keys that can change a result and are not the same in all configurations."
        table = Table("What differs in the configurations", ["key", *names], rows)
        return Section("configurations", "Configurations", intro, [table])
    single = f"There is one configuration, {names[0]}, so nothing differs."
    intro = single if len(names) == 1 else "The configurations differ in no key that both have."
    return Section("configurations", "Configurations", intro)


def runs(comparison: Comparison) -> Section:
    """Where the numbers come from."""
    header = ["run", "path", "commit", "device", "backbone", "command"]
    table = Table("Runs", header, [_run_row(name, run) for name, run in named_runs(comparison)])
    legend = Sentences("Legend", tables_and_lists(comparison).lists.get("Legend", []))
    return Section("runs", "Runs and legend", "Where the numbers come from, and what they mean.", [table, legend])


def _run_row(name: str, run: Run) -> list[str]:
    environment = run.environment
    commit = str(environment.get("commit") or "-")[:10] + (" with changes" if environment.get("dirty") else "")
    backbone = environment.get("backbone")
    timm_name = backbone.get("timm_name", "-") if isinstance(backbone, dict) else "-"
    return [
        name,
        str(run.path),
        commit,
        *(str(value) for value in (environment.get("device", "-"), timm_name)),
        str(environment.get("command", "-")),
    ]


SECTIONS: tuple[Callable[[Comparison], Section], ...] = (
    summary,
    accuracy,
    matrices,
    time_scales,
    cadences,
    consolidation,
    expansion,
    configurations,
    runs,
)
