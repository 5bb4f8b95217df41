"""Log files of PILOT-family code bases (PyCIL, PILOT, SEMA's public implementation and their forks), taken apart.

    2024-01-18 10:00:30,251 [trainer.py] => seed: 1993
    2024-01-18 10:00:30,251 [trainer.py] => CNN: {'total': 72.14, '00-19': 75.33, '20-39': 68.67, 'old': 75.33, ...}
    2024-01-18 10:00:30,251 [trainer.py] => CNN top1 curve: [78.96, 72.14]
    2024-01-18 10:00:30,251 [trainer.py] => CNN top5 curve: [95.36, 90.01]
    Average Accuracy (CNN): 75.55
    Accuracy Matrix (CNN):
    [[78.96 75.33]
     [ 0.   68.67]]
    2024-01-18 10:00:30,251 [trainer.py] => Forgetting (CNN): 3.63

One file may hold several runs: these code bases write all seeds of a command into the first seed's file, and append.
`parse` cuts a file into runs and understands lines; what the lines say together is for `tools.pilot.check`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tools.pilot.values import are_numbers, config_value, literal, time_of

MOST_TASKS = 1000  # a file of these is cut off there, as what its lines say together is a matrix
LABEL = re.compile(r"(\d{1,6})-(\d{1,6})")
STAMP = re.compile(r"\s*(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ \[(?P<file>[^\]]+)\] => (?P<rest>.*)")
CONFIG_LINE = re.compile(r"(?P<key>[A-Za-z_]\w*): (?P<value>.*)")
CLASS_ORDER = re.compile(r"\[\d+(, \d+)+\]")
NUMBER = r"(?P<value>-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
GROUPED = re.compile(r"\bCNN: (?P<value>\{.*)")
CURVE = re.compile(r"\b(?:CNN|ACC) top(?P<top>[15]) curve: (?P<value>\[.*)")
AVERAGE = re.compile(rf"\bAverage Accuracy(?: \(CNN\))?: {NUMBER}")
FORGETTING = re.compile(rf"\bForgetting \(CNN\): {NUMBER}")
NME = re.compile(r"\bNME: \{")
MATRIX = re.compile(r"\bAccuracy Matrix \(CNN\):(?P<value>.*)", re.IGNORECASE)
MATRIX_LINE = re.compile(r"[\s\[\],.\d]+")


@dataclass
class Row:
    """The accuracies, in per cent, that a log gives after one task.

    Attributes:
        line: Its number in the file.
        groups: Accuracy by (first class, last class); None where the log says nan.
        total, old, new: None where the log has none.
        curve: The top-1 curve printed after it.
    """

    line: int
    groups: dict[tuple[int, int], float | None]
    total: float | None = None
    old: float | None = None
    new: float | None = None
    curve: list[float] | None = None

    def same_values(self, other: "Row") -> bool:
        """Whether the other row says the same of the same groups."""
        return (self.groups, self.total, self.old, self.new) == (other.groups, other.total, other.old, other.new)


@dataclass
class Segment:
    """One run of a log file: what its lines say, line by line.

    Attributes:
        line: Where it begins.
        config: What the log prints of its configuration.
        nb_classes: Length of the class order, where the log prints it.
        rows: One for each `CNN: {...}` line.
        top1, top5: The curves, in order.
        average, forgetting: The last that is printed.
        matrix_lines: The last accuracy matrix that is printed, as it is printed.
        names: Class ranges as they are spelled.
        has_nme: Whether it also has accuracies of nearest mean of exemplars.
        notes: Lines that could not be read.
        first, last: Time stamps.
    """

    line: int
    config: dict[str, Any] = field(default_factory=dict)
    nb_classes: int | None = None
    rows: list[Row] = field(default_factory=list)
    top1: list[tuple[int, list[float]]] = field(default_factory=list)
    top5: list[tuple[int, list[float]]] = field(default_factory=list)
    average: float | None = None
    forgetting: float | None = None
    matrix_lines: list[str] = field(default_factory=list)
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    has_nme: bool = False
    notes: list[str] = field(default_factory=list)
    first: datetime | None = None
    last: datetime | None = None

    def stamp(self, time: datetime) -> None:
        """Note that a line was written at `time`."""
        self.first, self.last = self.first or time, time

    @property
    def measured(self) -> bool:
        """Whether there is any accuracy in it."""
        return bool(self.rows or self.top1)

    @property
    def seconds(self) -> float:
        """From the first time stamp to the last; NaN without two different ones."""
        if self.first is None or self.last is None or self.first == self.last:
            return math.nan
        return (self.last - self.first).total_seconds()

    @property
    def labels(self) -> list[tuple[int, int]]:
        """Every class range that the rows name, in the order of the classes (not of their spelling)."""
        return sorted({label for row in self.rows for label in row.groups})

    @property
    def curve(self) -> list[float]:
        """The longest top-1 curve, the last of those."""
        return max(reversed([values for _, values in self.top1]), key=len, default=[])

    @property
    def matrix(self) -> list[list[float]]:
        """The rows of the printed matrix; none if there is no matrix, or one with dots for numbers left out."""
        text = "\n".join(self.matrix_lines)
        if "..." in text:
            return []
        rows = re.findall(r"\[([^\[\]]+)\]", text)
        return [[float(number) for number in re.findall(r"\d+\.?\d*", row)] for row in rows]


def parse(text: str) -> list[Segment]:
    """The runs in the text of a log, in order; empty if it has no accuracy lines."""
    reader = _Reader()
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        reader.read(number, line)
    return [segment for segment in reader.segments if segment.measured]


class _Reader:
    """Reads line by line. The configuration comes first in a run and ends with the first line of another kind."""

    def __init__(self) -> None:
        self.segments = [Segment(1)]
        self._in_config = True
        self._in_matrix = False

    def read(self, number: int, line: str) -> None:
        segment, stamp = self.segments[-1], STAMP.match(line)
        rest = stamp["rest"] if stamp else line
        if self._in_matrix and MATRIX_LINE.fullmatch(rest):
            segment.matrix_lines.append(rest)
            return
        self._in_matrix = self._in_matrix and not rest.strip()
        hits = [(read, match) for pattern, read in _READ.items() if (match := pattern.search(rest))]
        for read, match in hits:
            read(self, number, match)
        if stamp and not hits:
            self._other(number, stamp)
        self._in_config = self._in_config and not hits
        if stamp and (time := time_of(stamp["time"])):
            self.segments[-1].stamp(time)

    def _other(self, number: int, stamp: re.Match[str]) -> None:
        """A line without accuracies: of the configuration, the class order, or of no interest."""
        pair = CONFIG_LINE.fullmatch(stamp["rest"]) if stamp["file"] == "trainer.py" else None
        if pair and not self._in_config and pair["key"] in self.segments[-1].config:
            self._begin(number)
            self._in_config = True
        segment = self.segments[-1]
        self._in_config = self._in_config and pair is not None
        if pair and self._in_config:
            segment.config[pair["key"]] = config_value(pair["value"])
        if CLASS_ORDER.fullmatch(stamp["rest"]) and segment.nb_classes is None:
            segment.nb_classes = stamp["rest"].count(",") + 1

    def _begin(self, number: int) -> None:
        self.segments.append(Segment(number))

    def _grouped(self, number: int, match: re.Match[str]) -> None:
        values = self._value(match["value"], dict)
        names = {label: key for key in values if (label := _label(key))}
        named = {key: values.get(key) for key in ("total", "old", "new")}
        row = Row(number, {label: values[name] for label, name in names.items()}, **named)
        if not are_numbers([*row.groups.values(), *named.values()]) or not (names or row.total is not None):
            self._damaged(number, match["value"])
            return
        if _restarts(self.segments[-1].rows, row):
            self._begin(number)
        rows = self.segments[-1].rows
        if len(rows) == MOST_TASKS:
            self._damaged(number, match["value"])
            return
        if rows and rows[-1].curve is None and rows[-1].same_values(row):
            self._note(number, "the same accuracies as in the line before, counted once")
            return
        rows.append(row)
        self.segments[-1].names |= names

    def _curve(self, number: int, match: re.Match[str]) -> None:
        values = self._value(match["value"], list)
        if not 0 < len(values) <= MOST_TASKS or None in values or not are_numbers(values):
            self._damaged(number, match["value"])
            return
        segment = self.segments[-1]
        if match["top"] == "5":
            segment.top5.append((number, values))
            return
        if len(values) == 1 and segment.top1 and not segment.rows:
            self._begin(number)
        segment = self.segments[-1]
        segment.top1.append((number, values))
        if segment.rows and segment.rows[-1].curve is None:
            segment.rows[-1].curve = values

    def _average(self, number: int, match: re.Match[str]) -> None:
        self.segments[-1].average = float(match["value"])

    def _forgetting(self, number: int, match: re.Match[str]) -> None:
        self.segments[-1].forgetting = float(match["value"])

    def _matrix(self, number: int, match: re.Match[str]) -> None:
        self.segments[-1].matrix_lines = [match["value"]]
        self._in_matrix = True

    def _nme(self, number: int, match: re.Match[str]) -> None:
        self.segments[-1].has_nme = True

    def _value(self, text: str, kind: type) -> Any:
        value = literal(text)
        return value if isinstance(value, kind) else kind()

    def _damaged(self, number: int, text: str) -> None:
        self._note(number, f"cut off or damaged: {text[:60]}")

    def _note(self, number: int, text: str) -> None:
        self.segments[-1].notes.append(f"line {number}: {text}")


_READ: dict[re.Pattern[str], Callable[[_Reader, int, re.Match[str]], None]] = {
    GROUPED: _Reader._grouped,
    CURVE: _Reader._curve,
    AVERAGE: _Reader._average,
    FORGETTING: _Reader._forgetting,
    MATRIX: _Reader._matrix,
    NME: _Reader._nme,
}


def _label(key: object) -> tuple[int, int] | None:
    found = LABEL.fullmatch(str(key))
    return (int(found[1]), int(found[2])) if found else None


def _restarts(rows: list[Row], row: Row) -> bool:
    """Whether a row is the first of another run: it knows fewer groups than the last, or it is a first task again."""
    if not rows or (rows[-1].curve is None and rows[-1].same_values(row)):
        return False
    first_again = row.groups.keys() == rows[0].groups.keys() and not row.old
    return row.groups.keys() < rows[-1].groups.keys() or first_again
