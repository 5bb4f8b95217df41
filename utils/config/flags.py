"""The command line: `--config FILE` and one flag for every key of the configuration.

Here a text only becomes a value of its key's type; `utils.config.load` judges it together with the values of the file,
so that one message lists every problem. This module never imports torch.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict

import tyro

from utils.config.schema import schemas
from utils.config.wording import choices, describe
from utils.errors import ConfigError
from utils.json_file import parse as parse_json
from utils.text import shown

DESCRIPTION = "Class-incremental learning with SEMA and Nested LoRA: train a run for each seed, or --eval a checkpoint."
CONFIG_MEANING = "JSON file of the run, such as exps/quickstart.json; flags beat the file, the file beats the defaults"
SEVERAL = ("seed", "device")  # flags of more than one value; several devices are for config to refuse
TRUTH = {"true": True, "1": True, "false": False, "0": False}
FROM_TEXT: dict[str, Callable[[str], object]] = {
    "boolean": lambda text: TRUTH[text.lower()],
    "integer": int,
    "number": float,
    "object": parse_json,
    "string": str,
}
METAVARS = {"boolean": "{true,false}", "integer": "INT", "number": "FLOAT", "object": "JSON", "string": "TEXT"}


def parse(argv: Sequence[str]) -> tuple[Path | None, dict[str, object]]:
    """Read the command line. `--help` ends the process with code 0, a flag without its value with code 2.

    Args:
        argv: arguments without the program's name. In flags hyphens may stand for underscores; of a flag given twice
            the last counts.

    Returns:
        The file named by `--config`, and the keys the user gave and no others. A text that does not fit its key's type
        stays a text, and a flag that is no key is kept: `utils.config.schema.load` names both, with all other problems.

    Raises:
        ConfigError: an argument belongs to no flag.
    """
    grouped, rest = tyro.cli(
        _flags_type(),
        prog="main.py",
        description=DESCRIPTION,
        args=_with_truth(argv),
        use_underscores=True,
        return_unknown_args=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    path = grouped.pop("config", None)
    given = {key: _value(key, text) for group in grouped.values() for key, text in group.items()}
    return None if path is None else Path(path), given | _unknown(rest)


def _flags_type() -> Any:
    """A TypedDict of one TypedDict for each heading of `--help`; every flag is text, none is required."""
    groups: dict[str, dict[str, Any]] = {}
    for key, schema in schemas().items():
        groups.setdefault(schema["group"], {})[key] = _flag(key, schema)
    config = Annotated[str, tyro.conf.arg(help=CONFIG_MEANING, metavar="FILE", help_behavior_hint="")]
    return _typed_dict("Flags", {"config": config} | {name: _typed_dict(name, flags) for name, flags in groups.items()})


def _typed_dict(name: str, fields: dict[str, Any]) -> Any:
    return TypedDict(name, fields, total=False)  # type: ignore[operator]  # mypy wants the fields spelled out


def _flag(key: str, schema: dict[str, Any]) -> Any:
    """The type of one flag, with its line of `--help`: meaning, what is expected, default."""
    named = choices(schema)
    metavar = f"{{{','.join(named)}}}" if named else METAVARS[_type(schema)]
    hint = [describe(schema)] if "expected" in schema or _type(schema) in ("integer", "number") else []
    hint.append(f"default: {_plain(schema['default'])}" if "default" in schema else "required")
    several = key in SEVERAL
    argument = tyro.conf.arg(
        help=schema["description"],
        metavar=f"{metavar} [{metavar} ...]" if several else metavar,
        help_behavior_hint=f"({'; '.join(hint)})",
    )
    return Annotated[list[str] if several else str, argument]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else shown(value)


def _type(schema: dict[str, Any]) -> str:
    """JSON type of a key; the first where there are several, as in "an integer or null"."""
    return str(schema.get("anyOf", [schema])[0]["type"])


def _with_truth(argv: Sequence[str]) -> list[str]:
    """Write the value out where a flag of a boolean key stands alone: `--eval` is `--eval true`."""
    booleans = {f"--{key}" for key, schema in schemas().items() if _type(schema) == "boolean"}
    full: list[str] = []
    for argument, following in pairwise([*argv, "--"]):
        full.append(argument)
        if argument.replace("-", "_").replace("__", "--", 1) in booleans and following.startswith("--"):
            full.append("true")
    return full


def _value(key: str, text: str | list[str]) -> object:
    if isinstance(text, list):
        return [_value(key, item) for item in text]
    if text.lower() in ("none", "null") and {"type": "null"} in schemas()[key].get("anyOf", []):
        return None
    try:
        return FROM_TEXT[_type(schemas()[key])](text)
    except (ValueError, KeyError):
        return text


def _unknown(rest: Sequence[str]) -> dict[str, object]:
    """Flags that are no keys, each with the text that follows it.

    Raises:
        ConfigError: text that follows no flag.
    """
    flags: dict[str, object] = {}
    last: str | None = None
    for argument in rest:
        if argument.startswith("--"):
            name, _, text = argument.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            flags[name] = text or True
            last = None if text else name
        elif last is not None:
            flags[last], last = argument, None
        else:
            raise ConfigError(f"{shown(argument)}: belongs to no flag; values follow their flag, as in --batch_size 32")
    return flags
