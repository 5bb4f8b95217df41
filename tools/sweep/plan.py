"""Read and check a sweep file, and plan its runs.

    {
        "base": "../quickstart.json",                              a configuration; paths start at the sweep file
        "seeds": [1993, 1994, 1995],
        "changes": {"func_epoch": 2},                              for all members; optional
        "grid": {"nested_lora_update_interval_slow": [1, 5, 10]}   a member for each combination of values; or
        "list": [{"name": "a", "base": "../other.json", "changes": {"ffn_num": 8}}, ...]
    }

The first member is the baseline of the comparison. Changes act like flags of main.py: they override the base.
"""

import itertools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from utils.choices import PLUGINS
from utils.config.identity import result_hash
from utils.config.load import load
from utils.config.schema import Config
from utils.errors import ConfigError
from utils.files import expanded
from utils.json_file import read_object
from utils.runs.directory import RESULTS, run_name, runs_of
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
}

MOST_MEMBERS = 1000

Text = Annotated[str, Field(min_length=1)]
Changes = dict[str, JsonValue]


class Entry(BaseModel):
    """A member in a sweep file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    name: Text
    base: Text | None = None
    changes: Changes = {}


class SweepFile(BaseModel):
    """The content of a sweep file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    base: Text
    seeds: JsonValue
    changes: Changes = {}
    grid: Annotated[dict[str, Annotated[list[JsonValue], Field(min_length=1)]], Field(min_length=1)] | None = None
    entries: Annotated[list[Entry], Field(min_length=1)] | None = Field(None, alias="list")

    def members(self) -> list[Entry]:
        """Return the listed members, or one for each combination of values in the grid."""
        if self.grid is None:
            return self.entries or []
        members = []
        for values in itertools.product(*self.grid.values()):
            changes = dict(zip(self.grid, values, strict=True))
            named = {key.removeprefix("nested_lora_"): _flag_text(value) for key, value in changes.items()}
            members.append(Entry(name=", ".join(map("=".join, named.items())), changes=changes))
        return members


@dataclass(frozen=True)
class Member:
    """One configuration of a sweep.

    Attributes:
        name: Its name in the comparison.
        base: Its configuration file.
        changes: The keys that override the file.
        config: Both together, with the seeds and the output directory of the sweep.
    """

    name: str
    base: Path
    changes: Mapping[str, object]
    config: Config


@dataclass(frozen=True)
class PlannedRun:
    """One seed of one member."""

    member: Member
    seed: int

    @property
    def name(self) -> str:
        """The name of its directory."""
        return run_name(self.member.config, self.member.base.stem, self.seed)

    def finished(self) -> Path | None:
        """Return the directory with its results, or with those of a run that differs in its name only."""
        folder = Path(self.member.config.output_dir)
        equal = runs_of(self.member.config, self.seed)
        return next((path for path in [folder / self.name, *equal] if (path / RESULTS).exists()), None)

    def command(self) -> list[str]:
        """Return the command that starts or resumes it."""
        values = self.member.config.model_dump(mode="json")
        flags = {key: values[key] for key in [*self.member.changes, "output_dir"]} | {"seed": self.seed}
        texts = ["--auto_resume=true", *(f"--{key}={_flag_text(value)}" for key, value in flags.items())]
        plugins = [word for plugin in PLUGINS for word in ("--plugin", str(plugin.path))]
        return [sys.executable, str(PROJECT / "main.py"), *plugins, "--config", str(self.member.base), *texts]


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
    sweep = _read_file(path)
    common = {"output_dir": output_dir, "seed": list(seeds) if seeds else sweep.seeds}
    members: list[Member] = []
    names: dict[str, list[str]] = {}  # of the members with a problem
    for entry in sweep.members():
        base = Path(os.path.normpath(path.parent / expanded(entry.base or sweep.base)))
        changes = sweep.changes | entry.changes
        lines = [f"{key}: a sweep cannot change it: {RESERVED[key]}" for key in changes if key in RESERVED]
        try:
            members.append(Member(entry.name, base, changes, load(base, {**changes, **common})))
            lines += [f"{base}: eval = true: {RESERVED['eval']}"] if members[-1].config.eval else []
        except ConfigError as error:
            lines += str(error).splitlines()
        for line in lines:
            names.setdefault(line, []).append(entry.name)
    problems = [f"{' | '.join(who)}: {line}" for line, who in names.items()]
    if problems := [*problems, *_repeated(members)]:
        raise ConfigError("\n".join(problems))
    return [PlannedRun(member, seed) for seed in members[0].config.seed for member in members]


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


def _read_file(path: Path) -> SweepFile:
    values, repeated = read_object(path)
    problems = [f"{path}: {key}: given twice; keep one" for key in repeated]
    try:
        sweep = SweepFile.model_validate(values)
        if (sweep.grid is None) == (sweep.entries is None):
            problems.append(f'{path}: expected either "grid" or "list"')
        if (count := math.prod(map(len, (sweep.grid or {}).values()))) > MOST_MEMBERS:
            problems.append(f"{path}: grid: {count} combinations of values; expected at most {MOST_MEMBERS}")
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
        model = Entry if len(item["loc"]) > 1 else SweepFile
        keys = [field.alias or name for name, field in model.model_fields.items()]
        return f"{place}: unknown key{did_you_mean(item['loc'][-1], keys)}"
    return f"{place} = {shown(item['input'])}: {item['msg'].lower()}"
