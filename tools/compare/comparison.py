"""Group runs by configuration, and compare the groups with each other and with a baseline."""

import json
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from tools.compare.measures import Measure, incomparable_times
from tools.compare.names import ABSENT, configuration_names, differs, unique
from tools.compare.paired import Difference, Spread, difference, spread
from tools.finished.reader import Run, RunError, foreign_path, missing_path, read_run, unfinished
from tools.pilot.runs import read_log
from utils.progress import progress
from utils.text import did_you_mean, listed, shown

ORDER = ("shuffle", "class_order_seed", "class_order", "tasks")  # keys of the class order
CUT = ("init_cls", "increment")  # make the sizes of tasks, but not beside `tasks`
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

    @property
    def units(self) -> Mapping[str, Mapping[int, Run]]:
        """The runs by what a test takes for independent of each other, and by seed: every seed is one."""
        return {str(seed): {seed: run} for seed, run in self.by_seed.items()}

    def pairs(self, baseline: "Group") -> list[list[tuple[Run, Run]]]:
        """Return the runs with those of another group of the same unit and seed, by unit."""
        theirs = baseline.units
        found = (
            [(run, theirs[unit][seed]) for seed, run in ours.items() if seed in theirs[unit]]
            for unit, ours in self.units.items()
            if unit in theirs
        )
        return [pairs for pairs in found if pairs]

    def minus(self, baseline: "Group", measure: Measure) -> Difference:
        """Return the difference to another group, paired by unit; the value of a unit is the mean over its seeds."""
        units = self.pairs(baseline)
        ours, theirs = ([fmean(measure.of(pair[side]) for pair in pairs) for pairs in units] for side in (0, 1))
        found = difference(ours, theirs)
        # Other work on the machine moves all times together, which no test of these values can see.
        return replace(found, low=math.nan, high=math.nan, p=math.nan) if measure.unit == "s" else found

    def ratio(self, baseline: "Group", measure: Measure) -> float:
        """Return the mean as a multiple of that of another group, on the units and seeds that both have."""
        pairs = [pair for unit in self.pairs(baseline) for pair in unit]
        ours, theirs = (sum(measure.of(pair[side]) for pair in pairs) for side in (0, 1))
        return ours / theirs if theirs > 0 else math.nan


@dataclass(frozen=True)
class Family(Group):
    """Configurations that differ in nothing but the class order, with all their runs."""

    members: list[Group]

    @property
    def units(self) -> Mapping[str, Mapping[int, Run]]:
        """The runs by class order and seed: runs of one order are not independent of each other."""
        return {_order(member): member.by_seed for member in self.members}

    def own(self, member: Group) -> str:
        """Return what the name of a member has beside that of all."""
        return ", ".join(part for part in _parts(member) if part not in _shared(self.members)) or member.name


def _order(group: Group) -> str:
    return json.dumps([group.identity.get(key) for key in ORDER])


def _parts(group: Group) -> list[str]:
    return re.split(", |: ", group.name)


def _shared(groups: Sequence[Group]) -> list[str]:
    return [part for part in _parts(groups[0]) if all(part in _parts(group) for group in groups)]


def families(groups: Sequence[Group]) -> list[Family]:
    """Return the families of two or more: each has one class order, of the same classes in tasks of the same sizes."""
    by_rest: dict[str, list[Group]] = {}
    for group in groups:
        if not group.is_log and group.one_class_order:
            rest = {key: value for key, value in group.identity.items() if key not in (*ORDER, *CUT)}
            names = [] if group.identity.get("max_tasks") else group.runs[0].results.get("class_names") or []
            key = json.dumps([rest, group.runs[0].matrix.task_sizes, sorted(map(str, names))], sort_keys=True)
            by_rest.setdefault(key, []).append(group)
    found = [members for members in by_rest.values() if len(members) > 1]
    titles = [", ".join(_shared(members)) or members[0].runs[0].label for members in found]
    names = [*unique([*(group.name for group in groups), *titles])][len(groups) :]
    runs = [[run for member in members for run in member.runs] for members in found]
    return list(map(Family, names, runs, found))


def leaves_out(group: Group) -> bool:
    """Return whether transient tasks are left out, so that averages are over other rows of the accuracy matrix."""
    return bool(group.identity.get("leave_out_transient"))


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

    @cached_property
    def families(self) -> list[Family]:
        return families(self.groups)

    @property
    def sides(self) -> list[Group]:
        """The families, and the groups that belong to none."""
        within = {member.name for family in self.families for member in family.members}
        return [*self.families, *(group for group in self.groups if group.name not in within)]

    @cached_property
    def compared(self) -> list[tuple[Group, Group]]:
        """What is compared, and with what; nothing without a baseline.

        These are the other groups with the baseline. If it belongs to a family, other families of its class orders are
        compared with its family as a whole. A run that leaves out transient tasks is compared with others that do.
        """
        base = self.baseline
        if base is None:
            return []
        own = next((family for family in self.families if base in family.members), None)
        like = [f for f in self.families if own and f is not own and len(f.units.keys() & own.units.keys()) > 1]
        within = {base.name, *(member.name for f in (own, *like) if f for member in f.members)}
        pairs = [(group, base) for group in self.groups if group.name not in within]
        pairs += [(family, own) for family in like if own]
        return [(group, other) for group, other in pairs if leaves_out(group) == leaves_out(other)]

    @property
    def images(self) -> str:
        """What the accuracies are of: test images, or validation images (`evaluate_on`)."""
        parts = {run.on_validation for _, run in self.runs}
        return "validation images" if parts == {True} else "test or validation images" if True in parts else TESTED

    @property
    def others(self) -> list[Group]:
        """What is compared with the baseline or its family."""
        return [group for group, _ in self.compared]

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
