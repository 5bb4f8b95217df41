"""The account of the fault tests, and its document, which lists every fault there is a test of."""

from collections import Counter
from pathlib import Path

import pytest
from fault_record import Fault, fault
from reliability import Account, cells, known_faults

ROOT = Path(__file__).resolve().parents[1]
MARKERS = "".join(f"<!-- {name} begin -->\n<!-- {name} end -->\n" for name in ("faults", "spread"))
BROKEN, LOST = Fault("a broken disk", "with a hammer"), Fault("a | lost", "b")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(MARKERS)
    return path


def test_a_fault_s_tests_are_one_row_and_equal_observations_are_one(page: Path) -> None:
    account = Account()
    for seen in ("exit code 1", "exit code 2", "exit code 1"):
        account.note(BROKEN, True, times=2, seen=seen, spread=Counter(func=1))
    account.note(LOST, True, seen="no | thing")
    account.write(page)
    lines = page.read_text().splitlines()
    assert lines[3:5] == [
        "| a broken disk | with a hammer | 6 | exit code 1; exit code 2 |",
        r"| a \| lost | b | 1 | no \| thing |",
    ]
    assert "| func | 3 |" in lines


def test_no_document_is_written_where_a_test_failed_or_none_ran(page: Path) -> None:
    account = Account()
    with pytest.raises(ValueError, match="left as it is"):
        account.write(page)
    account.note(BROKEN, True, seen="exit code 1")
    account.note(BROKEN, False)
    with pytest.raises(ValueError, match="failed: a broken disk"):
        account.write(page)
    assert page.read_text() == MARKERS


def test_the_decorator_leaves_the_test_as_it_is() -> None:
    def test() -> None:
        pass

    assert fault("a", "b")(test) is test
    assert test.fault == Fault("a", "b")  # type: ignore[attr-defined]


def test_the_faults_of_all_tests_are_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "test_x.py").write_text(
        "from fault_record import fault\n@fault('x', 'by ' 'hand')\ndef test_x(): pass\ndef test_y(): pass\n"
    )
    (tmp_path / "test_y.py").write_text("raise AssertionError('not run: no fault in it')")
    assert list(known_faults(tmp_path)) == [Fault("x", "by hand")]


def test_the_document_lists_exactly_the_faults_there_are() -> None:
    """What was observed differs from session to session; the faults do not."""
    table = (ROOT / "docs/reliability.md").read_text(encoding="utf-8").split("<!-- faults begin -->\n")[1].splitlines()
    listed = [line.rpartition(" | ")[0].rpartition(" | ")[0] for line in table[2 : table.index("<!-- faults end -->")]]
    known = [f"| {' | '.join(cells(fault))}" for fault in known_faults(ROOT / "tests")]
    assert sorted(listed) == sorted(known), "run: python -m pytest tests/faults --reliability docs/reliability.md"
