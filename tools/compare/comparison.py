"""Group runs by configuration, and compare the groups with each other and with a baseline."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.compare.measures import Measure, incomparable_times
from tools.compare.names import ABSENT, configuration_names, differs
from tools.compare.paired import Difference, Spread, difference, spread
from tools.finished.reader import Run, RunError, foreign_path, missing_path, read_run, unfinished
from tools.pilot.runs import read_log
from utils.progress import progress
from utils.text import did_you_mean, listed, shown

TESTED = "test images"
Places = dict[tuple[str, str], str]  # names of data and weights by key and hash


def value_text(value: Any, absent: str) -> str:
    """Return a value of a configuration as the text of a cell."""
    if value is ABSENT:
        return absent
    return value if isinstance(value, str) else shown(value)


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, each with another seed (or with an unknown one)."""

    name: str  # unique
    runs: list[Run]  # in the order of their seeds

    @property
    def is_log(self) -> bool:
        return self.runs[0].is_log

    @property
    def identity(self) -> Mapping[str, Any]:
        """All keys of the configuration that can change a result, without the seed."""
        return self.runs[0].identity

    @property
    def seeds(self) -> list[str]:
        """As texts; `unknown` where a log does not state it."""
        return ["unknown" if run.seed is None else str(run.seed) for run in self.runs]

    @property
    def by_seed(self) -> dict[int, Run]:
        """The runs whose seed is known."""
        return {run.seed: run for run in self.runs if run.seed is not None}

    @property
    def one_class_order(self) -> bool | None:
        """Whether all seeds learn the classes in the same order; None if that is unknown."""
        config = self.runs[0].config
        if not config.keys() & {"shuffle", "class_order", "tasks"}:
            return None
        fixed = ("class_order_seed", "class_order", "tasks")
        return not config.get("shuffle", True) or any(config.get(key) is not None for key in fixed)

    def spread(self, measure: Measure) -> Spread:
        return spread([measure.of(run) for run in self.runs])

    def minus(self, baseline: "Group", measure: Measure) -> Difference:
        """Return the paired difference to another group on the seeds that both have."""
        seeds = sorted(self.by_seed.keys() & baseline.by_seed.keys())
        ours, theirs = ([measure.of(group.by_seed[seed]) for seed in seeds] for group in (self, baseline))
        found = difference(ours, theirs)
        # Other work on the machine moves all times together, which no test of these values can see.
        return replace(found, low=math.nan, high=math.nan, p=math.nan) if measure.unit == "s" else found

    def ratio(self, baseline: "Group", measure: Measure) -> float:
        """Return the mean as a multiple of that of another group, on the seeds that both have."""
        seeds = self.by_seed.keys() & baseline.by_seed.keys()
        ours, theirs = (sum(measure.of(group.by_seed[seed]) for seed in seeds) for group in (self, baseline))
        return ours / theirs if theirs > 0 else math.nan


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    groups: list[Group]  # in the order in which the runs were named
    baseline: Group | None  # one of the groups
    left_out: list[str]  # runs and folders, each with the reason
    untimed: str = ""  # why the training times are left out
    chosen: Sequence[str] = ()  # how a sweep chose values
    searched: Sequence[list[str]] = ()  # what it chose from: rows of the table `SEARCHED` in tables.py
    failed: Sequence[list[str]] = ()  # runs of a sweep without results: rows of the table `FAILED` in tables.py

    @property
    def runs(self) -> list[tuple[Group, Run]]:
        """All runs, each with its group."""
        return [(group, run) for group in self.groups for run in group.runs]

    @property
    def images(self) -> str:
        """What the accuracies are of: test images, or validation images (`evaluate_on`)."""
        parts = {run.on_validation for _, run in self.runs}
        return "validation images" if parts == {True} else "test or validation images" if True in parts else TESTED

    @property
    def others(self) -> list[Group]:
        """The groups that are compared with the baseline; none without one."""
        return [group for group in self.groups if group is not self.baseline] if self.baseline else []

    @property
    def differing(self) -> dict[str, list[Any]]:
        """The keys that differ, each with its value in every group, or `ABSENT`.

        Logs and run directories have different keys: a key that no group of one kind has does not count as different.
        Nor does one that some do not have, as it has no effect there, if the others have its default.
        """
        found = {}
        for key, kinds in self._kinds.items():
            values = [group.identity.get(key, ABSENT) for group in self.groups]
            known = [value for group, value in zip(self.groups, values, strict=True) if group.is_log in kinds]
            if differs(key, known):
                found[key] = values
        return found

    @property
    def one_sided(self) -> list[str]:
        """Keys that only logs or only run directories have, if both are compared."""
        all_kinds = {group.is_log for group in self.groups}
        return [key for key, kinds in self._kinds.items() if kinds != all_kinds]

    @property
    def _kinds(self) -> dict[str, set[bool]]:
        """The kinds of runs that have a key, by key: True for logs, False for directories."""
        kinds: dict[str, set[bool]] = {}
        for group in self.groups:
            for key in group.identity:
                kinds.setdefault(key, set()).add(group.is_log)
        return kinds


def compare(paths: Sequence[Path], baseline: str | None = None) -> Comparison:
    """Read runs and group them by configuration.

    Args:
        paths: Run directories and log files. Other folders and pages, which `logs/*` may name too, and unfinished runs
            are left out.
        baseline: A run's path (it is read if not in `paths`) or a configuration's name, to compare the others with.

    Raises:
        UserError: A run is missing or damaged, none is finished, or the baseline is unfinished or unknown.
    """
    foreign = {path: reason for path in paths if (reason := foreign_path(path) or unfinished(path))}
    places: Places = {}
    runs = _read_all([path for path in paths if path not in foreign], places)
    if not runs:
        raise RunError("\n".join(["there is no run to compare", *foreign.values()]))
    compared_with = _read_all([Path(baseline)], places) if baseline is not None and Path(baseline).exists() else {}
    groups, repeated = _group({**runs, **compared_with}.values())
    untimed = incomparable_times([run for group in groups for run in group.runs])
    if untimed:
        groups = [replace(g, runs=[replace(run, training=math.nan) for run in g.runs]) for g in groups]
    base = None if baseline is None else _baseline(groups, baseline, {run.key for run in compared_with.values()})
    return Comparison(groups, base, [*foreign.values(), *repeated], untimed)


def _read_all(paths: Sequence[Path], places: Places) -> dict[object, Run]:
    """Return the runs by path, configuration and seed; a log may hold several."""
    runs: dict[object, Run] = {}
    for path in progress(paths, "reading runs", len(paths)):
        if not path.exists():
            raise missing_path(path)
        for run in [read_run(path)] if path.is_dir() else read_log(path):
            own = replace(run, identity=_named_by_content(run, places))
            runs[run.path.resolve(), own.key, run.seed] = own
    return runs


def _named_by_content(run: Run, places: Places) -> dict[str, Any]:
    """Return the identity of a run, in which equal data and weights have equal names, and others have others."""
    names: dict[str, Any] = {}
    for key, content in run.contents.items():
        name = str(run.identity[key])
        taken = any(place == key and other == name for (place, _), other in places.items())
        names[key] = places.setdefault((key, content), f"{name} ({content[:8]})" if taken else name)
    return {**run.identity, **names}


def _group(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
    """Return the groups, and the reason for each run that is left out, as it repeats a configuration and seed."""
    kept: dict[str, list[Run]] = {}
    repeated = []
    for run in runs:
        group = kept.setdefault(run.key, [])
        twin = next((other for other in group if run.seed is not None and other.seed == run.seed), None)
        if twin is None:
            group.append(run)
        else:
            same = "the same" if twin.matrix == run.matrix and twin.curve == run.curve else "other"
            repeated.append(f"{run.path}: left out, as {twin.path} is seed {run.seed} too; it has {same} accuracies")
    names = configuration_names([group[0] for group in kept.values()])
    for group in kept.values():
        group.sort(key=lambda run: math.inf if run.seed is None else run.seed)
    return list(map(Group, names, kept.values())), repeated


def _baseline(groups: Sequence[Group], name: str, keys: Container[str]) -> Group:
    """Return the group of a name, or with one of the configuration keys `keys`."""
    for group in groups:
        if group.name == name or group.runs[0].key in keys:
            return group
    names = {group.name for group in groups} | {str(run.path) for group in groups for run in group.runs}
    near = did_you_mean(name, sorted(names), count=3) or f"; configurations: {listed([group.name for group in groups])}"
    raise RunError(f"--baseline {name}: neither a run nor a configuration{near}")
