"""Quote untrusted values in one-line messages, and suggest the nearest valid choice."""

import difflib
import json
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST_VALUE = 80  # characters
NAMES_SHOWN = 8  # names in a message before "and n more"


def shown(value: object) -> str:
    """Return the value as JSON on one line, shortened if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def shown_key(key: str) -> str:
    """Return the key, quoted and shortened only if it is long or not printable."""
    return key if key.isprintable() and len(key) <= LONGEST_VALUE else shown(key)


def listed(names: Sequence[str]) -> str:
    """Return the first names, separated by commas, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(shown_key, names[:NAMES_SHOWN])) + more


def same_name(name: str) -> str:
    """Return a name in the form in which names are compared, Unicode's NFC."""
    return unicodedata.normalize("NFC", name)


def writable(text: str) -> str:
    """Return the text with escapes for what is not valid Unicode, as can occur in file names."""
    return text.encode(errors="backslashreplace").decode()


def nearest(word: object, choices: Iterable[str], count: int = 1) -> list[str]:
    """Return the choices most similar to `word`, ignoring case, best first; empty if none is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    return [by_lower[match] for match in difflib.get_close_matches(str(word).lower(), by_lower, n=count)]


def did_you_mean(word: object, choices: Iterable[str], count: int = 1) -> str:
    """Return `; did you mean X?` for the nearest choices, or an empty string."""
    found = nearest(word, choices, count)
    return f"; did you mean {' or '.join(found)}?" if found else ""
