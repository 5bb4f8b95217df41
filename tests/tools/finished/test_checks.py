"""What a run recorded agrees with its configuration and its results, or the run is refused."""

import json
from pathlib import Path

import pytest
from finished_runs import write_run
from recorded_events import cadence

from tools.finished.checks import close
from tools.finished.reader import read_run
from utils.errors import UserError

NESTED = {"ffn_adapter_type": "nested_lora", "nested_lora_update_interval_slow": 5}


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path, "nested", 7, [[90], [80, 70]], **NESTED)


def add(run: Path, *events: dict) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


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
        ({"passed": False}, "task 1 cycle 0: passed of the cadence audit of slow = false, .* gives true"),
        ({"observed": [5]}, "passed of the cadence audit of slow = true, .* gives false"),
        ({"observed": [4, 8, 12], "expected": [4, 8, 12]}, r"expected of .* = \[4, 8, 12\], .* gives \[5, 10\]"),
        ({"steps": 15}, r"expected of .* = \[5, 10\], .* gives \[5, 10, 15\]"),
        ({"expected": None}, "expected of the cadence audit of slow = null"),
        ({"steps": "x"}, 'line 3: cadence event: steps = "x": input should be a valid integer'),
        ({"scale": "glacial"}, 'a cadence event of "glacial", an unknown time scale'),
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


def phase(task: int, **tensors: int) -> dict:
    groups = [{"name": name, "lr": 0.001, "tensors": count, "parameters": count} for name, count in tensors.items()]
    return {"kind": "phase", "task": task, "cycle": 0, "phase": "func", "groups": groups}


def test_every_gated_scale_that_trains_has_its_audit(run):
    add(run, phase(0, slow=4, fast=4, other=2), cadence(0, 12, 5), phase(1, slow=0, fast=4), phase(1, other=2))
    read_run(run)  # fast has no update interval, and in task 1 slow does not train
    add(run, phase(1, slow=4, fast=4))
    with pytest.raises(UserError, match=r"metrics\.jsonl: task 1 cycle 0: slow trained without a cadence event"):
        read_run(run)
    add(run, {**cadence(1, 12, 5), "scale": "slow"})
    read_run(run)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (0.1 + 0.2, 0.3, True), (1, 1.0, True), (1, 1 + 1e-6, False), (None, 0.0, False), ("x", "x", True),
        ([1, [0.5]], [1, [0.5 + 1e-14]], True), ([1], [1, 2], False), ({"a": 0.5}, {"b": 0.5}, False),
        ({"a": 0.5}, {"a": 0.4}, False), (10**400, 1.0, False), (10**400, 10**400, True), (1e308, 10**400, False),
        (float("inf"), float("inf"), True), (2**53, 2**53 + 1, True),
    ],
)  # fmt: skip
def test_values_are_equal_up_to_rounding(a, b, equal):
    assert close(a, b) is equal
    assert close(b, a) is equal
