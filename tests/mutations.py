"""Valid files and values, made invalid: what the fuzz tests feed to whatever reads files of strangers."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

TOKENS = [
    b"", b"\x00", b"\xff\xfe", b"\r\n", b"\n", b" ", b'"', b"'", b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b"(", b":",
    b"null", b"true", b"nan", b"NaN", b"inf", b"-Infinity", b"1e999", b"-1", b"0", b"0x", b"9" * 20, b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b"-" * 3000, b"../", b"<script>", b"\xe2\x80\xa8", b"\xed\xb2\x80", b"PK\x05\x06",
    b"2024-02-31 10:00:00,000 [trainer.py] => ",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]
SCALARS = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.text(max_size=8) | st.sampled_from(["task", "seed", "config", "a.b", "__proto__", ""])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content after one to four accidents."""
    for _ in range(draw(st.integers(1, 4))):
        content = draw(st.sampled_from(ACCIDENTS))(draw, content)
    return content


def _place(draw: st.DrawFn, content: bytes) -> int:
    return draw(st.integers(0, len(content)))


def _span(draw: st.DrawFn, content: bytes) -> tuple[int, int]:
    start = _place(draw, content)
    return start, min(len(content), start + draw(st.sampled_from([1, 2, 4, 8, 32, 200])))


def _replace(draw: st.DrawFn, content: bytes) -> bytes:
    start, end = _span(draw, content)
    return content[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=8)) + content[end:]


def _insert(draw: st.DrawFn, content: bytes) -> bytes:
    start = _place(draw, content)
    return content[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=8)) + content[start:]


def _flip(draw: st.DrawFn, content: bytes) -> bytes:
    start = _place(draw, content)
    return (
        content[:start]
        + bytes(byte ^ draw(st.integers(1, 255)) for byte in content[start : start + 1])
        + content[start + 1 :]
    )


def _repeat(draw: st.DrawFn, content: bytes) -> bytes:
    start, end = _span(draw, content)
    return content[:end] + content[start:end] * draw(st.sampled_from([1, 3, 50])) + content[end:]


def _cut(draw: st.DrawFn, content: bytes) -> bytes:
    return content[: _place(draw, content)]


def _swap(draw: st.DrawFn, content: bytes) -> bytes:
    start, end = _span(draw, content)
    return content[:start] + content[end:] + content[start:end]


ACCIDENTS = [_replace, _replace, _insert, _flip, _repeat, _cut, _swap]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three of its inner values replaced, removed or added to."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        value = _change(draw, value)
    return value


def _change(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    place = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    what = draw(st.sampled_from(["inside", "inside", "inside", "replace", "remove", "add"]))
    if what == "inside":
        value[place] = _change(draw, value[place])
    elif what == "replace":
        value[place] = draw(VALUES)
    elif what == "remove":
        del value[place]
    elif isinstance(value, dict):
        value[draw(KEYS)] = draw(VALUES)
    else:
        value.insert(place, draw(VALUES))
    return value


def as_json(value: Any) -> bytes:
    """JSON that Python reads, NaN and lone surrogates included."""
    return json.dumps(value).encode()
