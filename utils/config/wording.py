"""Words for values, bounds and choices: what an error message and `--help` say about a key.

Everything is read off the JSON schema of the configuration, so that a bound is declared once and described everywhere.
"""

from collections.abc import Mapping
from typing import Any


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
