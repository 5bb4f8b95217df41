"""The cadence audit: what it sees, what it expects, and that it fails a run that broke any one part."""

import pytest
import torch
from easydict import EasyDict
from torch import nn

from utils.errors import AuditError
from utils.runs.events import Cadence
from utils.timescales.judge import expected_steps, judge, refuse_failed
from utils.timescales.watch import CadenceWatch


def config(interval: int, mode: str = "skip") -> EasyDict:
    return EasyDict(nested_lora_update_interval_slow=interval, nested_lora_slow_update=mode)


def audit(steps: int, observed: list[int]) -> Cadence:
    return Cadence(task=1, cycle=2, phase="func", steps=steps, tensors=1, observed=observed, scale="slow")


def test_the_watch_sees_any_change_of_any_value_and_nothing_else():
    tensors = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.zeros(4))]
    watch = CadenceWatch(tensors)
    for step in range(1, 7):
        with torch.no_grad():
            if step == 2:
                tensors[1][3] = 1e-45  # the smallest float32
            if step == 5:
                tensors[0][0, 0] = torch.nextafter(tensors[0][0, 0], torch.tensor(2.0))
            if step == 6:
                tensors[0].mul_(1.0)
        watch.after_step()
    assert watch.observed() == [2, 5]
    assert watch.steps == 6


@pytest.mark.parametrize(
    ("steps", "interval", "expected"),
    [(4, 0, [1, 2, 3, 4]), (4, 1, [1, 2, 3, 4]), (5, 2, [2, 4]), (10, 5, [5, 10]), (11, 5, [5, 10]), (4, 5, [])],
)
def test_slow_is_expected_at_multiples_of_the_interval(steps, interval, expected):
    assert expected_steps(steps, interval, "skip") == expected_steps(steps, interval, "accumulate") == expected
    assert expected_steps(steps, interval, "zero_grad") is None


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ([2, 4, 5, 6], "moved at 4 of 6 steps, the configuration says 3; step 5 is the first at which it moved and"),
        ([1, 3, 5], "step 1 is the first at which it moved and should not have"),
        ([2, 6], "step 4 is the first at which it did not move and should have"),
        ([], "moved at 0 of 6 steps"),
    ],
)
def test_a_mismatch_is_told_with_its_first_step(observed, message):
    event = judge(audit(6, observed), config(2))
    assert event.passed is False
    with pytest.raises(AuditError, match=f"task 1 cycle 2 .*{message}"):
        refuse_failed(event)


def test_what_is_configured_passes():
    event = judge(audit(6, [2, 4, 6]), config(2))
    assert (event.expected, event.passed) == ([2, 4, 6], True)
    refuse_failed(event)
    refuse_failed(judge(audit(3, [1, 2, 3]), config(2, "zero_grad")))
