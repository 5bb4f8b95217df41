"""Warnings about a comparison: too few seeds, unpaired seeds, unequal conditions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import combinations, groupby
from typing import Any

from tools.compare.comparison import Comparison, Family, Group, leaves_out
from tools.compare.measures import TIME
from tools.compare.names import ABSENT, differs
from tools.finished.reader import Run, digest
from utils.runs.environment import PACKAGES
from utils.text import listed

FEW = 3  # seeds; with fewer the standard deviation says little
NAMED = 4  # configurations or runs with the same warning


def warnings(comparison: Comparison) -> list[str]:
    """Return all warnings, one sentence each."""
    return [*comparison.left_out, *(text for check in CHECKS for text in check(comparison))]


def _on_validation(comparison: Comparison) -> Iterator[str]:
    groups = comparison.groups
    on = [group.name for group in groups if group.runs[0].on_validation]
    others = [group.name for group in groups if group.name not in on]
    if on and others:
        kept = f"those of {_listed(others)} are of test images, so that they cannot be compared"
        yield f"{_listed(on)}: accuracies of validation images (evaluate_on), {kept}"
    elif on:
        yield "all accuracies are of validation images (evaluate_on); no test image was scored"


def _untimed(comparison: Comparison) -> Iterator[str]:
    if comparison.untimed:
        yield f"{TIME.title}: left out, as {comparison.untimed}"


def _together(kind: str, notes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a sentence for each different note, with all to whom it applies: (who, note)."""
    applies: dict[str, list[str]] = {}
    for who, note in notes:
        applies.setdefault(note, []).append(who)
    for note, names in applies.items():
        yield f"{names[0]}: {note}" if len(names) == 1 else f"{len(names)} {kind} ({_listed(names)}): {note}"


def _listed(names: Iterable[str]) -> str:
    """Return some names, in quotes where one has a comma."""
    first, *more = (f'"{name}"' if "," in name else name for name in names)
    return ", ".join([first, *more[: NAMED - 1], *(["..."] if len(more) >= NAMED else [])])


def _few_seeds(comparison: Comparison) -> Iterator[str]:
    few = [(group.name, len(group.runs)) for group in comparison.groups if len(group.runs) < FEW]
    counts = ((name, "only one seed" if count == 1 else f"only {count} seeds") for name, count in few)
    yield from _together(
        "configurations", ((n, f"{c}; fewer than {FEW} say little about the spread") for n, c in counts)
    )


def _unpaired(comparison: Comparison) -> Iterator[str]:
    for group, baseline in comparison.compared:
        if isinstance(group, Family):
            pairs = sum(map(len, group.pairs(baseline)))
            if pairs < max(len(group.runs), len(baseline.runs)):
                over = f"over the {pairs} pairs of equal class order and seed"
                yield f"{group.name}: its difference to {baseline.name} is {over}"
            continue
        common = group.by_seed.keys() & baseline.by_seed.keys()
        alone = [text for text in (_alone(group, common), _alone(baseline, common)) if text]
        if not common:
            yield f"{group.name}: no seed in common with {baseline.name}, so no difference is given"
        elif alone:
            seeds = ", ".join(map(str, sorted(common)))
            unpaired = f"unpaired: {' and '.join(alone)}"
            yield f"{group.name}: its difference to {baseline.name} is over seed {seeds} only; {unpaired}"


def _alone(group: Group, common: Iterable[int]) -> str:
    """Name the seeds of a group that are not common to both; empty if there are none."""
    seeds = [text for text, run in zip(group.seeds, group.runs, strict=True) if run.seed not in set(common)]
    return f"{', '.join(seeds)} of {group.name}" if seeds else ""


def _unequal(comparison: Comparison) -> Iterator[str]:
    """Compare conditions that should be the same in all runs, or in all runs of one seed."""
    for what, value_of in CONDITIONS.items():
        yield from _disagreement(what, ((value_of(run), group.name) for group, run in comparison.runs))
    for what, value_in in OF_A_PROCESS.items():
        yield from _disagreement(what, ((value_in(run.environment), group.name) for group, run in comparison.runs))
    for seed in sorted({run.seed for _, run in comparison.runs if run.seed is not None}):
        weights = ((_weights(run), group.name) for group, run in comparison.runs if run.seed == seed)
        yield from _disagreement(f"backbone weights of seed {seed}", weights)
        orders = ((_class_orders(side, seed), side.name) for side in comparison.sides)
        yield from _disagreement(f"class orders of seed {seed}", orders)


def _resumed(comparison: Comparison) -> Iterator[str]:
    """Say where a run was resumed under other conditions than it began with."""
    notes = []
    for _, run in comparison.runs:
        for what, value_in in OF_A_PROCESS.items():
            begun, *later = map(value_in, run.processes)
            others = listed(list(dict.fromkeys(str(value) for value in later if value not in (None, begun))))
            if others and begun is not None:
                notes.append((f"{run.path}", f"resumed with other {what}: {others}, begun with {begun}"))
    yield from _together("runs", notes)


def _uncommitted(comparison: Comparison) -> Iterator[str]:
    dirty = [run for _, run in comparison.runs if run.environment.get("dirty")]
    if dirty:
        yield f"{len(dirty)} of {len(comparison.runs)} runs were made with uncommitted changes, such as {dirty[0].path}"


def _equal_accuracies(comparison: Comparison) -> Iterator[str]:
    """Configurations that differ and have equal accuracies: what differs may have had no effect on the training."""
    for first, second in combinations([group for group in comparison.groups if not group.is_log], 2):
        common = first.by_seed.keys() & second.by_seed.keys()
        if common and all(first.by_seed[seed].matrix == second.by_seed[seed].matrix for seed in common):
            a, b = first.identity, second.identity
            values = {key: [a.get(key, ABSENT), b.get(key, ABSENT)] for key in a.keys() | b.keys()}
            keys = ", ".join(sorted(key for key, pair in values.items() if differs(key, pair)))
            yield (
                f"{first.name} and {second.name} have the same accuracy on every task for every common seed, as if "
                f"{keys} had no effect; check their cadence and telemetry events"
            )


def _odd_runs(comparison: Comparison) -> Iterator[str]:
    def place(run: Run) -> str:
        return f"{run.path}" if run.seed is None or not run.is_log else f"{run.path}, seed {run.seed}"

    yield from _together("runs", ((place(run), note) for _, run in comparison.runs for note in run.notes))


def _disagreement(what: str, values: Iterable[tuple[object, str]]) -> Iterator[str]:
    """Yield a sentence if known values differ, with the names of their groups."""
    by_value: dict[str, dict[str, None]] = {}
    for value, name in values:
        if value is not None:
            by_value.setdefault(str(value), {})[name] = None
    if len(by_value) > 1:
        parts = (f"{value} in {_listed(names)}" for value, names in by_value.items())
        yield f"unequal {what}: {'; '.join(parts)}"


def _task_sizes(run: Run) -> str | None:
    """Return the tasks as `2 x 10 + 1 x 5` (number x classes); None if unknown, or if some are left out."""
    sizes = [] if run.config.get("leave_out_transient") else run.matrix.task_sizes
    runs = [f"{len(list(equal))} x {size}" for size, equal in groupby(sizes)]
    return " + ".join(runs) if sizes and all(sizes) else None


def _value(key: str, run: Run) -> object:
    return run.config.get(key)


def _short(values: object, key: str) -> str | None:
    value = _entry(values, key)
    return None if value is None else str(value)[:10]


def _entry(values: object, key: str) -> object:
    return values.get(key) if isinstance(values, Mapping) else None


def _version(package: str, environment: Mapping[str, Any]) -> object:
    return _entry(environment.get("versions"), package)


def _weights(run: Run) -> str | None:
    return _short(run.environment.get("backbone"), "sha256")


def _class_orders(side: Group, seed: int) -> str | None:
    """Return the first classes with a hash of the whole order, or how many orders a family has; None if unknown."""
    known = [] if leaves_out(side) else [run.results.get("class_names") for run in side.runs if run.seed == seed]
    orders = [names for names in known if isinstance(names, list)]
    if len(orders) < max(1, len(known)):
        return None
    several = isinstance(side, Family)
    first = f"{len(orders)} orders" if several else f"{', '.join(map(str, orders[0][:NAMED]))}, ..."
    return f"{first} ({digest({'names': sorted(orders) if several else orders[0]})})"


# Keys that change how much or from where a network learns: what differs in them too may explain a difference.
TRAINING = {
    "func_epoch": "epochs of the adapters (func_epoch)",
    "rd_epoch": "epochs of the descriptors (rd_epoch)",
    "batch_size": "batch sizes",
    "backbone_type": "backbones",
    "precision": "precisions",
}
CONDITIONS: dict[str, Callable[[Run], object]] = {
    "data sets": lambda run: run.config.get("dataset"),
    "training images": lambda run: _short(run.data.get("train"), "sha256"),
    "test images": lambda run: _short(run.data.get("test"), "sha256"),
    "tasks (number x classes)": _task_sizes,
    "numbers of test images": lambda run: (
        None if run.is_log or run.config.get("leave_out_transient") else sum(run.matrix.count)
    ),
    "transient tasks": lambda run: None if run.is_log else str(run.config.get("transient") or "none").strip("[]"),
    **{what: partial(_value, key) for key, what in TRAINING.items()},
}
OF_A_PROCESS: dict[str, Callable[[Mapping[str, Any]], object]] = {  # from its environment; a run may have several
    "commits": lambda environment: _short(environment, "commit"),
    **{f"versions of {package}": partial(_version, package) for package in PACKAGES},
    "versions of Python": lambda environment: environment.get("python"),
    "lock files (requirements.lock)": lambda environment: _short(environment, "lock"),
    "devices": lambda environment: environment.get("device"),
    "processors": lambda environment: environment.get("processor"),
    "numbers of threads": lambda environment: environment.get("threads"),
    "use of deterministic algorithms": lambda environment: environment.get("deterministic"),
}
CHECKS = (
    _on_validation,
    _unequal,
    _resumed,
    _untimed,
    _few_seeds,
    _unpaired,
    _uncommitted,
    _equal_accuracies,
    _odd_runs,
)
