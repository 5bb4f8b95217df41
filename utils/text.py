"""Values and names of strangers in the text of a message: on one line, and with the nearest valid choice."""

import difflib
import json
from collections.abc import Iterable

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
