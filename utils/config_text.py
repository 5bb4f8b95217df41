"""Words for values, bounds and choices: what an error message and `--help` say about a key.

Everything is read off the JSON schema of the configuration, so that a bound is declared once and described everywhere.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST_VALUE = 80  # characters of a value that an error message quotes


def shown(value: object) -> str:
    """The value as JSON on one line, cut when it is long: a message must stay one line whatever a file holds."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def shown_key(key: str) -> str:
    """The key as it is, unless it would break the line of a message."""
    return key if key.isprintable() and len(key) <= LONGEST_VALUE else shown(key)


def writable(text: str) -> str:
    """The text with whatever is no Unicode, as in names of files, written out as its number."""
    return text.encode(errors="backslashreplace").decode()


def nearest(word: object, choices: Iterable[str], count: int = 1) -> list[str]:
    """The choices spelled most like `word`, best first, whatever their case; empty when none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    return [by_lower[match] for match in difflib.get_close_matches(str(word).lower(), by_lower, n=count)]


def did_you_mean(word: object, choices: Iterable[str], count: int = 1) -> str:
    """`; did you mean X?` for the nearest choices, or nothing."""
    found = nearest(word, choices, count)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def choices(schema: Mapping[str, Any]) -> list[str]:
    """The values that a schema enumerates; empty when it does not."""
    return [str(choice) for choice in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def describe(schema: Mapping[str, Any]) -> str:
    """What a value must be, in words: `an integer >= 1`, `one of sgd, adam`, `text or null`.

    Args:
        schema: JSON schema of one key, as pydantic writes it.
    """
    if "expected" in schema:
        return str(schema["expected"])
    if "anyOf" in schema:
        return " or ".join(describe(option) for option in schema["anyOf"])
    if named := choices(schema):
        return f"one of {', '.join(named)}" if len(named) > 1 else named[0]
    match schema.get("type"):
        case "integer":
            return "an integer" + _bounds(schema)
        case "number":
            return "a finite number" + _bounds(schema)
        case "boolean":
            return "true or false"
        case "string":
            return "text" + (" that is not empty" if schema.get("minLength") else "")
        case "null":
            return "null"
        case other:
            raise ValueError(f"no words for a value of type {other!r}")


def _number(bound: float) -> str:
    """Whole bounds in full, whatever type pydantic gives them."""
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def _bounds(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {_number(schema['minimum'])} to {_number(schema['maximum'])}"
    if "minimum" in schema:
        return f" >= {schema['minimum']:g}"
    if "exclusiveMinimum" in schema:
        return f" > {schema['exclusiveMinimum']:g}"
    return ""
