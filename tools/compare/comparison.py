"""Runs as groups of one configuration each, what differs between the groups, and how they differ from a baseline."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.compare.measures import Measure
from tools.compare.paired import Difference, Spread, difference, spread
from tools.finished.reader import Run, RunError, foreign_folder, missing_path, read_run
from tools.pilot.runs import read_log
from utils.text import did_you_mean, shown

ABSENT: Any = object()  # stands for the value of a key that a configuration does not have


def value_text(value: Any, absent: str) -> str:
    """A configuration's value in one cell."""
    if value is ABSENT:
        return absent
    return value if isinstance(value, str) else shown(value)


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, each with another seed (or with an unknown one).

    Attributes:
        name: Unlike any other group's.
        runs: In the order of their seeds.
    """

    name: str
    runs: list[Run]

    @property
    def is_log(self) -> bool:
        """Whether the runs were read from log files."""
        return self.runs[0].is_log

    @property
    def seeds(self) -> list[str]:
        """The seeds as texts; `unknown` where a log does not state it."""
        return ["unknown" if run.seed is None else str(run.seed) for run in self.runs]

    @property
    def by_seed(self) -> dict[int, Run]:
        """The runs whose seed is known."""
        return {run.seed: run for run in self.runs if run.seed is not None}

    def spread(self, measure: Measure) -> Spread:
        """Mean and deviation over the runs."""
        return spread([measure.of(run) for run in self.runs])

    def minus(self, baseline: "Group", measure: Measure) -> Difference:
        """The paired difference to another group on the seeds that both have."""
        seeds = sorted(self.by_seed.keys() & baseline.by_seed.keys())
        ours, theirs = ([measure.of(group.by_seed[seed]) for seed in seeds] for group in (self, baseline))
        return difference(ours, theirs)


@dataclass(frozen=True)
class Comparison:
    """What `tools.compare` says, before it is laid out.

    Attributes:
        groups: In the order in which the runs were named.
        baseline: One of them, or None.
        left_out: Runs and folders left out, each with the reason.
    """

    groups: list[Group]
    baseline: Group | None
    left_out: list[str]

    @property
    def others(self) -> list[Group]:
        """The groups that are compared with the baseline; none without one."""
        return [group for group in self.groups if group is not self.baseline] if self.baseline else []

    @property
    def differing(self) -> dict[str, list[Any]]:
        """The keys that differ, each with its value in every group, `ABSENT` where a group does not have it.

        Logs and runs of ours have other keys: that none of the one kind has a key is no difference.
        """
        return {key: self._values(key, self.groups) for key in self._keys if self._differs(key)}

    def _differs(self, key: str) -> bool:
        values = self._values(key, [group for group in self.groups if self._is_known(key, group.is_log)])
        return any(value != values[0] for value in values)

    def _values(self, key: str, groups: Sequence[Group]) -> list[Any]:
        return [group.runs[0].identity.get(key, ABSENT) for group in groups]

    def _is_known(self, key: str, to_logs: bool) -> bool:
        """Whether any of the logs, or any of our runs, has a key."""
        return any(key in group.runs[0].identity for group in self.groups if group.is_log == to_logs)

    @property
    def one_sided(self) -> list[str]:
        """Keys that only logs, or only runs of ours, have, where both are compared; in `differing` if they differ."""
        kinds = {group.is_log for group in self.groups}
        return [key for key in self._keys if not all(self._is_known(key, kind) for kind in kinds)]

    @property
    def _keys(self) -> list[str]:
        return list(dict.fromkeys(key for group in self.groups for key in group.runs[0].identity))


def compare(paths: Sequence[Path], baseline: str | None = None) -> Comparison:
    """Read runs and group them by configuration.

    Args:
        paths: Run directories and log files; folders without a file of a run are left out, as `logs/*` names them too.
        baseline: The path of a run, or the name of a configuration, that the others are compared with; a path that is
            not among `paths` is read too.

    Raises:
        UserError: A run is missing, unfinished or damaged, there is none, or no configuration has the baseline's name.
    """
    foreign = {path: reason for path in paths if (reason := foreign_folder(path))}
    runs = _read_all(path for path in paths if path not in foreign)
    if not runs:
        raise RunError("\n".join(["there is no run to compare", *foreign.values()]))
    if baseline is not None and Path(baseline).exists():
        runs = _once([*runs, *read(Path(baseline))])
    groups, repeated = _group(runs)
    return Comparison(groups, None if baseline is None else _baseline(groups, baseline), [*foreign.values(), *repeated])


def read(path: Path) -> list[Run]:
    """The run of a directory, or the runs of a log file.

    Raises:
        RunError: There is no such path, or as `read_run` and `read_log`.
    """
    if path.is_dir():
        return [read_run(path)]
    if not path.exists():
        raise missing_path(path)
    return read_log(path)


def _read_all(paths: Iterable[Path]) -> list[Run]:
    return _once(run for path in paths for run in read(path))


def _once(runs: Iterable[Run]) -> list[Run]:
    """Without what was named twice: a log's runs differ in configuration or seed, a directory holds one."""
    return list({(run.path.resolve(), run.key, run.seed): run for run in runs}.values())


def _group(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
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
    labels = [group[0].label for group in kept.values()]
    names = [label if labels.count(label) == 1 else f"{label}-{key}" for label, key in zip(labels, kept, strict=True)]
    return [Group(name, sorted(group, key=_seed)) for name, group in zip(names, kept.values(), strict=True)], repeated


def _seed(run: Run) -> float:
    return math.inf if run.seed is None else run.seed


def _baseline(groups: Sequence[Group], name: str) -> Group:
    for group in groups:
        if name == group.name or any(run.path.resolve() == Path(name).resolve() for run in group.runs):
            return group
    if Path(name).exists():  # its run was left out, as another one of its configuration and seed was named before
        wanted = read(Path(name))[0].key
        return next(group for group in groups if group.runs[0].key == wanted)
    by_name = {group.name: group for group in groups} | {str(run.path): group for group in groups for run in group.runs}
    raise RunError(f"--baseline {name}: neither a run nor a configuration{did_you_mean(name, by_name, count=3)}")
