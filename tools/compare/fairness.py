"""What a reader must know before trusting a comparison: too few seeds, unpaired ones, unequal conditions."""

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

from tools.compare.comparison import Comparison, Group
from tools.finished.reader import Run

FEW = 3  # seeds; fewer give no deviation worth the name


def warnings(comparison: Comparison) -> list[str]:
    """All warnings, one sentence each."""
    return [*comparison.left_out, *(text for check in CHECKS for text in check(comparison))]


def _few_seeds(comparison: Comparison) -> Iterator[str]:
    for group in comparison.groups:
        if len(group.runs) < FEW:
            count = "only one seed" if len(group.runs) == 1 else f"only {len(group.runs)} seeds"
            yield f"{group.name}: {count}; fewer than {FEW} say little about the spread"


def _unpaired(comparison: Comparison) -> Iterator[str]:
    baseline = comparison.baseline
    for group in comparison.others:
        assert baseline is not None
        ours, theirs = group.by_seed.keys(), baseline.by_seed.keys()
        if not ours & theirs:
            yield f"{group.name}: no seed in common with {baseline.name}, so no difference is given"
        elif alone := [text for text in (_alone(group, theirs), _alone(baseline, ours)) if text]:
            common = ", ".join(map(str, sorted(ours & theirs)))
            yield (
                f"{group.name}: its difference to {baseline.name} is over seed {common} only; unpaired: "
                f"{' and '.join(alone)}"
            )


def _alone(group: Group, others: Iterable[int]) -> str:
    """The seeds of a group that the other one does not have; empty if it has them all."""
    seeds = ["unknown" if run.seed is None else str(run.seed) for run in group.runs if run.seed not in set(others)]
    return f"{', '.join(seeds)} of {group.name}" if seeds else ""


def _unequal(comparison: Comparison) -> Iterator[str]:
    """Conditions that should be the same in all runs and are not."""
    for what, value_of in CONDITIONS.items():
        yield from _disagreement(what, ((value_of(run), name) for name, run in _named(comparison)))


def _unequal_weights(comparison: Comparison) -> Iterator[str]:
    """Random weights differ from seed to seed, but not between runs of one seed."""
    for seed in sorted({seed for group in comparison.groups for seed in group.by_seed}):
        same_seed = ((_weights(run), name) for name, run in _named(comparison) if run.seed == seed)
        yield from _disagreement(f"backbone weights of seed {seed}", same_seed)


def _uncommitted(comparison: Comparison) -> Iterator[str]:
    runs = [run for group in comparison.groups for run in group.runs]
    dirty = [run for run in runs if run.environment.get("dirty")]
    if dirty:
        yield f"{len(dirty)} of {len(runs)} runs were made with changes that no commit holds, such as {dirty[0].path}"


def _equal_answers(comparison: Comparison) -> Iterator[str]:
    """Configurations that differ and answer alike: what differs may never have reached the training."""
    ours = [group for group in comparison.groups if not group.is_log]
    for first, second in combinations(ours, 2):
        common = first.by_seed.keys() & second.by_seed.keys()
        if common and all(first.by_seed[seed].matrix == second.by_seed[seed].matrix for seed in common):
            a, b = (group.runs[0].identity for group in (first, second))
            keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
            yield (
                f"{first.name} and {second.name}: the same right answers on every task in every seed they share, as if "
                f"{', '.join(keys)} had no effect; their cadence and telemetry tell whether it reached the training"
            )


def _odd_runs(comparison: Comparison) -> Iterator[str]:
    for _, run in _named(comparison):
        seed = "" if run.seed is None or not run.is_log else f", seed {run.seed}"
        yield from (f"{run.path}{seed}: {note}" for note in run.notes)


def _named(comparison: Comparison) -> Iterator[tuple[str, Run]]:
    return ((group.name, run) for group in comparison.groups for run in group.runs)


def _disagreement(what: str, values: Iterable[tuple[str | None, str]]) -> Iterator[str]:
    """One sentence if known values differ: which are those of whom."""
    by_value: dict[str, dict[str, None]] = {}
    for value, name in values:
        if value is not None:
            by_value.setdefault(value, {})[name] = None
    if len(by_value) > 1:
        parts = (f"{value} in {', '.join(names)}" for value, names in by_value.items())
        yield f"unequal {what}: {'; '.join(parts)}"


def _dataset(run: Run) -> str | None:
    name = run.config.get("dataset")
    return None if name is None else str(name)


def _task_sizes(run: Run) -> str | None:
    """Classes a task, equal neighbours together: `2 x 10 + 1 x 5`; None where a log does not show them."""
    sizes = run.matrix.task_sizes
    if not all(sizes):
        return None
    runs: list[list[int]] = []
    for size in sizes:
        if runs and runs[-1][1] == size:
            runs[-1][0] += 1
        else:
            runs.append([1, size])
    return " + ".join(f"{count} x {size}" for count, size in runs)


def _test_images(run: Run) -> str | None:
    return None if run.is_log else str(sum(run.matrix.count))


def _commit(run: Run) -> str | None:
    commit = run.environment.get("commit")
    return None if commit is None else str(commit)[:10]


def _weights(run: Run) -> str | None:
    backbone = run.environment.get("backbone")
    sha = backbone.get("sha256") if isinstance(backbone, dict) else None
    return None if sha is None else str(sha)[:10]


CONDITIONS: dict[str, Callable[[Run], str | None]] = {
    "data sets": _dataset,
    "tasks (number x classes)": _task_sizes,
    "numbers of test images": _test_images,
    "commits": _commit,
}
CHECKS: tuple[Callable[[Comparison], Iterator[str]], ...] = (
    _few_seeds,
    _unpaired,
    _unequal,
    _unequal_weights,
    _uncommitted,
    _equal_answers,
    _odd_runs,
)
