"""The observing half of the cadence audit."""

import torch
from torch import nn

from utils.timescales.watch import CadenceWatch


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


def test_a_watch_goes_on_after_the_steps_of_another():
    tensor = nn.Parameter(torch.zeros(3))
    first = CadenceWatch([tensor])
    for move in (0.0, 1.0):
        with torch.no_grad():
            tensor.add_(move)
        first.after_step()
    second = CadenceWatch([tensor])
    second.restore(first.moved())
    with torch.no_grad():
        tensor.add_(1.0)
    second.after_step()
    second.after_step()
    assert (second.moved(), second.observed(), second.steps) == ([False, True, True, False], [2, 3], 4)


def test_a_watch_of_nothing_sees_no_step():
    watch = CadenceWatch([])
    watch.after_step()
    assert (watch.steps, watch.observed(), watch.moved()) == (0, [], [])
