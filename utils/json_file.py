"""JSON of whoever wrote it: read as it was meant, or refused with the place of the fault."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from utils.errors import ConfigError
from utils.files import read_text
from utils.text import did_you_mean, shown, shown_key

MOST_BYTES = 2**26  # a thousand times what any of our files holds
DEEPEST = 100  # lists and objects within each other; what works on values may call itself for each


def read_object(path: Path) -> tuple[dict[str, object], list[str]]:
    """Read the JSON object in a file.

    Returns:
        The object, and the keys that it or an object within it holds more than once (Python would keep the last).

    Raises:
        ConfigError: no such file, not readable, not JSON, or not an object.
    """
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        repeated.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    try:
        values = parse(read_text(path, MOST_BYTES), note_repeated)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_files_like(path)}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object with keys such as dataset, not {shown(values)}")
    return values, repeated


def parse(text: str, pairs_hook: Callable[[list[tuple[str, object]]], object] | None = None) -> Any:
    """The value that a text stands for.

    Raises:
        JSONDecodeError: It stands for none.
        ValueError: It is nested too deeply, or a number in it is too long.
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


def _files_like(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (and no folder {path.parent})"
    return did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.json")), count=3)


def faults(error: ValidationError) -> str:
    """What is wrong with values from a file, on one line; the first three faults."""
    return "; ".join(map(_fault, error.errors()[:3]))


def _fault(item: Any) -> str:
    place = shown_key(".".join(map(str, item["loc"])))
    given = "" if item["type"] == "missing" else f" = {shown(item['input'])}"
    return f"{place}{given}: {item['msg'].removeprefix('Value error, ').lower()}"
