"""The events of a run: read in order, and held against its other files."""

import json
from pathlib import Path

import pytest
from finished_runs import write_run
from recorded_events import cadence

from tools.finished.reader import read_run
from tools.finished.record import read_events
from utils.errors import UserError

NESTED = {"ffn_adapter_type": "nested_lora", "nested_lora_update_interval_slow": 5}


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path, "nested", 7, [[90], [80, 70]], **NESTED)


def add(run: Path, *events: dict) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_events_are_read_in_order_and_a_broken_line_has_its_number(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "a", "n": 1}\n{"kind": "b"}\n{"kind": "a", "n": 2}\n')
    assert [event["n"] for event in read_events(file, "a")] == [1, 2]
    assert len(list(read_events(file))) == 3
    file.write_text('{"kind": "a"}\n{"kind": "a", "n"')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2: "):
        list(read_events(file))


def test_a_failed_cadence_is_a_note(run):
    add(run, cadence(0, 12, 5), cadence(1, 12, 5, observed=[5]))
    (note,) = read_run(run).notes
    assert note == (
        "metrics.jsonl: the cadence audit failed in task 1 cycle 0: slow moved at 1 of 12 steps, the configuration "
        "says 2"
    )


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        ({"passed": False}, "task 1 cycle 0: the cadence audit states passed = false, .* give true"),
        ({"observed": [5]}, "states passed = true, .* give false"),
        ({"observed": [4, 8, 12], "expected": [4, 8, 12]}, r"states expected = \[4, 8, 12\], .* give \[5, 10\]"),
        ({"steps": 15}, r"states expected = \[5, 10\], .* give \[5, 10, 15\]"),
        ({"expected": None}, "states expected = null"),
        ({"steps": "x"}, "a cadence event is not as a run writes it"),
    ],
)
def test_a_verdict_that_does_not_follow_is_refused(run, edited, message):
    add(run, {**cadence(1, 12, 5), **edited})
    with pytest.raises(UserError, match=rf"metrics\.jsonl: .*{message}"):
        read_run(run)


def test_what_zero_grad_observes_is_judged_by_nothing(tmp_path):
    run = write_run(tmp_path, "free", 7, [[90]], **NESTED, nested_lora_slow_update="zero_grad")
    add(run, {**cadence(0, 12, 5, observed=[1, 2, 3]), "expected": None, "passed": True})
    assert read_run(run).notes == ()
