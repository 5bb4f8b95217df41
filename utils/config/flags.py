"""The command line: `--config FILE`, and one flag for every key of the configuration.

Flags are only converted to the type of their key here. `utils.config.load` validates them together with the file, so
that one message lists every problem. This module never imports torch.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from utils.config.schema import COMMANDS, schemas
from utils.config.wording import choices, describe, effect
from utils.errors import ConfigError
from utils.files import expanded, path_argument
from utils.json_file import parse as parse_json
from utils.text import did_you_mean, listed, shown

DESCRIPTION = (
    "Class-incremental learning with SEMA and Nested LoRA: train a run for each seed; or --eval or --export a "
    "checkpoint, or --predict images with it."
)
USAGE = "main.py --config FILE [--key value ...]"
CONFIG_MEANING = "JSON file of the run, such as exps/quickstart.json; flags override the file, the file the defaults"
PLUGIN_MEANING = (
    "a Python file of your own that registers adapter types or learners (docs/extending.md); it is executed, so it can "
    "be given only here, not in a configuration or a checkpoint; may be given several times"
)
HELP_MEANING = "show the keys that are used most; all: every key; or the name of a key: all about it"
MORE = (
    "These are {} of {} keys. `main.py --help all` shows every key, `main.py --help KEY` what is known of one; "
    "docs/keys.md has the same in tables."
)
WIDEST_METAVAR = 40  # characters; longer lists of choices are written into the help of their flag
SEVERAL = ("seed", "device", "predict", "readouts", "nested_lora_train")  # flags that take several values
TRUTH = {"true": True, "1": True, "false": False, "0": False}
WORDS = {"true": True, "false": False, "none": None, "null": None}  # values of an entry, in any case
FROM_TEXT: dict[str, Callable[[str], object]] = {
    "boolean": lambda text: TRUTH[text.lower()],
    "integer": int,
    "number": float,
    "object": parse_json,
    "string": str,
    "path": expanded,
}
METAVARS = {
    "boolean": "{true,false}", "integer": "INT", "number": "FLOAT", "object": "JSON", "string": "TEXT", "path": "PATH"
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Says how a value is given that begins with a hyphen, which argparse takes for a flag."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        flag = re.match("argument (--[^:,]+): expected one argument", message)
        super().error(f"{message}; if its value begins with a hyphen: {flag[1]}=-value" if flag else message)


class CommandLine(NamedTuple):
    """The parsed command line.

    Attributes:
        path: The file given by `--config`.
        flags: The given keys only. Values that do not fit their key's type stay text, and unknown flags are kept:
            `utils.config.load` reports them.
    """

    path: Path | None
    flags: dict[str, object]


def plugins(argv: Sequence[str]) -> list[Path]:
    """Return the files given by `--plugin`. They add choices to other flags, so load them before `parse`."""
    parser = Parser(prog="main.py", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", action="append", type=path_argument, default=[])
    found: list[Path] = parser.parse_known_args(_underscored(argv))[0].plugin
    return found


def parse(argv: Sequence[str]) -> CommandLine:
    """Parse the command line. `--help` exits with code 0, a flag without its value with code 2.

    Args:
        argv: Arguments without the program's name. Flags may have hyphens instead of underscores. If a flag is given
            twice, the last one counts.

    Raises:
        ConfigError: An argument belongs to no flag, or `--help` is asked for an unknown key.
    """
    argv = _underscored(argv)
    _help_if_asked(argv)
    known, rest = _parser(schemas()).parse_known_args(argv)
    given = vars(known)
    path, _ = given.pop("config", None), given.pop("plugin", None)
    return CommandLine(path, {key: from_text(key, text) for key, text in given.items()} | _unknown(rest))


def _parser(keys: Mapping[str, dict[str, Any]], epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with a flag for each key, in groups; those that say what to do come first."""
    parser = Parser(
        prog="main.py",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=epilog,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {COMMANDS: parser.add_argument_group(COMMANDS)}
    add = groups[COMMANDS].add_argument
    add("--config", type=path_argument, metavar="FILE", help=CONFIG_MEANING)
    add("--plugin", action="append", type=path_argument, metavar="FILE", help=PLUGIN_MEANING)
    add("-h", "--help", nargs="?", metavar="KEY", help=HELP_MEANING)
    for key, schema in keys.items():
        if (name := schema["group"]) not in groups:
            groups[name] = parser.add_argument_group(name)
        _add(groups[name], key, schema)
    return parser


def _help_if_asked(argv: Sequence[str]) -> None:
    """Print the help that is asked for and exit: the first keys, all keys, or one key."""
    asker = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asker.add_argument("-h", "--help", nargs="?", const="")
    asked, keys = asker.parse_known_args(argv)[0].help, schemas()
    if asked is None:
        return
    if asked == "all":
        shown_keys, more = keys, None
    elif asked:
        key = asked.removeprefix("--").replace("-", "_")
        if key not in keys:
            parts = [name for name in keys if key.lower() in name]
            near = f"; keys with it in their name: {listed(parts)}" if parts else ""
            raise ConfigError(f"--help {asked}: unknown key{near or did_you_mean(key, ['all', *keys], count=3)}")
        print(_one_key(key, keys[key]))
        sys.exit(0)
    else:
        shown_keys = {key: schema for key, schema in keys.items() if schema["first"] or schema["group"] == COMMANDS}
        more = MORE.format(len(shown_keys), len(keys))
    _parser(shown_keys, more).print_help()
    sys.exit(0)


def _one_key(key: str, schema: Mapping[str, Any]) -> str:
    """Return what is known of a key."""
    default = shown(schema["default"]) if "default" in schema else "none, it is required"
    facts = {
        "meaning": schema["description"],
        "expected": describe(schema),
        "default": default,
        "group": schema["group"],
        "can change a result": effect(schema),
    }
    lines = (textwrap.fill(f"{name}: {fact}", 78, subsequent_indent="    ") for name, fact in facts.items())
    return f"--{key}\n" + textwrap.indent("\n".join(lines), "  ")


def _add(group: Any, key: str, schema: dict[str, Any]) -> None:
    """Add a flag, with meaning, expected values and default in its help."""
    type_, metavar = _type(schema), f"{{{','.join(choices(schema))}}}"
    if wide := (not choices(schema) or len(metavar) > WIDEST_METAVAR):
        metavar = METAVARS[type_]
    bounded = type_ in ("integer", "number") or (wide and choices(schema))
    hint = [describe(schema)] if "expected" in schema or bounded else []
    default = schema.get("default")
    plain = default if isinstance(default, str) else shown(default)
    hint.append(f"default: {plain}" if "default" in schema else "required")
    number: dict[str, Any] = {"nargs": "*"} if key in SEVERAL else {}
    if type_ == "boolean":  # `--eval` alone is `--eval true`
        number = {"nargs": "?", "const": "true"}
    group.add_argument(
        f"--{key}",
        metavar=metavar,
        help=f"{schema['description']} ({'; '.join(hint)})".replace("%", "%%"),
        **number,
    )


def _underscored(argv: Sequence[str]) -> list[str]:
    """Return the arguments with underscores instead of hyphens in the names of flags."""
    return [re.sub("^--[^=]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument) for argument in argv]


def _type(schema: dict[str, Any]) -> str:
    """Return the JSON type of a key, or "path"; the first one of several, as in "integer or null"."""
    first = schema.get("anyOf", [schema])[0]
    return str(first.get("format", first["type"]))


def from_text(key: str, text: str | list[str]) -> object:
    """Return the value that a text means for a key, or the text if it means none."""
    nullable = {"type": "null"} in schemas()[key].get("anyOf", [])
    if isinstance(text, list):
        given = _json_list(text)
        if len(text) == 1 and nullable and from_text(key, text[0]) is None:
            return None
        return [from_text(key, item) for item in text] if given is None else given
    if text.lower() in ("none", "null") and nullable:
        return None
    try:
        return FROM_TEXT[_type(schemas()[key])](text)
    except (ValueError, KeyError):
        return text


def _json_list(texts: list[str]) -> list[object] | None:
    """Return the list that a single text holds as JSON; None if there is none."""
    try:
        found = parse_json(texts[0]) if len(texts) == 1 and texts[0].startswith("[") else None
    except ValueError:
        return None
    return found if isinstance(found, list) else None


def entry_of(key: str) -> tuple[str, str | None]:
    """Return the key and the entry in it that `KEY.ENTRY` names, if the key is an object; else the text and None."""
    whole, _, entry = key.partition(".")
    return (whole, entry) if entry and schemas().get(whole, {}).get("type") == "object" else (key, None)


def _of_unknown(name: str, text: str) -> object:
    if entry_of(name)[1] is None:
        return text
    try:
        return WORDS[text.lower()] if text.lower() in WORDS else parse_json(text)
    except ValueError:
        return text


def _unknown(rest: Sequence[str]) -> dict[str, object]:
    """Return the flags that are no keys, each with what follows it: the value of an entry, or else text."""
    flags: dict[str, object] = {}
    last: str | None = None
    for argument in rest:
        if argument.startswith("--"):
            name, _, text = argument.removeprefix("--").partition("=")
            flags[name] = _of_unknown(name, text) if text else True
            last = None if text else name
        elif last is not None:
            flags[last], last = _of_unknown(last, argument), None
        else:
            how = f"did you mean --config {argument}?" if argument.endswith(".json") else "values follow their flag"
            raise ConfigError(f"{shown(argument)}: belongs to no flag; {how}")
    return flags
