"""The measures of a run: one declaration for each, with its formula.

Tasks are counted from 0; T is the last one. R[t][i] is the accuracy on task i after learning task t, A_t the accuracy
over all classes seen after task t (see `utils.metrics`). Values are fractions, numbers or seconds, NaN if unknown.

Plasticity measures how well tasks after task 0 are learned, stability how much of earlier tasks is kept. Stability is
above 1 if old tasks got better.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

import numpy as np

from tools.finished.reader import Run
from utils.readouts import LDA, NCM, OFF, RANPAC, label_of
from utils.timescales.scales import NAMES

SYMBOLS = (
    "T: the last task, counted from 0; R[t][i]: accuracy on task i after learning task t; A_t: accuracy over all "
    "classes seen after task t"
)


@dataclass(frozen=True)
class Measure:
    """One number for each run."""

    key: str  # its name in CSV and JSON
    title: str  # its name in tables
    unit: Literal["%", "count", "s"]  # "%": a fraction, shown in per cent
    meaning: str  # for the legend
    of: Callable[[Run], float]  # its value for a run
    better: Literal["higher", "lower"] | None = None  # None: it is shown, and differences in it are not tested
    rare: bool = False  # tables leave it out where no run has it


def plasticity(run: Run) -> float:
    """Return the mean over 1 <= i <= T of R[i][i]; transient tasks and those without test images are left out."""
    diagonal = np.diag(run.matrix.matrix)
    tested = [float(diagonal[task]) for task in run.matrix.averaged if task]
    return fmean(tested) if tested else math.nan


def old_accuracy(run: Run) -> float:
    """Return the mean over 1 <= t <= T of the mean over i < t of R[t][i], without transient and untested tasks."""
    values, tasks = run.matrix.matrix, run.matrix.averaged
    rows = [fmean(float(values[t, i]) for i in tasks if i < t) for t in tasks if t > tasks[0]]
    return fmean(rows) if rows else math.nan


def of_transient(values: Sequence[float]) -> float:
    """Return the mean over the transient tasks; NaN if there are none."""
    return fmean(values) if values else math.nan


def parameters(run: Run) -> float:
    """Return the number of parameters stored after the last task, without the backbone."""
    return math.nan if run.is_log else float(sum(_stored(run).values()))


def adapter_parameters(run: Run) -> float:
    """Return the part of `parameters` that is in adapters, on a time scale or not."""
    return math.nan if run.is_log else float(sum(_stored(run).get(role, 0) for role in ("adapter", *NAMES)))


def _stored(run: Run) -> dict[str, int]:
    counts = run.last_task["parameters"]
    return {role: number for role, number in counts.items() if role not in ("backbone", "total")}


def changed(run: Run) -> float:
    """Return the share of the test answers after the last task that the adapters change."""
    last = run.changed[-1] if run.changed else None
    return math.nan if last is None else last / sum(run.matrix.count)


def adapters(run: Run) -> float:
    """Return the number of adapters in all blocks after the last task."""
    return math.nan if run.is_log else float(sum(run.last_task["adapters"]))


def incomparable_times(runs: Sequence[Run]) -> str:
    """Return why the training times of runs cannot be compared; empty if they can, or if none is known."""
    if all(math.isnan(run.training) for run in runs):
        return ""
    if unknown := [run for run in runs if math.isnan(run.training)]:
        return f"it is not on record of {unknown[0].path}"
    for key, what in {"device": "device", "processor": "processor", "threads": "number of threads"}.items():
        values = {str(process.get(key)) for run in runs for process in run.processes}
        if "None" in values:
            return f"the {what} of a run is not on record"
        if len(values) > 1:
            return f"the {what} was not the same everywhere: {', '.join(sorted(values))}"
    return ""


AVERAGE = "mean over t of A_t"
FORGETTING = "mean over i < T of (maximum over i <= t < T of R[t][i]) - R[T][i]; negative where tasks got better"
BACKWARD = "backward transfer: mean over i < T of R[T][i] - R[i][i]"
TRANSIENT = "mean over the transient tasks i of"
LEARNED = "mean over 1 <= i <= T of R[i][i]: tasks learned while there was something to keep"
VALIDATED = "on validation images, which choices may use (val_fraction)"
HEAD_ALONE = "of the same trained head on the features of the frozen backbone"
CHANGES = "share of the test answers after task T that differ with all adapters off"
CHANGED = Measure("changed", "answers changed by adapters", "%", CHANGES, changed)
TRAINED = (
    "seconds of training, without start-up, evaluations, telemetry and saving; only as a ratio, as other work on the "
    "machine is not known; -: also for runs of earlier versions"
)
TIME = Measure("seconds", "training time (s)", "s", TRAINED, lambda run: run.training)
READ = (
    (NCM, "nearest class mean"),
    (LDA, "linear discriminant analysis"),
    (RANPAC, "ridge regression on a random projection"),
)


def of_readouts() -> Iterator[Measure]:
    """Yield the last and the average incremental accuracy of every readout, with the adapters and without them."""
    for name, what in READ:
        for side, title, where in (("", "", ""), (OFF, ", adapters off", " of the frozen backbone")):
            label, meaning = label_of(name, side), f"of {what} on the features{where}"
            key = label.replace(".adapters_", "_")
            for of, called, formula in (
                ("last_acc", "last accuracy", "A_T"),
                ("avg_inc_acc", "average incremental", AVERAGE),
            ):
                titled, meant = f"{called}, {name}{title}", f"{formula} {meaning}"
                yield Measure(f"{of}_{key}", titled, "%", meant, partial(read, label, of), rare=True)


def read(label: str, measure: str, run: Run) -> float:
    """Return a measure of a readout's accuracy matrix; NaN if the run does not have the readout."""
    return float(getattr(run.readouts[label], measure)) if label in run.readouts else math.nan


MAIN = ("last_acc", "avg_inc_acc")  # measures said first
MEASURES = (
    Measure("last_acc", "last accuracy", "%", "A_T", lambda run: run.curve[-1], better="higher"),
    Measure("avg_inc_acc", "average incremental accuracy", "%", AVERAGE, lambda run: fmean(run.curve), better="higher"),
    Measure(
        "val_last_acc",
        "validation last accuracy",
        "%",
        f"A_T {VALIDATED}",
        lambda run: run.validation.last_acc,
        rare=True,
    ),
    Measure(
        "val_avg_inc_acc",
        "validation average incremental accuracy",
        "%",
        f"{AVERAGE} {VALIDATED}",
        lambda run: run.validation.avg_inc_acc,
        rare=True,
    ),
    Measure("last_acc_off", "last accuracy, adapters off", "%", f"A_T {HEAD_ALONE}", lambda run: run.off.last_acc),
    Measure(
        "avg_inc_acc_off",
        "average incremental, adapters off",
        "%",
        f"{AVERAGE} {HEAD_ALONE}",
        lambda run: run.off.avg_inc_acc,
    ),
    CHANGED,
    *of_readouts(),
    Measure("forgetting", "forgetting", "%", FORGETTING, lambda run: run.matrix.forgetting, better="lower"),
    Measure("bwt", "BWT", "%", BACKWARD, lambda run: run.matrix.bwt, better="higher"),
    Measure(
        "learning_accuracy",
        "learning accuracy",
        "%",
        "mean over i of R[i][i], the diagonal",
        lambda run: run.matrix.learning_accuracy,
        better="higher",
    ),
    Measure("plasticity", "plasticity", "%", LEARNED, plasticity, better="higher"),
    Measure("stability", "stability", "%", "1 - forgetting", lambda run: 1 - run.matrix.forgetting, better="higher"),
    Measure(
        "transient_learned",
        "transient tasks, when learned",
        "%",
        f"{TRANSIENT} R[i][i]",
        lambda run: of_transient(run.matrix.transient_learned),
        rare=True,
    ),
    Measure(
        "transient_left",
        "transient tasks, at the end",
        "%",
        f"{TRANSIENT} R[T][i]",
        lambda run: of_transient(run.matrix.transient_left),
        rare=True,
    ),
    Measure("parameters", "parameters", "count", "all stored after the last task but the backbone", parameters),
    Measure("adapter_parameters", "adapter parameters", "count", "the adapters' part of them", adapter_parameters),
    Measure("adapters", "adapters", "count", "in all blocks after the last task", adapters),
    TIME,
)
