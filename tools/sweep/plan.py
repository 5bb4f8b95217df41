"""A sweep file, checked whole before anything runs, and the runs it asks for.

    {
        "base": "../quickstart.json",                              a configuration, seen from the sweep file's folder
        "seeds": [1993, 1994, 1995],
        "changes": {"func_epoch": 2},                              of every member; may be left out
        "grid": {"nested_lora_update_interval_slow": [1, 5, 10]}   a member for each combination of values; or
        "list": [{"name": "a", "base": "../other.json", "changes": {"ffn_num": 8}}, ...]
    }

The first member is what the others are compared with. A member's changes are flags of main.py: they beat its base.
"""

import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from utils.choices import PLUGINS
from utils.config.identity import result_hash
from utils.config.load import load
from utils.config.schema import Config
from utils.errors import ConfigError
from utils.json_file import read_object
from utils.runs.directory import RESULTS, run_name
from utils.runs.environment import PROJECT
from utils.text import did_you_mean, shown

RESERVED = {
    "seed": 'the sweep\'s own key "seeds" names them',
    "output_dir": "all runs of a sweep lie in one folder, which the flag --output_dir names",
    "overwrite": "a sweep keeps what is finished",
    "resume": "a sweep goes on with what is unfinished",
    "auto_resume": "a sweep goes on with what is unfinished",
    "eval": "a sweep trains",
    "checkpt_path": "a sweep trains",
}

MOST_MEMBERS = 1000

Text = Annotated[str, Field(min_length=1)]
Changes = dict[str, JsonValue]


class Entry(BaseModel):
    """A member as a sweep file lists it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    name: Text
    base: Text | None = None
    changes: Changes = {}


class SweepFile(BaseModel):
    """What a sweep file holds."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    base: Text
    seeds: JsonValue
    changes: Changes = {}
    grid: Annotated[dict[str, Annotated[list[JsonValue], Field(min_length=1)]], Field(min_length=1)] | None = None
    entries: Annotated[list[Entry], Field(min_length=1)] | None = Field(None, alias="list")


@dataclass(frozen=True)
class Member:
    """One configuration of a sweep.

    Attributes:
        name: What the comparison calls it.
        base: Its configuration file.
        changes: The keys given beside the file.
        config: Both together, with the sweep's seeds and output directory.
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
        """The directory that holds its results, under whatever configuration's name they were computed."""
        folder = Path(self.member.config.output_dir)
        own = folder / self.name
        equal = sorted(folder.glob(f"*-{result_hash(self.member.config)}-s{self.seed}"))
        return next((path for path in [own, *equal] if (path / RESULTS).exists()), None)

    def command(self) -> list[str]:
        """How main.py is called to make it, or to go on with it."""
        values = self.member.config.model_dump(mode="json")
        flags = {key: values[key] for key in self.member.changes}
        flags |= {"seed": self.seed, "output_dir": values["output_dir"]}
        texts = ["--auto_resume=true", *(f"--{key}={_flag_text(value)}" for key, value in flags.items())]
        plugins = [word for plugin in PLUGINS for word in ("--plugin", str(plugin.path))]
        return [sys.executable, str(PROJECT / "main.py"), *plugins, "--config", str(self.member.base), *texts]


def _flag_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_plan(path: Path, output_dir: str, seeds: Sequence[int] | None = None) -> list[PlannedRun]:
    """Read a sweep file and check every configuration that follows from it.

    Args:
        path: The sweep file.
        output_dir: Folder of the run directories.
        seeds: In place of the file's.

    Returns:
        Every member's first seed, in the order of the file, then every member's second, and so on.

    Raises:
        ConfigError: With every problem of file and members, one line each.
    """
    sweep = _read_file(path)
    common = {"output_dir": output_dir, "seed": list(seeds) if seeds else sweep.seeds}
    members, problems = _members(path, sweep, common)
    problems += _repeated(members)
    if problems:
        raise ConfigError("\n".join(problems))
    return [PlannedRun(member, seed) for seed in members[0].config.seed for member in members]


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
    """Pydantic's finding as a line: `list[0].nmae: unknown key; did you mean name?`."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).removeprefix(".")
    if item["type"] == "missing":
        return f"{place}: missing"
    if item["type"] == "extra_forbidden":
        model = Entry if len(item["loc"]) > 1 else SweepFile
        keys = [field.alias or name for name, field in model.model_fields.items()]
        return f"{place}: unknown key{did_you_mean(item['loc'][-1], keys)}"
    return f"{place} = {shown(item['input'])}: {item['msg'].lower()}"


def _entries(sweep: SweepFile) -> Iterator[Entry]:
    """The members as if they were all listed."""
    if sweep.entries is not None:
        yield from sweep.entries
    grid = sweep.grid or {}
    for values in itertools.product(*grid.values()) if grid else ():
        changes = dict(zip(grid, values, strict=True))
        name = ", ".join(f"{key.removeprefix('nested_lora_')}={_flag_text(value)}" for key, value in changes.items())
        yield Entry(name=name, changes=changes)


def _members(path: Path, sweep: SweepFile, common: Mapping[str, object]) -> tuple[list[Member], list[str]]:
    """The members that are valid, and a line for each problem of the others, with the names of those that have it."""
    members: list[Member] = []
    who: dict[str, list[str]] = {}
    for entry in _entries(sweep):
        changes = {**sweep.changes, **entry.changes}
        base = Path(os.path.normpath(path.parent / (entry.base or sweep.base)))
        lines = [f"{key}: not for a sweep to change: {RESERVED[key]}" for key in changes if key in RESERVED]
        try:
            member = Member(entry.name, base, changes, load(base, {**changes, **common}))
            lines += [f"{base}: eval = true: {RESERVED['eval']}"] if member.config.eval else []
            members.append(member)
        except ConfigError as error:
            lines += str(error).splitlines()
        for line in lines:
            who.setdefault(line, []).append(entry.name)
    return members, [f"{' | '.join(names)}: {line}" for line, names in who.items()]


def _repeated(members: Iterable[Member]) -> Iterator[str]:
    """Members that share their name, or their results."""
    names: set[str] = set()
    by_hash: dict[str, str] = {}
    for member in members:
        if member.name in names:
            yield f"{member.name}: two members have this name"
        names.add(member.name)
        twin = by_hash.setdefault(result_hash(member.config), member.name)
        if twin != member.name:
            yield f"{member.name}: the same runs as {twin}: what it changes cannot change a result, or changes nothing"
