"""Choose values for every member of a sweep by runs that score validation images alone.

    "search": {
        "seeds": [1, 2],
        "changes": {"val_fraction": 0.2, "max_tasks": 4},   of the runs of the search only
        "grid": {"init_lr": [0.005, 0.02, 0.05]},           values to try; a member of the list can have its own
        "points": 6,                                        at most so many combinations, drawn at random; optional
        "measure": "avg_inc_acc",                           or last_acc
        "rungs": [{"func_epoch": 1}, {}],                   changes of each rung of successive halving; optional
        "keep": 0.33                                        share of the combinations that go on to the next rung
    }

All members try the same number of combinations, called points. Successive halving is that of Jamieson and Talwalkar,
arXiv 1502.07943: all points run with the changes of the first rung, the best ones go on to the next, and the best one
of the last rung is chosen. Of equal points the first one counts as better. A point of which a run diverged counts as
worst. The runs of the search have `evaluate_on` val; only the runs with the chosen values score test images.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.compare.measures import MEASURES
from tools.finished.reader import read_run
from tools.sweep.failures import Failure
from tools.sweep.outcome import Outcome, Tried
from tools.sweep.plan import (
    Changes,
    Entry,
    Grid,
    PlannedRun,
    SearchFile,
    SweepFile,
    combinations,
    named,
    plan_of,
    read_sweep,
)
from utils.errors import ConfigError, UserError

NOT_SEARCHED = {  # keys that all runs of a search have in common
    "evaluate_on": "the search sets it",
    "val_fraction": 'expected under "changes" of the search, so that all its runs have the same validation images',
}
TITLES = {measure.key: measure.title for measure in MEASURES}
VALIDATED = (
    "The runs of the search scored validation images alone (evaluate_on). The first to score test images were those "
    "with the chosen values."
)


@dataclass(frozen=True)
class Point:
    """A combination of values of a member, with its runs: in each rung those of all seeds."""

    values: Changes
    runs: Sequence[Sequence[PlannedRun]]


@dataclass(frozen=True)
class Search:
    """The search of a sweep file.

    Attributes:
        path: The sweep file, whose content `sweep` is.
        output_dir: Folder of the runs with the chosen values.
        points: Those of each member, by name.
        sizes: The number of combinations in the grid of each member, by name.
    """

    path: Path
    output_dir: str
    sweep: SweepFile
    spec: SearchFile
    points: Mapping[str, Sequence[Point]]
    sizes: Mapping[str, int]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the search."""
        return [run.seed for run in next(iter(self.points.values()))[0].runs[0]]

    @property
    def key(self) -> str:
        """A hash of all runs that the search may need, and of how it chooses."""
        runs = {name: [[[r.name for r in rung] for rung in p.runs] for p in own] for name, own in self.points.items()}
        text = json.dumps([self.spec.measure, self.spec.keep, runs])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def record(self) -> dict[str, object]:
        """What `tools.sweep.outcome` writes beside the outcome."""
        return {"search": self.key, "measure": self.spec.measure, "seeds": self.seeds}

    def judged(self, outcome: Outcome, seeds: Sequence[int] | None = None) -> list[PlannedRun]:
        """Return the runs with the chosen values, over the seeds of the sweep or over other ones."""
        chosen = [_with(entry, entry.name, outcome.chosen[entry.name]) for entry in self.sweep.members()]
        return plan_of(self.path, self.sweep, chosen, self.output_dir, list(seeds) if seeds else self.sweep.seeds)

    def announcement(self) -> list[str]:
        """Return what is tried and how is chosen, one sentence each."""
        count, spec = len(next(iter(self.points.values()))), self.spec
        several = len(self.seeds) > 1
        seeds = f"seed{'s' * several} {', '.join(map(str, self.seeds))}"
        each = "combinations of values" if count > 1 else "combination of values"
        lines = [f"The search tries {count} {each} for each of {'; '.join(self.points)}, with {seeds}."]
        if drawn := [f"{size} of {name}" for name, size in self.sizes.items() if size > count]:
            lines.append(f"They are drawn at random from the combinations in the grid: {', '.join(drawn)}.")
        mean, last = ", mean over these seeds" * several, " of the last rung" * (len(spec.rungs) > 1)
        lines.append(f"It chooses by {TITLES[spec.measure]} on validation images{last}{mean}.")
        if len(spec.rungs) > 1:
            rungs = (f"rung {number}: {named(rung) or 'no change'}" for number, rung in enumerate(spec.rungs, 1))
            lines.append(f"The best {100 * spec.keep:.3g} % go on to the next rung; {'; '.join(rungs)}.")
        if spec.changes:
            lines.append(f"Its runs differ from those with the chosen values in {named(spec.changes)}.")
        judged = self.sweep.seeds if isinstance(self.sweep.seeds, list) else [self.sweep.seeds]
        if both := ", ".join(str(seed) for seed in self.seeds if seed in judged):
            lines.append(f"Seed {both} is one of the search and of the runs with the chosen values; prefer other ones.")
        return lines

    def sentences(self, outcome: Outcome) -> list[str]:
        """Return how the values were chosen, for a page."""
        return [*self.announcement(), VALIDATED, *outcome.sentences()]


# ---- from the sweep file


def read_search(path: Path, folder: str, output_dir: str, seeds: Sequence[int] | None = None) -> Search:
    """Read the search of a sweep file, and check every configuration in it, also those that may be chosen.

    Args:
        path: The sweep file.
        folder: Folder of the run directories of the search.
        output_dir: Folder of the other run directories.
        seeds: Used instead of those of the file for the runs with the chosen values.

    Raises:
        ConfigError: With every problem of the file and its configurations, one line each.
    """
    sweep = read_sweep(path)
    spec, entries = sweep.search, sweep.members()
    if spec is None:
        raise ConfigError(f"{path}: search: missing; --select val needs it, see docs/search.md")
    grids = {entry.name: entry.search.grid if entry.search else spec.grid for entry in entries}
    values = {name: _drawn(name, grid, spec.points) for name, grid in grids.items() if grid}
    if problems := list(_problems(spec, grids, {name: len(points) for name, points in values.items()})):
        raise ConfigError("\n".join(f"{path}: search: {problem}" for problem in problems))
    tried = [(entry, f"{entry.name}: {named(point)}", point) for entry in entries for point in values[entry.name]]
    judged = [_with(*point) for point in tried]
    _refuse_other_images(path, spec, plan_of(path, sweep, judged, output_dir, list(seeds) if seeds else sweep.seeds))
    runs: dict[str, list[list[PlannedRun]]] = {name: [] for _, name, _ in tried}
    for rung in spec.rungs:
        common = {**spec.changes, **rung, "evaluate_on": "val"}
        members = [_with(entry, name, {**common, **point}) for entry, name, point in tried]
        planned = plan_of(path, sweep, members, folder, spec.seeds)
        for name, rungs in runs.items():
            rungs.append([run for run in planned if run.member.name == name])
    points = {entry.name: [Point(point, runs[name]) for of, name, point in tried if of is entry] for entry in entries}
    sizes = {name: math.prod(map(len, (grid or {}).values())) for name, grid in grids.items()}
    return Search(path, output_dir, sweep, spec, points, sizes)


def _with(entry: Entry, name: str, changes: Changes) -> Entry:
    return entry.model_copy(update={"name": name, "changes": {**entry.changes, **changes}, "search": None})


def _drawn(member: str, grid: Grid, points: int | None) -> list[Changes]:
    """Return at most so many combinations of a grid, in its order. A larger number only adds to a smaller one."""
    every = combinations(grid)
    order = list(range(len(every)))
    random.Random(json.dumps(["search", member, grid])).shuffle(order)
    return [every[place] for place in sorted(order[:points])]


def _problems(spec: SearchFile, grids: Mapping[str, Grid | None], counts: Mapping[str, int]) -> Iterator[str]:
    """Yield what is wrong with a search, before its configurations are read."""
    if missing := [name for name, grid in grids.items() if grid is None]:
        yield f"{missing[0]} has no grid; expected one in the search, or in a search of each member of the list"
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} for {name}" for name, count in counts.items())
        yield f"expected equally many combinations of values for every member, found {found}; see points"
    searched = {key for grid in grids.values() for key in grid or ()}
    of_rungs = {key for rung in spec.rungs for key in rung}
    yield from (f"{key}: {why}" for key, why in NOT_SEARCHED.items() if key in searched | of_rungs)
    if "evaluate_on" in spec.changes:
        yield f"evaluate_on: {NOT_SEARCHED['evaluate_on']}"
    for key in sorted(searched & (spec.changes.keys() | of_rungs)):
        yield f"{key}: is in a grid and in the changes of all runs; keep one"


def _refuse_other_images(path: Path, spec: SearchFile, judged: Sequence[PlannedRun]) -> None:
    """Raise ConfigError if runs of the search would have no validation images, or other runs no test images."""
    for config in (run.member.config for run in judged):
        if config.evaluate_on != "test":
            raise ConfigError(f"{path}: evaluate_on: {NOT_SEARCHED['evaluate_on']}; leave it out")
        if not spec.changes.get("val_fraction", config.val_fraction):
            raise ConfigError(f"{path}: search: changes: expected a val_fraction above 0, such as 0.2")


# ---- choosing


def choose(search: Search, execute: Callable[[int, Sequence[PlannedRun]], Mapping[str, Failure]]) -> Outcome | None:
    """Run rung after rung, and return what is found; None if a run has neither finished nor diverged.

    Args:
        search: What to choose from.
        execute: Executes the runs of a rung that are missing, given its number from 1, and returns all failures.

    Raises:
        UserError: Training diverged with all values of a member.
    """
    going = {name: list(points) for name, points in search.points.items()}
    found: dict[str, list[list[Tried]]] = {name: [] for name in going}
    for number, _ in enumerate(search.spec.rungs, 1):
        runs = [run for points in going.values() for point in points for run in point.runs[number - 1]]
        failures = execute(number, sorted(runs, key=lambda run: search.seeds.index(run.seed)))
        if not all(run.finished() or (run.name in failures and failures[run.name].diverged) for run in runs):
            return None
        for name, points in going.items():
            rung = [Tried(values=p.values, scores=_scores(p.runs[number - 1], search.spec.measure)) for p in points]
            found[name].append(rung)
            count = 1 if number == len(search.spec.rungs) else max(1, int(len(points) * search.spec.keep + 0.5))
            going[name] = [points[place] for place in _best(name, rung, count)]
    return Outcome(rungs=found, chosen={name: points[0].values for name, points in going.items()})


def _scores(runs: Sequence[PlannedRun], measure: str) -> dict[str, float | None]:
    """Return the score of each seed; None where the run has not finished."""
    paths = {str(run.seed): run.finished() for run in runs}
    return {seed: getattr(read_run(path).matrix, measure) if path else None for seed, path in paths.items()}


def _best(member: str, rung: Sequence[Tried], count: int) -> list[int]:
    """Return the places of the best, in their order, without those that diverged."""
    finite = [place for place, tried in enumerate(rung) if tried.mean > -math.inf]
    if not finite:
        raise UserError(f"{member}: training diverged with all values of the search; expected smaller rates")
    return sorted(sorted(finite, key=lambda place: -round(rung[place].mean, 9))[:count])  # equal up to rounding
