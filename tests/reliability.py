"""What the fault tests observed, and its document: `pytest tests/faults --reliability docs/reliability.md`."""

import runpy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fault_record import Fault

from tools.generated import markdown_table, replace_part

HEADER = ["fault", "how it is injected", "times", "what was observed"]


@dataclass
class Row:
    """What came of one fault.

    Attributes:
        times: How often it was injected.
        seen: What was observed; equal observations once.
        spread: Where it met the runs, if that was left to chance.
        passed: Whether every test of it passed.
    """

    times: int = 0
    seen: list[str] = field(default_factory=list)
    spread: Counter[str] = field(default_factory=Counter)
    passed: bool = True


class Account:
    """Adds up what the fault tests of one session observed."""

    def __init__(self) -> None:
        self.rows: dict[Fault, Row] = {}

    def note(self, fault: Fault, passed: bool, times: int = 1, seen: str = "", spread: Mapping[str, int] = {}) -> None:
        """Count one test of a fault."""
        row = self.rows.setdefault(fault, Row())
        row.passed &= passed
        row.times += times
        row.seen += [seen] if seen not in row.seen else []
        row.spread.update(spread)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test of a fault; of tests that run in several processes, the first one hears of all."""
        for name, value in report.user_properties:
            if name == "fault":
                what, how, observed = value
                self.note(Fault(what, how), report.passed, **observed)

    @property
    def spread(self) -> Counter[str]:
        """Of all faults together."""
        return sum((row.spread for row in self.rows.values()), Counter())

    def write(self, document: Path) -> None:
        """Bring a document up to date.

        Raises:
            ValueError: There is nothing to write, or not all tests passed.
        """
        failed = [fault.what for fault, row in self.rows.items() if not row.passed]
        if failed or not self.rows:
            raise ValueError(f"{document} is left as it is; failed: {', '.join(failed) or 'no test of a fault ran'}")
        rows = [[*cells(fault), str(row.times), _cell("; ".join(row.seen))] for fault, row in self.rows.items()]
        replace_part(document, "faults", markdown_table(HEADER, rows))
        replace_part(document, "spread", spread_table(self.spread))


def cells(fault: Fault) -> list[str]:
    """The cells by which a row of the document is known."""
    return [_cell(fault.what), _cell(fault.how)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def spread_table(spread: Counter[str]) -> str:
    """What runs were at when they were killed."""
    return markdown_table(["the run was at", "kills"], [[where, str(count)] for where, count in spread.most_common()])


def known_faults(tests: Path) -> Iterator[Fault]:
    """The faults of all tests there are."""
    for file in sorted(tests.rglob("test_*.py")):
        if "@fault(" in file.read_text(encoding="utf-8"):
            found = (getattr(value, "fault", None) for value in runpy.run_path(str(file)).values())
            yield from (fault for fault in found if isinstance(fault, Fault))
