"""The text of an estimate: its table, its totals, and that the totals can be read again."""

import pytest

from utils.runs.estimate import Estimate, Span, TaskEstimate, Totals, read_totals

TASKS = [
    TaskEstimate(5000, 1000, Span(785, 785), Span(3140, 3140), Span(60, 60)),
    TaskEstimate(4000, 2000, Span(625, 1875), Span(0, 7500), Span(30, 3700)),
]
SHARES = Span(0.5, 0.75), Span(0.5, 0.25), Span(0.1, 0.1)
TOTALS = Totals(Span(90, 3760), Span(3 * 2**30, 3 * 2**30), Span(5 * 2**20, 2**30))
PARTS = [("process", 2.0 * 2**30), ("views", 0.0), ("kept test images", 2.0**30)]


def estimate(**other) -> Estimate:
    own = {
        "layers": 3,
        "shares": SHARES,
        "memory": PARTS,
        "gpu": 0.0,
        "on_disk": 2.0**31,
        "seeds": None,
        "measured": "measured",
    }
    return Estimate(TASKS, TOTALS, **{**own, **other})


def test_the_table_has_a_row_for_every_task_and_their_sum():
    rows = [line.split("  ") for line in str(estimate()).splitlines()[:4]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["task", "training images", "test images", "func steps", "rd steps", "time"],
        ["0", "5,000", "1,000", "785", "3,140", "1 min"],
        ["1", "4,000", "2,000", "625 to 1,875", "0 to 7,500", "30 s to 1 h 1 min"],
        ["all", "9,000", "3,000", "1,410 to 2,660", "3,140 to 10,640", "1 min 30 s to 1 h 2 min"],
    ]


def test_the_lines_after_it_say_what_the_whole_run_takes():
    lines = str(estimate(seeds=(5, Span(450, 18800)))).splitlines()[4:]
    assert lines[:6] == [
        "time of a run: about 1 min 30 s to 1 h 2 min",
        "  training 50% to 75%, evaluations, readouts and features 50% to 25%; of both, loading images 10%",
        "memory: about 3 GiB",
        "  process 2 GiB, kept test images 1 GiB",
        "disk of a run: about 5 MiB to 1 GiB when it is finished, at most 2 GiB before",
        "measured",
    ]
    assert "one in each of 3 layers" in lines[7]
    assert lines[8] == "5 seeds, one after the other: about 7 min 30 s to 5 h 13 min, disk 25 MiB to 5 GiB"


@pytest.mark.parametrize("totals", [TOTALS, Totals(Span(7, 7), Span(2**20, 2**20), Span(2**40, 2**41))])
def test_the_totals_are_read_again_but_for_rounding(totals: Totals):
    read = read_totals(f"would start: x\n{Estimate(TASKS, totals, 3, SHARES, PARTS, 2.0**31, 1.0, None, 'measured')}\n")
    for given, found in zip(totals, read, strict=True):
        assert found == pytest.approx(given, rel=0.02)


def test_another_text_has_no_totals():
    with pytest.raises(ValueError, match="not an estimate"):
        read_totals("memory: about 3 GiB\n")
