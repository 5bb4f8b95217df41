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
    second.restore(first.state())
    with torch.no_grad():
        tensor.add_(1.0)
    second.after_step()
    second.after_step()
    assert (second.state()["changes"], second.observed(), second.steps) == ([False, True, True, False], [2, 3], 4)


def test_a_watch_of_nothing_sees_no_step():
    watch = CadenceWatch([])
    watch.before_step()
    watch.after_step()
    assert (watch.steps, watch.observed(), watch.idle()) == (0, [], [])


def seen(watch: CadenceWatch, *gradients: float | None) -> None:
    for parameter, value in zip(watch.parameters, gradients, strict=True):
        parameter.grad = None if value is None else torch.full_like(parameter, value)
    watch.before_step()
    watch.after_step()


def test_a_step_is_idle_if_no_gradient_and_no_decay_could_change_a_value():
    values = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(3))]
    watch = CadenceWatch(values, rate=0.1)
    seen(watch, 0.0, 0.0)
    seen(watch, 0.0, 1e-30)
    seen(watch, 1e-9, 0.0)  # 0.1 * 1e-9 is less than what float32 resolves at 1
    seen(watch, 1.0, 0.0)
    seen(watch, 0.0, None)  # the loss does not depend on the second, as it should
    seen(watch, None, None)
    assert watch.idle() == [1, 3]
    again = CadenceWatch(values, rate=0.1)
    again.restore(watch.state())
    seen(again, 0.0, 0.0)
    assert again.idle() == [1, 3, 7]


def test_decay_is_seen_where_a_value_is_not_zero_and_the_rate_resolves_it():
    one, zero = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    for parameters, rate, idle in (([one], 0.1, []), ([zero], 0.1, [1]), ([zero, one], 0.1, []), ([one], 1e-7, [1])):
        watch = CadenceWatch(parameters, rate, decay=0.01)
        seen(watch, *[0.0] * len(parameters))
        assert watch.idle() == idle
