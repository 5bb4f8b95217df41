"""Read and check a sweep file, and plan its runs.

    {
        "base": "../quickstart.json",                              a configuration; paths start at the sweep file
        "seeds": [1993, 1994, 1995],
        "changes": {"func_epoch": 2},                              for all members; optional
        "grid": {"nested_lora_update_interval_slow": [1, 5, 10]}   a member for each combination of values; or
        "list": [{"name": "a", "base": "../other.json", "changes": {"ffn_num": 8}}, ...],
        "search": {...}                                            see `tools.sweep.search`; optional
    }

With both, there is a member for each of the list at each point of the grid, such as `a, update_interval_slow=1`. The
first member is the baseline of the comparison. Changes act like flags of main.py: they override the base.
"""

import itertools
import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from utils.choices import PLUGINS
from utils.config.flags import entry_of
from utils.config.identity import LOCATIONS, result_hash
from utils.config.load import load
from utils.config.schema import Config
from utils.config.values import PathText, Text
from utils.errors import ConfigError
from utils.json_file import read_object
from utils.runs.directory import RESULTS, can_resume, run_name, runs_of
from utils.runs.environment import PROJECT
from utils.text import did_you_mean, shown

RESERVED = {
    "seed": 'seeds belong under the key "seeds" of the sweep',
    "output_dir": "all runs of a sweep are in one folder, given by the flag --output_dir",
    "overwrite": "a sweep keeps finished runs",
    "resume": "a sweep resumes unfinished runs",
    "auto_resume": "a sweep resumes unfinished runs",
    "eval": "a sweep trains",
    "checkpt_path": "a sweep trains",
    "dry_run": "use the flag --dry-run of the sweep",
    "plan": "use the flag --plan of the sweep",
}
REFUSED_IN_A_BASE = ("eval", "resume", "dry_run", "plan")

MOST_MEMBERS = 1000

Changes = dict[str, JsonValue]
Grid = Annotated[dict[str, Annotated[list[JsonValue], Field(min_length=1)]], Field(min_length=1)]


class OwnSearch(BaseModel):
    """What a member searches instead of the grid of the file's search."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    grid: Grid


class SearchFile(BaseModel):
    """The search of a sweep file; `tools.sweep.search` says what it means."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    seeds: JsonValue
    changes: Changes = {}
    grid: Grid | None = None
    points: Annotated[int, Field(ge=1)] | None = None
    measure: Literal["avg_inc_acc", "last_acc"] = "avg_inc_acc"
    rungs: Annotated[list[Changes], Field(min_length=1)] = [{}]
    keep: Annotated[float, Field(gt=0, lt=1)] = 1 / 3


class Entry(BaseModel):
    """A member in a sweep file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    name: Text
    base: PathText | None = None
    changes: Changes = {}
    search: OwnSearch | None = None


class SweepFile(BaseModel):
    """The content of a sweep file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    base: PathText
    seeds: JsonValue
    changes: Changes = {}
    grid: Grid | None = None
    entries: Annotated[list[Entry], Field(min_length=1)] | None = Field(None, alias="list")
    search: SearchFile | None = None

    def members(self) -> list[Entry]:
        """Return the listed members, each of them at each combination of values in the grid, or these alone."""
        if self.grid is None:
            return self.entries or []
        listed: Sequence[Entry | None] = self.entries or [None]
        members = []
        for entry, changes in itertools.product(listed, combinations(self.grid)):
            name = ", ".join([*([entry.name] if entry else []), named(changes)])
            base, own, search = (entry.base, entry.changes, entry.search) if entry else (None, {}, None)
            members.append(Entry(name=name, base=base, changes={**own, **changes}, search=search))
        return members


def combinations(grid: Grid) -> list[Changes]:
    """Return every combination of the values of a grid; the last key changes first."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def named(changes: Changes) -> str:
    """Return keys with their values as a name: `rank=8, lr_fast=0.01`."""
    return ", ".join(f"{key.removeprefix('nested_lora_')}={_flag_text(value)}" for key, value in changes.items())


@dataclass(frozen=True)
class Member:
    """One configuration of a sweep.

    Attributes:
        name: Its name in the comparison.
        base: Its configuration file.
        changes: The keys that override the file.
        config: Both together, with the seeds and the output directory of the sweep.
        ignored: What `load` says about keys without effect.
    """

    name: str
    base: Path
    changes: Mapping[str, object]
    config: Config
    ignored: Sequence[str] = ()

    def command(self, seeds: Sequence[int]) -> list[str]:
        """Return the command that starts or resumes the runs of some seeds."""
        values = self.config.model_dump(mode="json")
        changed = dict.fromkeys(entry_of(key)[0] for key in self.changes)
        flags = {key: values[key] for key in [*changed, "output_dir"]}
        texts = ["--auto_resume=true", *(f"--{key}={_flag_text(value)}" for key, value in flags.items())]
        plugins = [f"--plugin={plugin.path}" for plugin in PLUGINS]
        start = [sys.executable, str(PROJECT / "main.py"), *plugins, f"--config={self.base}"]
        return [*start, "--seed", *map(str, seeds), *texts]


@dataclass(frozen=True)
class PlannedRun:
    """One seed of one member."""

    member: Member
    seed: int

    @property
    def name(self) -> str:
        """The name of its directory."""
        return run_name(self.member.config, self.member.base.stem, self.seed)

    def _equal(self) -> list[Path]:
        """The directories of this run: under its own name, then under any other."""
        folder = Path(self.member.config.output_dir)
        return [folder / self.name, *runs_of(self.member.config, self.seed)]

    def finished(self) -> Path | None:
        """Return the directory with its results, or with those of a run that differs in its name only."""
        return next((path for path in self._equal() if (path / RESULTS).exists()), None)

    def resumes(self) -> bool:
        """Return whether it has a saved state from which it would go on."""
        return any(map(can_resume, self._equal()))

    def command(self) -> list[str]:
        """Return the command that starts or resumes it."""
        return self.member.command([self.seed])


def _flag_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_plan(path: Path, output_dir: str, seeds: Sequence[int] | None = None) -> list[PlannedRun]:
    """Read a sweep file and check every configuration in it.

    Args:
        path: The sweep file.
        output_dir: Folder of the run directories.
        seeds: Used instead of those of the file.

    Returns:
        The first seed of every member, in the order of the file, then the second of every member, and so on.

    Raises:
        ConfigError: With every problem of the file and its members, one line each.
    """
    sweep = read_sweep(path)
    if sweep.search or any(entry.search for entry in sweep.members()):
        raise ConfigError(f"{path}: it has a search; add --select val, which chooses its values before it trains")
    return plan_of(path, sweep, sweep.members(), output_dir, list(seeds) if seeds else sweep.seeds)


def plan_of(
    path: Path, sweep: SweepFile, entries: Sequence[Entry], output_dir: str, seeds: JsonValue
) -> list[PlannedRun]:
    """Return the runs of some members of a sweep file, as `read_plan` does."""
    common = {"output_dir": output_dir, "seed": seeds}
    members: list[Member] = []
    problems: list[tuple[str, str]] = []
    for entry in entries:
        base = Path(os.path.normpath(path.parent / (entry.base or sweep.base)))
        changes = sweep.changes | entry.changes
        lines = [f"{key}: a sweep cannot change it: {RESERVED[key]}" for key in changes if key in RESERVED]
        if not base.exists():
            given = shown(entry.base or sweep.base)
            lines.append(f"base = {given}: a base starts at the sweep file, in {path.absolute().parent}")
        idle: list[str] = []
        try:
            members.append(Member(entry.name, base, changes, load(base, {**changes, **common}, idle.append), idle))
            values = members[-1].config.model_dump()
            wrong = [key for key in REFUSED_IN_A_BASE if values[key]]
            lines += [f"{base}: {key} = {shown(values[key])}: {RESERVED[key]}" for key in wrong]
        except ConfigError as error:
            lines += str(error).splitlines()
        problems += [(entry.name, line) for line in lines]
    if problems or _repeated(members):
        raise ConfigError("\n".join([*joined(problems), *_repeated(members)]))
    return [PlannedRun(member, seed) for seed in members[0].config.seed for member in members]


def joined(problems: Iterable[tuple[str, str]]) -> list[str]:
    """Return each problem once, as `member | member: problem`."""
    names: dict[str, list[str]] = {}
    for name, line in problems:
        names.setdefault(line, []).append(name)
    return [f"{' | '.join(who)}: {line}" for line, who in names.items()]


def ignored(plan: Sequence[PlannedRun]) -> list[str]:
    """Return a line for each base that names another output folder than that of the sweep, and for keys not used."""
    lines = []
    for base in dict.fromkeys(planned.member.base for planned in plan):
        folder, ours = read_object(base)[0].get("output_dir"), plan[0].member.config.output_dir
        if isinstance(folder, str) and Path(folder) != Path(ours):
            lines.append(
                f"{base}: its output_dir {shown(folder)} is not used; the runs go to {ours}, "
                "which --output_dir of the sweep changes"
            )
    members = {planned.member.name: planned.member for planned in plan}.values()
    return lines + joined((member.name, line) for member in members for line in member.ignored)


def misplaced(plan: Sequence[PlannedRun]) -> list[str]:
    """Return a line for each path of data or weights that is not found from here, but from a folder above its base."""
    lines: dict[str, None] = {}
    for member in (planned.member for planned in plan):
        for key in LOCATIONS:
            path = getattr(member.config, key)
            above = [] if path is None or os.path.exists(path) else member.base.absolute().parents
            if there := next((folder for folder in above if (folder / path).exists()), None):
                start = f"a relative path starts at the working directory, {Path.cwd()}; start the sweep in {there}"
                lines[f"{key} = {shown(path)} ({member.base}): not found; {start}"] = None
    return list(lines)


def _repeated(members: Sequence[Member]) -> list[str]:
    """A line for each name that members share, and for each member with the results of another."""
    counts = Counter(member.name for member in members)
    lines = [f"{name}: {count} members have this name" for name, count in counts.items() if count > 1]
    first: dict[str, str] = {}  # member of each hash
    for member in members:
        twin = first.setdefault(result_hash(member.config), member.name)
        if twin != member.name:
            lines.append(f"{member.name}: the same runs as {twin}: its changes have no effect on the results")
    return lines


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file; raise ConfigError with every problem of the file, but not of its configurations."""
    values, repeated = read_object(path)
    if "dataset" in values and not values.keys() & {"base", "grid", "list"}:
        how = f"to train it: python main.py --config {shlex.quote(str(path))}"
        raise ConfigError(
            f"{path}: the configuration of a run, not a sweep file, which has base, seeds and more; {how}"
        )
    problems = [f"{path}: {key}: given twice; keep one" for key in repeated]
    try:
        sweep = SweepFile.model_validate(values)
        if sweep.grid is None and sweep.entries is None:
            problems.append(f'{path}: expected "grid" or "list", or both')
        searched = [entry.search.grid for entry in sweep.entries or () if entry.search]
        times = len(sweep.entries or [None])
        grids = [(sweep.grid, times), (sweep.search and sweep.search.grid, 1), *((grid, 1) for grid in searched)]
        for grid, members in grids:
            if (count := members * math.prod(map(len, (grid or {}).values()))) > MOST_MEMBERS:
                problems.append(f"{path}: grid: {count} combinations of values; expected at most {MOST_MEMBERS}")
        for number, entry in enumerate(sweep.entries or []):
            both = entry.changes.keys() & (sweep.grid or {}).keys()
            problems += [f"{path}: list[{number}].changes.{key}: also in the grid; keep one" for key in sorted(both)]
    except ValidationError as error:
        problems += [f"{path}: {_problem(item)}" for item in error.errors()]
    if problems:
        raise ConfigError("\n".join(problems))
    return sweep


def _problem(item: Mapping[str, Any]) -> str:
    """An error of pydantic as a line: `list[0].nmae: unknown key; did you mean name?`."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).removeprefix(".")
    if item["type"] == "missing":
        return f"{place}: missing"
    if item["type"] == "extra_forbidden":
        models: dict[tuple[str, ...], type[BaseModel]] = {
            (): SweepFile, ("list",): Entry, ("list", "search"): OwnSearch, ("search",): SearchFile
        }  # fmt: skip
        model = models[tuple(part for part in item["loc"][:-1] if isinstance(part, str))]
        keys = [field.alias or name for name, field in model.model_fields.items()]
        key, otherwise = item["loc"][-1], f"; expected one of {', '.join(keys)}"
        if key in Config.model_fields:
            otherwise = f"; {RESERVED.get(key, 'the keys of a configuration belong under changes')}"
        return f"{place}: unknown key{did_you_mean(key, keys) or otherwise}"
    problem = item["ctx"]["error"] if item["type"] == "value_error" else item["msg"].lower()
    return f"{place} = {shown(item['input'])}: {problem}"
