"""Read log files of PILOT and related code bases (PyCIL, the public implementation of SEMA, their forks).

    2024-01-18 10:00:30,251 [trainer.py] => seed: 1993
    2024-01-18 10:00:30,251 [trainer.py] => CNN: {'total': 72.14, '00-19': 75.33, '20-39': 68.67, 'old': 75.33, ...}
    2024-01-18 10:00:30,251 [trainer.py] => CNN top1 curve: [78.96, 72.14]
    2024-01-18 10:00:30,251 [trainer.py] => CNN top5 curve: [95.36, 90.01]
    Average Accuracy (CNN): 75.55
    Accuracy Matrix (CNN):
    [[78.96 75.33]
     [ 0.   68.67]]
    2024-01-18 10:00:30,251 [trainer.py] => Forgetting (CNN): 3.63

A file can hold several runs: these code bases write all seeds of a command into one file, and append to it.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

MOST_TASKS = 1000  # of one run
MOST_NOTES = 100  # on the lines of one run
LARGEST = 1e6  # a larger number is damage
LONGEST = 100_000  # characters of a value
STAMP = re.compile(r"\s*(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ \[(?P<file>[^\]]+)\] => (?P<rest>.*)")
KEY = re.compile(r"(?P<key>[A-Za-z_]\w*): (?P<value>.*)")
CLASS_ORDER = re.compile(r"\[\d+(, \d+)+\]")
GROUP = re.compile(r"\d{1,6}-\d{1,6}")
NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
RESULT = re.compile(
    r"\bCNN: (?P<groups>\{.*)|\b(?:CNN|ACC) top1 curve: (?P<top1>\[.*)|\b(?:CNN|ACC) top5 curve: (?P<top5>\[.*)"
    rf"|\bAverage Accuracy(?: \(CNN\))?: (?P<average>{NUMBER})|\bForgetting \(CNN\): (?P<forgetting>{NUMBER})"
    r"|\bAccuracy [Mm]atrix \(CNN\):(?P<matrix>.*)|\bNME: (?P<nme>\{)"
)
MATRIX_LINE = re.compile(r"[\s\[\],.\d]*")
SCALAR = re.compile(r"\b(?:np|numpy)\.\w+\((-?[\d.eE+-]+|nan)\)")  # numpy 2 prints np.float64(91.2)


def span(group: str) -> tuple[int, int]:
    """Return the first and the last class of a group such as `20-29`."""
    first, last = group.split("-")
    return int(first), int(last)


@dataclass
class Row:
    """The accuracies after one task, in per cent: `total`, `old`, `new` and groups of classes. NaN is not known."""

    line: int = field(compare=False)
    values: dict[str, float]
    curve: list[float] | None = field(default=None, compare=False)  # the top-1 curve printed after it

    @cached_property
    def groups(self) -> dict[str, float]:
        """The accuracies of groups of classes."""
        return {key: value for key, value in self.values.items() if GROUP.fullmatch(key)}

    def __getitem__(self, key: str) -> float:
        return self.values.get(key, math.nan)


@dataclass
class Log:
    """The lines of one run. Curves are given with their line numbers."""

    line: int
    config: dict[str, Any] = field(default_factory=dict)
    nb_classes: int | None = None
    rows: list[Row] = field(default_factory=list)
    top1: list[tuple[int, list[float]]] = field(default_factory=list)
    top5: list[tuple[int, list[float]]] = field(default_factory=list)
    average: float = math.nan
    forgetting: float = math.nan
    matrix_lines: list[str] = field(default_factory=list)
    has_nme: bool = False  # accuracies of nearest mean of exemplars
    notes: list[str] = field(default_factory=list)  # on lines that could not be read
    times: list[datetime] = field(default_factory=list)  # the first and the last time stamp

    @property
    def seed(self) -> int | None:
        """The seed of the configuration, if it has one."""
        match self.config.get("seed"):
            case int(seed) | [int(seed)]:
                return seed
        return None

    @property
    def seconds(self) -> float:
        """Time from the first to the last time stamp; NaN if there are not two different ones."""
        return (self.times[-1] - self.times[0]).total_seconds() if len(set(self.times)) > 1 else math.nan

    @property
    def curve(self) -> list[float]:
        """The longest top-1 curve; the last one if several are equally long."""
        return max(reversed([values for _, values in self.top1]), key=len, default=[])

    @property
    def matrix(self) -> list[list[float]]:
        """The rows of the last printed matrix; empty if there is none, or if numpy left out numbers (`...`)."""
        text = "\n".join(self.matrix_lines)
        rows = [] if "..." in text else re.findall(r"\[([^\[\]]+)\]", text)
        return [[float(number) for number in re.findall(r"\d+\.?\d*", row)] for row in rows]


def parse(text: str) -> list[Log]:
    """Return the runs in the text of a log file, in order; none if it has no accuracies."""
    parser = _Parser()
    with warnings.catch_warnings(action="ignore"):  # Python warns about odd literals
        for number, line in enumerate(re.split(r"\r\n?|\n", text), 1):
            parser.read(number, line)
    return [log for log in parser.logs if log.rows or log.top1]


class _Parser:
    """Reads line by line. The configuration of a run comes first and ends with the first line of another kind."""

    def __init__(self) -> None:
        self.logs = [Log(1)]
        self.inside: str | None = "configuration"  # or "matrix", or None

    @property
    def log(self) -> Log:
        return self.logs[-1]

    def read(self, number: int, line: str) -> None:
        stamp = STAMP.match(line)
        rest = stamp["rest"] if stamp else line
        if self.inside == "matrix":
            if MATRIX_LINE.fullmatch(rest):
                self.log.matrix_lines.append(rest)
                return
            self.inside = None
        results = list(RESULT.finditer(rest))
        for found in results:
            self.inside, text = None, found[found.lastindex or 0]
            try:
                self.result(number, str(found.lastgroup), text)
            except ValueError:
                self.note(number, f"cut off or damaged: {text[:60]}")
        if stamp:
            if not results:
                self.other(number, stamp["file"], rest)
            with suppress(ValueError):  # a time such as 31 February
                self.log.times[1:] = [datetime.fromisoformat(stamp["time"])]

    def result(self, number: int, kind: str, text: str) -> None:
        match kind:
            case "groups":
                self.row(number, literal(text, dict))
            case "top1" | "top5":
                self.curve(number, kind, literal(text, list))
            case "average" | "forgetting":
                setattr(self.log, kind, float(text))
            case "matrix":
                self.log.matrix_lines, self.inside = [text], kind
            case "nme":
                self.log.has_nme = True

    def note(self, number: int, text: str) -> None:
        if len(self.log.notes) < MOST_NOTES:
            self.log.notes.append(f"line {number}: {text}")
        elif len(self.log.notes) == MOST_NOTES:
            self.log.notes.append(f"line {number} and later: more such lines, which are not listed")

    def row(self, number: int, found: dict[object, Any]) -> None:
        keys = [key for key in map(str, found) if key in ("total", "old", "new") or GROUP.fullmatch(key)]
        row = Row(number, {key: math.nan if found[key] is None else found[key] for key in keys})
        _require(_are_numbers(row.values.values()) and (row.groups or not math.isnan(row["total"])))
        if rows := self.log.rows:
            if rows[-1].curve is None and rows[-1] == row:
                return self.note(number, "the same accuracies as in the line before, counted once")
            groups, first, last = (r.groups.keys() for r in (row, rows[0], rows[-1]))
            if groups < last or (groups == first and not row["old"] > 0):
                self.logs.append(Log(number))
        _require(len(self.log.rows) < MOST_TASKS)
        self.log.rows.append(row)

    def curve(self, number: int, kind: str, values: list[Any]) -> None:
        _require(0 < len(values) <= MOST_TASKS and _are_numbers(values))
        if kind == "top1" and len(values) == 1 and self.log.top1 and not self.log.rows:
            self.logs.append(Log(number))
        getattr(self.log, kind).append((number, values))
        if kind == "top1" and self.log.rows and self.log.rows[-1].curve is None:
            self.log.rows[-1].curve = values

    def other(self, number: int, file: str, text: str) -> None:
        """Read a line that may belong to the configuration, or be the class order."""
        pair = KEY.fullmatch(text) if file == "trainer.py" else None
        if pair and not self.inside and pair["key"] in self.log.config:
            self.logs.append(Log(number))
            self.inside = "configuration"
        if not pair:
            self.inside = None
        elif self.inside:
            self.log.config[pair["key"]] = _config_value(pair["value"])
        if CLASS_ORDER.fullmatch(text) and self.log.nb_classes is None:
            self.log.nb_classes = text.count(",") + 1


def _require(condition: object) -> None:
    if not condition:
        raise ValueError("not a value that a log has")


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(type(value) in (int, float) and not abs(value) > LARGEST for value in values)


def literal(text: str, kind: type = object) -> Any:
    """Return the Python value at the start of a text, with numpy's scalars as numbers and nan as None.

    Raises:
        ValueError: There is no such value, or it is not of this kind.
    """
    plain = SCALAR.sub(r"\1", text.strip()) if len(text) <= LONGEST else ""
    if plain[:1] in ("{", "["):
        plain = re.sub(r"\bnan\b", "None", plain[: max(plain.rfind("}"), plain.rfind("]")) + 1])
    try:
        value = ast.literal_eval(plain)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"no value: {error}") from None
    _require(isinstance(value, kind))
    return value


def _config_value(text: str) -> Any:
    """Return the value if a configuration can have it, otherwise the text."""
    with suppress(TypeError, ValueError):
        json.dumps(value := literal(text), sort_keys=True)
        return value
    return text
