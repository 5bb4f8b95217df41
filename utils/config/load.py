"""One configuration of flags, environment, file and defaults, or an error that lists every problem."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from utils.config.schema import DATA_ROOT_VARIABLE, Config, broken_checks, defaults, schemas
from utils.config.wording import choices, describe
from utils.errors import ConfigError
from utils.json_file import read_object
from utils.text import did_you_mean, shown, shown_key


def load(path: str | Path | None, flags: Mapping[str, object] | None = None) -> Config:
    """Merge flags over the file over the defaults, and validate the result once.

    Args:
        path: JSON file of the run; None: flags and defaults only.
        flags: keys given on the command line; an unknown one is reported like an unknown key of the file.

    Raises:
        ConfigError: with every problem of file and flags.
    """
    if path is None:
        return resolve({}, "the flags (no --config given)", flags)
    values, repeated = read_object(Path(path))
    return resolve(values, str(path), flags, [f"{shown_key(key)}: given twice in {path}; keep one" for key in repeated])


def resolve(
    values: Mapping[str, object], source: str, flags: Mapping[str, object] | None = None, problems: Sequence[str] = ()
) -> Config:
    """Merge flags and the environment over `values`, and validate the result once.

    Args:
        values: keys of a file or of a checkpoint.
        source: what messages call the place `values` came from.
        flags: keys given on the command line.
        problems: lines about `values` already known, to be reported with the others.

    Raises:
        ConfigError: with every problem, one line each.
    """
    flags = flags or {}
    root = os.environ.get(DATA_ROOT_VARIABLE)
    environment = {"data_root": root} if root else {}
    merged = {**values, **environment, **flags}
    sources = dict.fromkeys(values, source) | dict.fromkeys(environment, f"environment variable {DATA_ROOT_VARIABLE}")
    sources |= {key: f"flag --{shown_key(key)}" for key in flags}
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        lines = [*problems, *_problem_lines(error, merged, sources, source)]
        raise ConfigError("\n".join(lines)) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _problem_lines(
    error: ValidationError, values: Mapping[str, object], sources: Mapping[str, str], source: str
) -> list[str]:
    """One line for each invalid key, then one for each broken check between keys that are valid themselves."""
    by_key: dict[str, str] = {}
    for item in error.errors():
        if item["loc"]:  # otherwise the checks between keys, which are listed below
            key = str(item["loc"][0])
            by_key.setdefault(key, _problem_line(key, item, values, sources, source))
    valid = {key: value for key, value in {**defaults(), **values}.items() if key not in by_key}
    lines = list(by_key.values())
    for check in broken_checks(valid):
        given = [f"{key} = {shown(valid[key])} ({sources.get(key, 'default')})" for key in check.keys]
        lines.append(f"{', '.join(given)}: {check.reason}")
    return lines


def _problem_line(
    key: str, item: Mapping[str, Any], values: Mapping[str, object], sources: Mapping[str, str], source: str
) -> str:
    if item["type"] == "missing":
        return f"{key}: missing in {source}; expected {describe(schemas()[key])}"
    given = f"{shown_key(key)} = {shown(values[key])} ({sources[key]})"
    if item["type"] == "extra_forbidden":
        known = [*schemas(), "config"] if sources[key].startswith("flag") else schemas()
        return f"{given}: unknown key{did_you_mean(key, known)}"
    if item["type"] == "value_error":
        return f"{given}: {item['ctx']['error']}"
    return f"{given}: expected {describe(schemas()[key])}{did_you_mean(values[key], choices(schemas()[key]))}"
