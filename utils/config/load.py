"""Merge flags, environment, file and defaults into one configuration, or raise an error that lists every problem."""

import logging
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from utils.config.flags import entry_of, from_text
from utils.config.identity import idle_keys
from utils.config.schema import DATA_ROOT_VARIABLE, OLD_NAMES, Config, broken_checks, defaults, renamed, schemas
from utils.config.wording import choices, describe
from utils.errors import ConfigError
from utils.json_file import read_object
from utils.text import did_you_mean, shown, shown_key

logger = logging.getLogger(__name__)
Warn = Callable[[str], object]
FLAG = "flag --{}"  # how a message names a key that was given on the command line


def load(
    path: str | Path | None,
    flags: Mapping[str, object] | None = None,
    warn: Warn = logger.warning,
    named: str = FLAG,
) -> Config:
    """Merge flags over a JSON file (None: no file) over the defaults, and validate the result, see `resolve`.

    Raises:
        ConfigError: One line for each problem of file and flags, unknown keys included.
    """
    if path is None:
        return resolve({}, "the flags (no --config given)", flags, (), warn, named)
    values, repeated = read_object(Path(path))
    if {"base", "seeds"} <= values.keys():
        raise ConfigError(
            f"{path}: a sweep file, not a configuration; run it: python -m tools.sweep {shlex.quote(str(path))}"
        )
    problems = [f"{shown_key(key)}: given twice in {path}; keep one" for key in repeated]
    return resolve(values, str(path), flags, problems, warn, named, on_record=False)


def resolve(
    values: Mapping[str, object],
    source: str,
    flags: Mapping[str, object] | None = None,
    problems: Sequence[str] = (),
    warn: Warn = logger.warning,
    named: str = FLAG,
    on_record: bool = True,
) -> Config:
    """Merge flags and the environment over `values`, and validate the result.

    Args:
        values: Keys of a file or of a checkpoint.
        source: Name of the file or checkpoint in messages.
        flags: Keys given on the command line; `KEY.ENTRY` sets one entry of a key that is an object.
        problems: Known problems of `values`, to be reported with the others.
        warn: Called with a sentence about the given keys that have no effect.
        named: Name of a flag in messages.
        on_record: Whether `values` are of a run or checkpoint, whose keys without effect nobody has to hear of.

    Raises:
        ConfigError: One line for each problem.
    """
    lines = list(problems)
    for layer in (values, flags or {}):
        both = {old: new for old, new in OLD_NAMES.items() if old in layer and new in layer}
        lines += [f"{old}: the old name of {new}, which is given too; keep one" for old, new in both.items()]
    for old, new in OLD_NAMES.items() if not on_record else ():
        if old in values and new not in renamed(values):
            warn(f"{old} = {shown(values[old])} ({source}): ignored, as it was always for these adapters; see {new}")
    values, flags = renamed(values), renamed(flags or {})
    root = os.environ.get(DATA_ROOT_VARIABLE)
    environment = {"data_root": root} if root else {}
    merged = _over({**values, **environment}, flags)
    sources = dict.fromkeys(values, source) | dict.fromkeys(environment, f"environment variable {DATA_ROOT_VARIABLE}")
    by_flag = {entry_of(key)[0]: named.format(shown_key(key)) for key in flags}
    sources |= by_flag
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        invalid: dict[str, str] = {}
        for item in error.errors():
            if item["loc"]:  # an item without a place is from the checks between keys, see below
                key = str(item["loc"][0])
                invalid.setdefault(key, _problem(key, item, merged, sources.get(key, source)))
        valid = {key: value for key, value in {**defaults(), **merged}.items() if key not in invalid}
        lines += invalid.values()
        for check in broken_checks(valid):
            given = [f"{key} = {shown(valid[key])} ({sources.get(key, 'default')})" for key in check.keys]
            lines.append(f"{', '.join(given)}: {check.reason}")
    if lines:
        raise ConfigError("\n".join(lines))
    usual, reasons = defaults(), idle_keys(config.model_dump(mode="json"))
    ignored: dict[str, list[str]] = {}
    for key in (by_flag if on_record else sources).keys() & reasons.keys():
        if getattr(config, key) != usual[key]:
            ignored.setdefault(reasons[key], []).append(f"{key} = {shown(merged[key])} ({sources[key]})")
    for reason, given in sorted(ignored.items()):
        warn(f"{', '.join(sorted(given))}: ignored, as {reason}")
    return config


def _over(values: Mapping[str, object], flags: Mapping[str, object]) -> dict[str, object]:
    """Return the values with flags over them; warn of an object that loses entries to another."""
    merged = dict(values)
    for key, value in sorted(flags.items(), key=lambda flag: entry_of(flag[0])[1] is not None):
        whole, entry = entry_of(key)
        before = merged.get(whole, {})
        if entry is None:
            merged[key] = value
        elif isinstance(before, Mapping):
            merged[whole] = {**before, entry: value}
    for key, before in values.items():
        after = merged[key]
        if isinstance(before, Mapping) and isinstance(after, Mapping) and (lost := before.keys() - after.keys()):
            one = f"--{key}.{next(iter(after), 'ENTRY')} sets one entry and keeps the others"
            gone = ", ".join(f"{entry} = {shown(before[entry])}" for entry in before if entry in lost)
            logger.warning("%s is replaced as a whole, without %s; %s", key, gone, one)
    return merged


def _problem(key: str, item: Mapping[str, Any], values: Mapping[str, object], source: str) -> str:
    """Return the line for one invalid key."""
    if item["type"] == "missing":
        return f"{key}: missing in {source}; expected {describe(schemas()[key])}"
    given = f"{shown_key(key)} = {shown(values[key])} ({source})"
    if item["type"] == "extra_forbidden":
        known = [*schemas(), "config"] if source.startswith(FLAG.format("")) else schemas()
        return f"{given}: unknown key{did_you_mean(key, known)}"
    if item["type"] == "value_error":
        return f"{given}: {item['ctx']['error']}"
    near = did_you_mean(values[key], choices(schemas()[key])) or _unquoted(key, values[key])
    return f"{given}: expected {describe(schemas()[key])}{near}"


def _unquoted(key: str, value: object) -> str:
    """Return a remark on text in a file that a flag would have converted, such as "1e-3"."""
    converted = from_text(key, value) if isinstance(value, str) else value
    unusable = converted == value or (isinstance(converted, float) and not math.isfinite(converted))
    return "" if unusable else f"; did you mean {shown(converted)}, without quotes?"
