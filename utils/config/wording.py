"""What error messages and `--help` say about the valid values of a key, taken from the JSON schema."""

from collections.abc import Mapping
from typing import Any

from utils.text import shown


def choices(schema: Mapping[str, Any]) -> list[str]:
    """Return the values that a schema enumerates, or an empty list."""
    return [str(choice) for choice in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def describe(schema: Mapping[str, Any]) -> str:
    """Describe the valid values of one key: `an integer >= 1`, `one of sgd, adam`, `text or null`."""
    if "expected" in schema:
        return str(schema["expected"])
    if "anyOf" in schema:
        return " or ".join(map(describe, schema["anyOf"]))
    if named := choices(schema):
        return f"one of {', '.join(named)}" if len(named) > 1 else named[0]
    if schema.get("format") == "path":
        return "a path"
    words = {
        "integer": "an integer" + _bounds(schema),
        "number": "a finite number" + _bounds(schema),
        "boolean": "true or false",
        "string": "text that is not empty" if schema.get("minLength") else "text",
        "null": "null",
    }
    return words[schema["type"]]


def effect(schema: Mapping[str, Any]) -> str:
    """Say whether one key can change a result: `yes`, `no`, or `yes, with ...`."""
    parts = ["yes" if schema["changes_results"] else "no"]
    parts += [f"with {schema['owner']}"] if "owner" in schema else []
    for other, without in schema.get("idle_if", {}).items():
        parts.append(f"unless {other} is {' or '.join(map(shown, without))}")
    parts += [f"unless {other} is given" for other in schema.get("idle_beside", ())]
    return ", ".join(parts)


def _bounds(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']:.10g} to {schema['maximum']:.10g}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[bound]:.10g}" for bound, sign in signs.items() if bound in schema]
    return f" {' and '.join(bounds)}" if bounds else ""
