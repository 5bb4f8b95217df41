"""The judging half of the cadence audit: what it expects, and that it fails a run that broke any one part."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from easydict import EasyDict
from timescale_cases import THREE, args, declared

from utils.errors import AuditError
from utils.runs.events import Cadence
from utils.timescales.judge import expected_steps, judge, refuse_failed, scale_of
from utils.timescales.scales import SCALES

SLOW, FAST = SCALES


def config(interval: int, mode: str = "skip") -> EasyDict:
    return args(nested_lora_update_interval_slow=interval, nested_lora_slow_update=mode)


def observed(steps: int, at: list[int], scale: str | None = "slow", **place: Any) -> Cadence:
    return Cadence(
        **{"task": 1, "cycle": 2, "phase": "func", "tensors": 4, **place}, steps=steps, observed=at, scale=scale
    )


@pytest.mark.parametrize(
    ("steps", "interval", "expected"),
    [(4, 0, [1, 2, 3, 4]), (4, 1, [1, 2, 3, 4]), (5, 2, [2, 4]), (10, 5, [5, 10]), (11, 5, [5, 10]), (4, 5, [])],
)
def test_slow_is_expected_at_multiples_of_the_interval(steps, interval, expected):
    assert expected_steps(SLOW, config(interval), steps) == expected
    assert expected_steps(SLOW, config(interval, "accumulate"), steps) == expected
    assert expected_steps(SLOW, config(interval, "zero_grad"), steps) is None


@pytest.mark.parametrize("mode", ["skip", "zero_grad"])
def test_fast_is_expected_at_every_step(mode):
    assert expected_steps(FAST, config(5, mode), 4) == [1, 2, 3, 4]


@pytest.mark.parametrize("scale", ["slow", None])  # None: an event of an earlier version
@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([2, 4, 5, 6], "moved at 4 of 6 steps, the configuration says 3; step 5 is the first at which it moved and"),
        ([1, 3, 5], "step 1 is the first at which it moved and should not have"),
        ([2, 6], "step 4 is the first at which it did not move and should have"),
        ([], "moved at 0 of 6 steps"),
    ],
)
def test_a_mismatch_is_told_with_its_first_step(scale, at, message):
    event = judge(observed(6, at, scale), config(2))
    assert event.passed is False
    with pytest.raises(AuditError, match=f"task 1 cycle 2 slow .*{message}"):
        refuse_failed(event)


@pytest.mark.parametrize("scale", ["slow", None])
def test_what_is_configured_passes(scale):
    event = judge(observed(6, [2, 4, 6], scale), config(2))
    assert (event.expected, event.passed) == ([2, 4, 6], True)
    refuse_failed(event)
    unpromised = judge(observed(3, [1, 2, 3], scale), config(2, "zero_grad"))
    assert (unpromised.expected, unpromised.passed) == (None, True)
    refuse_failed(unpromised)


@pytest.mark.parametrize(
    ("at", "idle", "first"),
    [
        ([2, 6], [4], None),
        ([], [1, 2, 3, 4, 5, 6], None),
        ([2, 4, 6], [1, 2, 3, 4, 5, 6], None),  # momentum
        ([2], [4], "step 6 is the first at which it did not move"),
        ([2, 4, 5], [5, 6], "step 5 is the first at which it moved"),
        ([], [1, 3, 5], "step 2 is the first at which it did not move"),
    ],
)
def test_a_scale_may_rest_where_nothing_could_move_it_and_moves_at_no_other_step(at, idle, first):
    event = judge(replace(observed(6, at), idle=idle), config(2))
    assert (event.expected, event.passed) == ([2, 4, 6], first is None)
    if first is None:
        refuse_failed(event)
    else:
        with pytest.raises(AuditError, match=first):
            refuse_failed(event)


def test_the_rest_of_an_event_stays_as_it_was():
    event = observed(6, [2, 4, 6], task=3, cycle=0, phase="func", tensors=8)
    assert judge(event, config(2)) == replace(event, expected=[2, 4, 6], passed=True)


def test_an_event_of_an_earlier_version_is_of_the_slowest_scale():
    assert (scale_of(None), scale_of("slow"), scale_of("fast")) == (SLOW, SLOW, FAST)


def test_a_scale_that_is_not_declared_is_an_error_that_names_it():
    with pytest.raises(KeyError, match="mid"):
        judge(observed(6, [2], "mid"), config(2))


def test_a_third_scale_is_judged_by_its_own_interval():
    three = declared(THREE, "judge")
    event = three.judge(observed(7, [3, 5], "mid"), config(2))
    assert (event.expected, event.passed) == ([3, 6], False)
    with pytest.raises(AuditError, match=r"cycle 2 mid moved at 2 of 7 steps, .* says 2; step 5 is the first at which"):
        three.refuse_failed(event)
    assert three.judge(observed(7, [3, 6], "mid"), config(2)).passed


def test_a_finished_run_can_be_judged_without_torch():
    code = "import sys, utils.timescales.judge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
