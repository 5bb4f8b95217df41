"""Log files of PILOT-family code bases (PyCIL, PILOT, SEMA's public implementation and their forks), line by line.

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
from typing import Any, NamedTuple

MOST_TASKS = 1000  # of one run
MOST_NOTES = 100  # on lines of one run
LARGEST = 1e6  # a number beyond is damage
LONGEST = 100_000  # characters of a value
STAMP = re.compile(r"\s*(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ \[(?P<file>[^\]]+)\] => (?P<rest>.*)")
KEY = re.compile(r"(?P<key>[A-Za-z_]\w*): (?P<value>.*)")
CLASS_ORDER = re.compile(r"\[\d+(, \d+)+\]")
GROUP = re.compile(r"(\d{1,6})-(\d{1,6})")
NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
RESULT = re.compile(
    r"\bCNN: (?P<groups>\{.*)|\b(?:CNN|ACC) top1 curve: (?P<top1>\[.*)|\b(?:CNN|ACC) top5 curve: (?P<top5>\[.*)"
    rf"|\bAverage Accuracy(?: \(CNN\))?: (?P<average>{NUMBER})|\bForgetting \(CNN\): (?P<forgetting>{NUMBER})"
    r"|\bAccuracy [Mm]atrix \(CNN\):(?P<matrix>.*)|\bNME: (?P<nme>\{)"
)
MATRIX_LINE = re.compile(r"[\s\[\],.\d]*")
SCALAR = re.compile(r"\b(?:np|numpy)\.\w+\((-?[\d.eE+-]+|nan)\)")  # numpy 2 prints np.float64(91.2)


class Group(NamedTuple):
    """A range of classes, ordered by number, and how the log spells it."""

    first: int
    last: int
    name: str


@dataclass
class Row:
    """The accuracies after one task, in per cent, None where the log has none. Equal if they say the same."""

    line: int = field(compare=False)
    groups: dict[Group, float | None]
    total: float | None
    old: float | None
    new: float | None
    curve: list[float] | None = field(default=None, compare=False)  # the top-1 curve printed after it


@dataclass
class Log:
    """What the lines of one run say; the curves stand beside the numbers of their lines."""

    line: int
    config: dict[str, Any] = field(default_factory=dict)
    nb_classes: int | None = None
    rows: list[Row] = field(default_factory=list)
    top1: list[tuple[int, list[float]]] = field(default_factory=list)
    top5: list[tuple[int, list[float]]] = field(default_factory=list)
    average: float | None = None
    forgetting: float | None = None
    matrix_lines: list[str] = field(default_factory=list)
    has_nme: bool = False  # accuracies of nearest mean of exemplars
    notes: list[str] = field(default_factory=list)  # on lines that could not be read
    times: list[datetime] = field(default_factory=list)  # the first time stamp and the last

    @property
    def seconds(self) -> float:
        """From the first time stamp to the last; NaN without two different ones."""
        return (self.times[-1] - self.times[0]).total_seconds() if len(set(self.times)) > 1 else math.nan

    @property
    def groups(self) -> list[Group]:
        """Every group that the rows name, in the order of the classes."""
        return sorted({group for row in self.rows for group in row.groups})

    @property
    def curve(self) -> list[float]:
        """The longest top-1 curve, the last of those."""
        return max(reversed([values for _, values in self.top1]), key=len, default=[])

    @property
    def matrix(self) -> list[list[float]]:
        """The rows of the last matrix printed; none without a matrix, or if dots stand for some of its numbers."""
        text = "\n".join(self.matrix_lines)
        rows = [] if "..." in text else re.findall(r"\[([^\[\]]+)\]", text)
        return [[float(number) for number in re.findall(r"\d+\.?\d*", row)] for row in rows]


def parse(text: str) -> list[Log]:
    """The runs in the text of a log file, in order; empty if it has no accuracies."""
    parser = _Parser()
    with warnings.catch_warnings(action="ignore"):  # Python's remarks on the style of what was printed
        for number, line in enumerate(re.split(r"\r\n?|\n", text), 1):
            parser.read(number, line)
    return [log for log in parser.logs if log.rows or log.top1]


class _Parser:
    """Reads line by line. The configuration comes first in a run and ends with the first line of another kind."""

    def __init__(self) -> None:
        self.log = Log(1)
        self.logs = [self.log]
        self.inside = "configuration"  # or "matrix", or neither: ""

    def begin(self, number: int) -> None:
        self.log = Log(number)
        self.logs.append(self.log)

    def read(self, number: int, line: str) -> None:
        stamp = STAMP.match(line)
        rest = stamp["rest"] if stamp else line
        if self.inside == "matrix" and MATRIX_LINE.fullmatch(rest):
            self.log.matrix_lines.append(rest)
            return
        results = list(RESULT.finditer(rest))
        if results or self.inside == "matrix":
            self.inside = ""
        for found in results:
            self.result(number, found.lastgroup, found[found.lastindex or 0])
        if stamp and not results:
            self.other(number, stamp)
        if stamp:
            with suppress(ValueError):  # a time such as 31 February
                self.log.times[1:] = [datetime.fromisoformat(stamp["time"])]

    def result(self, number: int, kind: str | None, text: str) -> None:
        try:
            match kind:
                case "groups":
                    self.row(number, literal(text, dict))
                case "top1" | "top5":
                    self.curve(number, kind, literal(text, list))
                case "average":
                    self.log.average = float(text)
                case "forgetting":
                    self.log.forgetting = float(text)
                case "matrix":
                    self.log.matrix_lines, self.inside = [text], kind
                case _:
                    self.log.has_nme = True
        except ValueError:
            self.note(number, f"cut off or damaged: {text[:60]}")

    def note(self, number: int, text: str) -> None:
        if len(self.log.notes) < MOST_NOTES:
            self.log.notes.append(f"line {number}: {text}")
        elif len(self.log.notes) == MOST_NOTES:
            self.log.notes.append(f"line {number} and later: more such lines, which are not listed")

    def row(self, number: int, values: dict[object, Any]) -> None:
        names = [name for key in values if isinstance(key, str) and (name := GROUP.fullmatch(key))]
        groups = {Group(int(name[1]), int(name[2]), name[0]): values[name[0]] for name in names}
        row = Row(number, groups, *(values.get(key) for key in ("total", "old", "new")))
        _require(_are_numbers([*groups.values(), row.total, row.old, row.new]) and (names or row.total is not None))
        if rows := self.log.rows:
            if rows[-1].curve is None and rows[-1] == row:
                return self.note(number, "the same accuracies as in the line before, counted once")
            first_again = groups.keys() == rows[0].groups.keys() and not row.old
            if first_again or groups.keys() < rows[-1].groups.keys():
                self.begin(number)
        _require(len(self.log.rows) < MOST_TASKS)
        self.log.rows.append(row)

    def curve(self, number: int, kind: str, values: list[Any]) -> None:
        _require(0 < len(values) <= MOST_TASKS and None not in values and _are_numbers(values))
        if kind == "top5":
            self.log.top5.append((number, values))
            return
        if len(values) == 1 and self.log.top1 and not self.log.rows:
            self.begin(number)
        self.log.top1.append((number, values))
        if self.log.rows and self.log.rows[-1].curve is None:
            self.log.rows[-1].curve = values

    def other(self, number: int, stamp: re.Match[str]) -> None:
        """A line of the configuration, the class order, or of no interest."""
        pair = KEY.fullmatch(stamp["rest"]) if stamp["file"] == "trainer.py" else None
        if pair and not self.inside and pair["key"] in self.log.config:
            self.begin(number)
            self.inside = "configuration"
        if pair and self.inside:
            self.log.config[pair["key"]] = config_value(pair["value"])
        else:
            self.inside = ""
        if CLASS_ORDER.fullmatch(stamp["rest"]) and self.log.nb_classes is None:
            self.log.nb_classes = stamp["rest"].count(",") + 1


def _require(condition: object) -> None:
    if not condition:
        raise ValueError("not what a log can mean")


def _are_numbers(values: Iterable[Any]) -> bool:
    """Whether each is a number of believable size, or None."""
    return all(value is None or (type(value) in (int, float) and -LARGEST <= value <= LARGEST) for value in values)


def literal(text: str, kind: type = object) -> Any:
    """The Python value that begins a text, numpy's scalars as numbers and nan as None.

    Raises:
        ValueError: There is none of this kind.
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


def config_value(text: str) -> Any:
    """The value, if it is one that a configuration can have; otherwise the text."""
    try:
        json.dumps(value := literal(text), sort_keys=True)
    except (TypeError, ValueError):
        return text
    return value
