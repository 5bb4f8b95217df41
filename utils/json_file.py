"""A configuration file read as it was meant, or refused with the place of the fault."""

import json
from collections import Counter
from pathlib import Path

from utils.config_text import did_you_mean, shown
from utils.errors import ConfigError


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
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=note_repeated)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_files_like(path)}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object with keys such as dataset, not {shown(values)}")
    return values, repeated


def _files_like(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (and no folder {path.parent})"
    return did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.json")), count=3)
