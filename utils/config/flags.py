"""The command line: `--config FILE` and one flag for every key of the configuration.

Here a text only becomes a value of its key's type; `utils.config.load` judges it together with the values of the file,
so that one message lists every problem. This module never imports torch.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.schema import schemas
from utils.config.wording import choices, describe
from utils.errors import ConfigError
from utils.json_file import parse as parse_json
from utils.text import shown

DESCRIPTION = "Class-incremental learning with SEMA and Nested LoRA: train a run for each seed, or --eval a checkpoint."
USAGE = "main.py --config FILE [--key value ...]"
CONFIG_MEANING = "JSON file of the run, such as exps/quickstart.json; flags beat the file, the file beats the defaults"
PLUGIN_MEANING = (
    "your own Python file, which registers adapter types or learners (docs/extending.md); it is run, so it can be "
    "named here only, never in a configuration or a checkpoint; several may be given"
)
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


class CommandLine(NamedTuple):
    """What the command line says.

    Attributes:
        path: The file named by `--config`.
        flags: The keys the user gave and no others. A text that does not fit its key's type stays a text, and a flag
            that is no key is kept: `utils.config.load` names both, with all other problems.
    """

    path: Path | None
    flags: dict[str, object]


def plugins(argv: Sequence[str]) -> list[Path]:
    """The files named by `--plugin`, which add choices to other flags and so must be loaded before `parse`."""
    parser = argparse.ArgumentParser(prog="main.py", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", action="append", type=Path, default=[])
    found: list[Path] = parser.parse_known_args(_underscored(argv))[0].plugin
    return found


def parse(argv: Sequence[str]) -> CommandLine:
    """Read the command line. `--help` ends the process with code 0, a flag without its value with code 2.

    Args:
        argv: Arguments without the program's name. In flags hyphens may stand for underscores; of a flag given twice
            the last counts.

    Raises:
        ConfigError: An argument belongs to no flag.
    """
    known, rest = _parser().parse_known_args(_underscored(argv))
    given = vars(known)
    path, _ = given.pop("config", None), given.pop("plugin", None)
    return CommandLine(path, {key: _value(key, text) for key, text in given.items()} | _unknown(rest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="main.py",
        usage=USAGE,
        description=DESCRIPTION,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=CONFIG_MEANING)
    parser.add_argument("--plugin", action="append", type=Path, metavar="FILE", help=PLUGIN_MEANING)
    groups: dict[str, Any] = {}
    for key, schema in schemas().items():
        group = groups.setdefault(schema["group"], None) or parser.add_argument_group(schema["group"])
        groups[schema["group"]] = group
        _add(group, key, schema)
    return parser


def _add(group: Any, key: str, schema: dict[str, Any]) -> None:
    """One flag, with its line of `--help`: meaning, what is expected, default."""
    named, type_ = choices(schema), _type(schema)
    hint = [describe(schema)] if "expected" in schema or type_ in ("integer", "number") else []
    hint.append(f"default: {_plain(schema['default'])}" if "default" in schema else "required")
    # `--eval` alone is `--eval true`; an empty list of seeds is for the configuration to refuse
    number: dict[str, Any] = {"nargs": "*"} if key in SEVERAL else {}
    number |= {"nargs": "?", "const": "true"} if type_ == "boolean" else {}
    group.add_argument(
        f"--{key}",
        metavar=f"{{{','.join(named)}}}" if named else METAVARS[type_],
        help=f"{schema['description']} ({'; '.join(hint)})".replace("%", "%%"),
        **number,
    )


def _underscored(argv: Sequence[str]) -> list[str]:
    """The same arguments, flags with underscores."""
    full: list[str] = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        full.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if argument.startswith("--") else argument)
    return full


def _plain(value: object) -> str:
    return value if isinstance(value, str) else shown(value)


def _type(schema: dict[str, Any]) -> str:
    """JSON type of a key; the first where there are several, as in "an integer or null"."""
    return str(schema.get("anyOf", [schema])[0]["type"])


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
        ConfigError: A text follows no flag.
    """
    flags: dict[str, object] = {}
    last: str | None = None
    for argument in rest:
        if argument.startswith("--"):
            name, _, text = argument.removeprefix("--").partition("=")
            flags[name] = text or True
            last = None if text else name
        elif last is not None:
            flags[last], last = argument, None
        else:
            raise ConfigError(f"{shown(argument)}: belongs to no flag; values follow their flag, as in --batch_size 32")
    return flags
