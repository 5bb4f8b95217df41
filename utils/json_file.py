"""Read untrusted JSON, and say where it is wrong."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from utils.errors import ConfigError
from utils.files import read_text, seen_from
from utils.text import did_you_mean, listed, shown, shown_key

MOST_BYTES = 2**26  # a thousand times the size of our files
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
DEEPEST = 100  # nested lists and objects; code that handles values may be recursive


def read_object(path: Path) -> tuple[dict[str, object], list[str]]:
    """Read a file with one JSON object.

    Returns:
        The object, and the keys that occur more than once in one object (Python keeps the last value).

    Raises:
        ConfigError: The file is missing, unreadable, or not a JSON object.
    """
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        repeated.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    try:
        values = parse(read_text(path, MOST_BYTES), note_repeated)
    except FileNotFoundError:
        found = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.json")), count=3)
        hint = found if path.parent.is_dir() else f" (and no folder {path.parent})"
        raise ConfigError(f"{path}: no such file{seen_from(path)}{hint}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}, column {error.colno}: not JSON: {_what(error)}") from None
    except IsADirectoryError:
        found = listed(sorted(file.name for file in path.glob("*.json")))
        raise ConfigError(f"{path}: a folder; name a file in it: {found or 'it has none that ends in .json'}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object with keys such as dataset, not {shown(values)}")
    return values, repeated


def _what(error: json.JSONDecodeError) -> str:
    """Return what is wrong, with a remark on what JSON lacks and other formats have."""
    rest = error.doc[error.pos :]
    if not error.doc.strip():
        return "the file is empty"
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments"
    if rest.startswith(("}", "]")) and error.doc[: error.pos].rstrip().endswith(","):
        return "a comma before the end"
    if rest.startswith("'"):
        return "text must be in double quotes"
    word = re.match(r"True|False|None", rest)
    return f"{word[0]}; write {PYTHON_WORDS[word[0]]}" if word else error.msg


def parse(text: str, pairs_hook: Callable[[list[tuple[str, object]]], object] | None = None) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is invalid (JSONDecodeError), nested too deeply, or a number in it is too long.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs_hook)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    level = [value]
    for _ in range(DEEPEST + 1):
        if not level:
            return value
        level = [inner for outer in level for inner in _inside(outer)]
    raise ValueError(f"nested more than {DEEPEST} deep")


def _inside(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def faults(error: ValidationError) -> str:
    """Return the first three problems of values from a file, on one line."""
    lines = []
    for item in error.errors()[:3]:
        place = shown_key(".".join(map(str, item["loc"])))
        given = "" if item["type"] == "missing" else f" = {shown(item['input'])}"
        lines.append(f"{place}{given}: {item['msg'].removeprefix('Value error, ').lower()}")
    return "; ".join(lines)
