"""The sections of a report, in order. A section without data says what is missing."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from tools.compare.comparison import Comparison, Group
from tools.compare.conclusions import class_order
from tools.compare.measures import old_accuracy
from tools.compare.plot import BAND, accuracy_curves, evaluations, forgetting_curves, learning_curves, old_and_new
from tools.compare.tables import CHOSEN, TRIED, Table
from tools.compare.tables import page as tables_and_lists
from tools.finished.reader import Run
from tools.plots.drawing import Drawing
from tools.report import figures
from tools.report.classes import Classes, class_drawings, class_tables, classes_of, pictures
from tools.report.data import (
    Consolidation,
    cadences,
    consolidations,
    distinct,
    mean,
    mean_matrix,
    scans,
    shared_branches,
)
from tools.report.page import Part, Section
from utils.runs import events

MOST_OPEN = 6  # drawings of one kind that the reader need not open
RECORDED = "runs whose adapters have branches with time scales record them"


def _named(group: Group, run: Run) -> str:
    return f"{group.name}, {'seed unknown' if run.seed is None else f'seed {run.seed}'}"


def _drawn(title: str, drawings: Iterable[Drawing | None], folded: bool = False) -> list[Part]:
    """Put the drawings under one heading; without any there is none."""
    found = [drawing for drawing in drawings if drawing]
    return [Part(title, drawings=found, folded=folded)] if found else []


def summary(comparison: Comparison) -> Section:
    """Return what opens the comparison, and the tables of `tools.compare` without the configurations and the legend."""
    whole = tables_and_lists(comparison)
    alarms = whole.lists.get("Warnings", [])
    tried = [table for table in whole.tables if table.title == TRIED]
    parts = [Part(title, lines, tried if title == CHOSEN else ()) for title, lines in whole.opening.items()]
    parts += [Part("Warnings", alarms, alarming=True)] if alarms else []
    parts.append(Part(tables=[table for table in whole.tables if table.header[0] != "key" and table not in tried]))
    return Section("summary", "Summary", "Measures over seeds; the legend is at the end.", parts)


def accuracy(comparison: Comparison) -> Section:
    """Return the accuracy curves of all configurations."""
    several = any(len(group.runs) > 1 for group in comparison.groups)
    intro = f"Accuracy on the {comparison.images} of all classes seen, after every task"
    intro += f": mean over seeds; where there are several, {BAND}." if several else "."
    intro = " ".join([intro, *class_order(comparison.groups)])
    parts = _drawn("", [accuracy_curves(comparison.groups)])
    if any(not math.isnan(old_accuracy(run)) for _, run in comparison.runs):
        parts += _drawn("New and old tasks", [old_and_new(comparison.groups)])
    if any(map(evaluations, comparison.groups)):
        parts += _drawn("Learning each new task", [learning_curves(comparison.groups)])
    for number, group in enumerate(comparison.groups):
        curves = forgetting_curves([group])
        drawing = figures.of_group(group.name, "accuracy on each task", curves.text, curves.draw, curves.numbers)
        parts += _drawn(f"Each task of {group.name}", [drawing], folded=number > 0)
    return Section("accuracy", "Accuracy curves", intro, parts)


def classes(comparison: Comparison) -> Section:
    """Return accuracy by class, confusions and the most confident mistakes."""
    found = [(group, summed) for group in comparison.groups if (summed := classes_of(group))]
    parts = [Part(of[0].name, parts=list(_of_classes(*of)), folded=number > 0) for number, of in enumerate(found)]
    intro = f"What the networks answer on the {comparison.images} of each class after the last task. "
    intro += "Click on a column's name to sort a table."
    return Section("classes", "Classes", intro if parts else "No run has predictions.", parts)


def _of_classes(group: Group, found: Classes) -> Iterator[Part]:
    seeds = ", ".join("unknown" if run.seed is None else str(run.seed) for run in found.runs)
    line = f"Images of seeds {seeds}, added up." if len(found.runs) > 1 else f"Seed {seeds}."
    if len(found.runs) < len(group.runs):
        line += " Of the other runs the predictions or the names of the classes are not known."
    if found.tasks is None:
        line += " The runs have different class orders, so that a class has no task; classes are matched by name."
    shown, more = class_tables(found)
    yield Part("", [line], shown, list(class_drawings(group, found)), sortable=True)
    if more:
        yield Part("All classes", tables=more, folded=True, sortable=True)
    for number, run in enumerate(group.runs):
        images, title = pictures(run), f"Most confident mistakes of seed {run.seed}"
        none = [] if images else ["The run has none, or is of a version that did not keep them."]
        yield Part(title, none, pictures=images, folded=number > 0)


def matrices(comparison: Comparison) -> Section:
    """Return R of every configuration, and of its branches."""
    each = distinct((group.name, mean_matrix([run.matrix for run in group.runs])) for group in comparison.groups)
    whole = [drawing for of in each if (drawing := figures.matrix(of[0], "accuracy matrix", of[1]))]
    parts = _drawn("Whole networks", whole[:MOST_OPEN])
    parts += _drawn(f"{len(whole) - MOST_OPEN} more matrices", whole[MOST_OPEN:], folded=True)
    parts += _drawn("Branches", map(figures.by_branch, comparison.groups))
    for group in comparison.groups:
        parts += _drawn(f"Matrices of the branches of {group.name}", figures.branches(group), folded=True)
        parts += _drawn(f"Readouts of {group.name}", _readouts(group), folded=True)
    intro = f"Row: after learning that task; column: accuracy on that task's {comparison.images} in per cent"
    several = any(len(group.runs) > 1 for group in comparison.groups)
    intro += ", mean over seeds. " if several else ". "
    intro += "Equal matrices are shown once."
    if not any(map(shared_branches, comparison.groups)):
        intro += f" No run has matrices of single branches; {RECORDED} unless branch_eval is false."
    return Section("matrices", "Accuracy matrices", intro if parts else "No run has an accuracy matrix.", parts)


def _readouts(group: Group) -> Iterator[Drawing | None]:
    """Yield R of every readout that all runs of a configuration have."""
    for label in group.runs[0].readouts:
        if all(label in run.readouts for run in group.runs):
            matrix = mean_matrix([run.readouts[label] for run in group.runs])
            yield figures.matrix(group.name, f"accuracy matrix of readout {label}", matrix)


def time_scales(comparison: Comparison) -> Section:
    """Return norms, contribution and agreement of the branches."""
    parts: list[Part] = []
    for group in comparison.groups:
        parts += _drawn(group.name, figures.time_scales(group), folded=bool(parts))
    intro = "How large the branches are, how much they change, what share of the adapters' output they have, and "
    intro += "whether they agree, at every telemetry reading."
    if not parts:
        intro = f"No run has telemetry events; {RECORDED}."
    return Section("time-scales", "Time scales over steps and tasks", intro, parts)


# ---- cadence


def cadence(comparison: Comparison) -> Section:
    """Return expected and observed updates of the gated time scales."""
    found = [(_named(*of), scale, rows) for of in comparison.runs for scale, rows in cadences(of[1]).items()]
    if not found:
        return Section("cadence", "Cadence", f"No run has cadence events; {RECORDED}.")
    header = ["run", "time scale", "func phases", "steps", "expected updates", "observed updates", "as configured"]
    whole = Table("Updates by run", header, [_cadence_row(*row) for row in found])
    header = ["task, cycle", "steps", "tensors", "expected at", "observed at", "as configured"]
    phases = [Table(f"{name}: {scale}", header, list(map(_phase_row, rows))) for name, scale, rows in found]
    intro = "Optimizer steps at which the values of a time scale changed, and those at which they should according to "
    intro += "its update interval."
    parts = [Part(tables=[whole]), Part("Every func phase", tables=phases, folded=True)]
    return Section("cadence", "Cadence", intro, parts)


def _cadence_row(name: str, scale: str, rows: Sequence[events.Cadence]) -> list[str]:
    judged = [row.expected for row in rows if row.expected is not None]
    expected = str(sum(map(len, judged))) if judged else "not stated"
    failed = sum(not row.passed for row in rows)
    rested = sum(len(set(row.expected or ()) - set(row.observed)) for row in rows)
    right = f"yes, without a gradient or decay at {rested}" if rested else "yes"
    verdict = f"NO: {failed} of {len(rows)} phases differ" if failed else right if judged else "not judged"
    steps, observed = sum(row.steps for row in rows), sum(len(row.observed) for row in rows)
    return [name, scale, str(len(rows)), str(steps), expected, str(observed), verdict]


def _phase_row(row: events.Cadence) -> list[str]:
    expected = "not stated" if row.expected is None else progression(row.expected)
    verdict = "NO" if not row.passed else "not judged" if row.expected is None else "yes"
    return [f"{row.task}, {row.cycle}", str(row.steps), str(row.tensors), expected, progression(row.observed), verdict]


def progression(steps: Sequence[int]) -> str:
    """Return step numbers in short form: `5, 10, ..., 60 (12)`."""
    gaps = {after - before for before, after in pairwise(steps)}
    if len(steps) > 4 and len(gaps) == 1:
        return f"{steps[0]}, {steps[1]}, ..., {steps[-1]} ({len(steps)})"
    shown = ", ".join(map(str, steps[:12]))
    return f"{shown}, ... ({len(steps)})" if len(steps) > 12 else shown or "never"


# ---- consolidation and expansion


def consolidation(comparison: Comparison) -> Section:
    """Return drift and receipts of the consolidations."""
    parts = _drawn("", [figures.drift(comparison.groups)])
    intro = "No run has consolidation events: no adapter was consolidated (nested_lora_use_consolidation)."
    if parts:
        intro = "What consolidation changed. Drift is the change of the adapters' output on a probe batch, relative to "
        intro += "the output before. z is of the task's training images as they look after consolidation, given the "
        intro += "descriptors' records from before it and given new ones."
        receipts = [_receipts(_named(*of), made) for of in comparison.runs if (made := consolidations(of[1]))]
        title = "Receipts: means over layers and adapters, before → after"
        parts.append(Part(title, tables=receipts, folded=True))
    return Section("consolidation", "Consolidation", intro, parts)


def _receipts(name: str, made: Sequence[Consolidation]) -> Table:
    keys = list(dict.fromkeys(key for event in made for key in event.changes))
    titles = [f"{what} of {of}" for of, what in (key.rsplit("_", 1) for key in keys)]
    header = ["task", *made[0].settings, "drift: mean", "drift: largest", *titles, "accuracy (%)"]
    return Table(name, header, [_receipt_row(event, keys) for event in made])


def _receipt_row(made: Consolidation, keys: Sequence[str]) -> list[str]:
    drifts = _decimal(mean(made.drifts)), _decimal(max(made.drifts, default=math.nan))
    changes = [" → ".join(map(_decimal, made.changes.get(key, ()))) for key in keys]
    before, after = made.accuracy
    return [str(made.task), *made.settings.values(), *drifts, *changes, f"{before:.2f} → {after:.2f}"]


def _decimal(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def expansion(comparison: Comparison) -> Section:
    """Return when layers asked for adapters, and how many they have."""
    timelines = [figures.expansion(*of, scan) for of in comparison.runs if (scan := scans(of[1]))]
    parts = _drawn("z-scores in the scans", timelines[:MOST_OPEN])
    parts += _drawn(f"{len(timelines) - MOST_OPEN} more runs", timelines[MOST_OPEN:], folded=True)
    adapters = list(figures.adapters(comparison.groups))
    parts += _drawn("Adapters per layer", adapters[:MOST_OPEN])
    parts += _drawn(f"{len(adapters) - MOST_OPEN} more configurations", adapters[MOST_OPEN:], folded=True)
    intro = "A layer asks for an adapter when the smallest z of its adapters on a batch is above the threshold."
    if not timelines:
        intro = "No run has scan events: runs of one task, and runs without expansion, do not scan."
    return Section("expansion", "Expansion", intro, parts)


# ---- configurations and runs


def configurations(comparison: Comparison) -> Section:
    """Return the keys that differ."""
    tables = [table for table in tables_and_lists(comparison).tables if table.header[0] == "key"]
    parts = [Part(tables=[table]) for table in tables if table.rows]
    intro = "Keys that can change a result and are not the same in all configurations."
    if not parts:
        intro = f"{tables[0].title}." if tables else f"There is one configuration, {comparison.groups[0].name}."
    return Section("configurations", "Configurations", intro, parts)


def runs(comparison: Comparison) -> Section:
    """Return the runs with their environment, and the legend."""
    header = ["run", "path", "commit", "device", "backbone", "command"]
    table = Table("Runs", header, [_run_row(*of) for of in comparison.runs])
    parts = [Part(tables=[table]), Part("Legend", tables_and_lists(comparison).lists.get("Legend", []))]
    return Section("runs", "Runs and legend", "Where the numbers come from, and what they mean.", parts)


def _run_row(group: Group, run: Run) -> list[str]:
    environment = run.environment
    commit = str(environment.get("commit") or "-")[:10] + (" with changes" if environment.get("dirty") else "")
    device, command = (str(environment.get(key, "-")) for key in ("device", "command"))
    return [_named(group, run), str(run.path), commit, device, _backbone(environment.get("backbone")), command]


def _backbone(provenance: object) -> str:
    """Return the architecture, and where its weights are from unless they are timm's."""
    if not isinstance(provenance, dict):
        return "-"
    name, weights = (str(provenance.get(key, "-")) for key in ("timm_name", "weights"))
    if weights in ("hub", "-"):
        return name
    origin = "random weights" if weights == "random" else f"weights of {Path(weights).name}"
    return f"{name} with {origin}, SHA-256 {str(provenance.get('sha256', '-'))[:12]}"


SECTIONS: tuple[Callable[[Comparison], Section], ...] = (
    summary, accuracy, classes, matrices, time_scales, cadence, consolidation, expansion, configurations, runs
)  # fmt: skip
