"""Values that PILOT-style logs print as Python does, read without believing that they are what they should be."""

import ast
import json
import re
import warnings
from datetime import datetime
from typing import Any

LARGEST = 1e6  # a percentage beyond is damage
LONGEST = 100_000  # characters of a value
SCALAR = re.compile(r"\b(?:np|numpy)\.\w+\((-?[\d.eE+-]+|nan)\)")  # numpy 2 prints np.float64(91.2)


def are_numbers(values: list[Any]) -> bool:
    """Whether each is a number that a log can mean, or None."""
    return all(value is None or _is_number(value) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def time_of(text: str) -> datetime | None:
    """The moment of a time stamp; None if there is no such."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def literal(text: str) -> Any:
    """The Python value that begins a text, numpy's scalars as numbers and nan as None; None if there is none."""
    if len(text) > LONGEST:
        return None
    plain = re.sub(r"\bnan\b", "None", SCALAR.sub(r"\1", text.strip()))
    end = max(plain.rfind("}"), plain.rfind("]")) + 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's remarks on the style of what was printed
            return ast.literal_eval(plain[:end] if plain[:1] in ("{", "[") else plain)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def config_value(text: str) -> Any:
    """The value, if it is one that a configuration can have; otherwise the text."""
    value = literal(text)
    try:
        json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return text
    return text if value is None and text != "None" else value
