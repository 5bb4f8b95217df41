"""The slow gate, against hand-computed steps of SGD and AdamW."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timescale_cases import ARGS, THREE, args, declared, parameter

from utils.errors import ConfigError
from utils.timescales.gate import Gate, check_intervals, steps_of
from utils.timescales.groups import make_optimizer

# ---- the intervals


@pytest.mark.parametrize("images", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("epochs", [1, 3])
def test_steps_against_counting_batches(images, epochs):
    counted = 0
    for _ in range(epochs):
        left = images
        while left > 0:
            left, counted = left - 32, counted + 1
    assert steps_of(images, 32, epochs) == counted


@pytest.mark.parametrize("interval", [0, 1, 11, 12])
def test_an_interval_within_the_phase_passes(interval):
    check_intervals(args(nested_lora_update_interval_slow=interval), 12, task=3)


def test_an_interval_longer_than_the_phase_is_an_error_that_names_both():
    with pytest.raises(ConfigError, match=r"nested_lora_update_interval_slow.*\b13\b.*task 4.*\b12\b.*: slow would"):
        check_intervals(args(nested_lora_update_interval_slow=13), 12, task=4)


def test_the_intervals_of_the_scales_that_train_are_checked_each():
    config = args(nested_lora_update_interval_mid=13)
    check_intervals(config, 12, 4)  # as declared, without mid
    check_intervals(config, 12, 4, [scale for scale in THREE if scale.name != "mid"])
    message = r"nested_lora_update_interval_mid is 13.*task 4 has 12.*: mid would"
    with pytest.raises(ConfigError, match=message):
        check_intervals(config, 12, 4, THREE)
    with pytest.raises(ConfigError, match=message):
        declared(THREE, "gate").check_intervals(config, 12, 4)


# ---- the gate


class Phase:
    """A func phase over given gradients: slow under the gate, fast beside it.

    Attributes:
        slow: Value of slow before the first and after each step, (steps + 1, 3).
        fast: The same of fast.
        said: What the gate answered at each step.
    """

    RATE, MOMENTUM = 0.1, 0.9

    def __init__(self, gradients: np.ndarray, interval: int, mode: str, kind: str, decay: float) -> None:
        slow, fast = parameter(), parameter()
        groups = [{"name": name, "params": [p], "lr": self.RATE} for name, p in (("slow", slow), ("fast", fast))]
        optimizer = make_optimizer(groups, args(optimizer=kind, weight_decay=decay))
        self.gate = Gate([slow], interval, mode)
        self.slow, self.fast = [slow.detach().numpy().copy()], [fast.detach().numpy().copy()]
        self.said = []
        for gradient in gradients:
            optimizer.zero_grad(set_to_none=True)
            (torch.from_numpy(gradient) * (slow + fast)).sum().backward()
            self.said.append(self.gate.before_step())
            optimizer.step()
            self.slow.append(slow.detach().numpy().copy())
            self.fast.append(fast.detach().numpy().copy())


def sgd(start: np.ndarray, gradients: Sequence[np.ndarray | None], decay: float) -> np.ndarray:
    """Where SGD with momentum takes `start`; a step without gradient is none."""
    value, velocity = start.copy(), None
    for gradient in gradients:
        if gradient is None:
            continue
        full = gradient + decay * value
        velocity = full if velocity is None else Phase.MOMENTUM * velocity + full
        value = value - Phase.RATE * velocity
    return value


def adamw(start: np.ndarray, gradients: Sequence[np.ndarray | None], decay: float) -> np.ndarray:
    """The same of AdamW (arXiv 1711.05101, algorithm 2), torch's default betas and epsilon."""
    value, first, second, step = start.copy(), 0.0, 0.0, 0
    for gradient in gradients:
        if gradient is None:
            continue
        step += 1
        value = value * (1 - Phase.RATE * decay)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        value = value - Phase.RATE * first / (1 - 0.9**step) / scale
    return value


BY_HAND: dict[str, Callable[..., np.ndarray]] = {"sgd": sgd, "adam": adamw}
KINDS = [("sgd", 0.0), ("sgd", 0.1), ("adam", 0.1)]
STEPS = 11


@pytest.fixture
def gradients() -> np.ndarray:
    return np.random.RandomState(0).randn(STEPS, 3)


@pytest.mark.parametrize(("kind", "decay"), KINDS)
@pytest.mark.parametrize("interval", [0, 1, 2, 5])
@pytest.mark.parametrize("mode", ["skip", "accumulate"])
def test_slow_stands_bitwise_still_between_its_steps(gradients, kind, decay, interval, mode):
    phase = Phase(gradients, interval, mode, kind, decay)
    moved = [not np.array_equal(before, after) for before, after in zip(phase.slow, phase.slow[1:], strict=False)]
    expected = [step % max(1, interval) == 0 for step in range(1, STEPS + 1)]
    assert moved == phase.said == expected
    assert sum(phase.said) == {0: 11, 1: 11, 2: 5, 5: 2}[interval]
    assert phase.gate.pending == {0: 0, 1: 0, 2: 1, 5: 1}[interval]
    assert all(not np.array_equal(before, after) for before, after in zip(phase.fast, phase.fast[1:], strict=False))


@pytest.mark.parametrize(("kind", "decay"), KINDS)
@pytest.mark.parametrize("interval", [0, 1, 2, 5])
def test_skip_steps_with_every_kth_gradient_alone(gradients, kind, decay, interval):
    phase = Phase(gradients, interval, "skip", kind, decay)
    given = [gradient if said else None for gradient, said in zip(gradients, phase.said, strict=True)]
    np.testing.assert_allclose(phase.slow[-1], BY_HAND[kind](phase.slow[0], given, decay), rtol=1e-10)
    np.testing.assert_allclose(phase.fast[-1], BY_HAND[kind](phase.fast[0], list(gradients), decay), rtol=1e-10)


@pytest.mark.parametrize(("kind", "decay"), KINDS)
@pytest.mark.parametrize("interval", [0, 1, 2, 5])
def test_accumulate_steps_with_the_mean_gradient_of_each_interval(gradients, kind, decay, interval):
    phase = Phase(gradients, interval, "accumulate", kind, decay)
    every = max(1, interval)
    ends = range(every, STEPS + 1, every)  # what follows the last is an interval without end, and dropped
    means = [sum(gradients[end - every : end]) / every for end in ends]
    np.testing.assert_allclose(phase.slow[-1], BY_HAND[kind](phase.slow[0], means, decay), rtol=1e-10)


@pytest.mark.parametrize(("kind", "decay"), KINDS)
@pytest.mark.parametrize("interval", [2, 5])
def test_zero_grad_really_moves_slow_between_its_steps(gradients, kind, decay, interval):
    """Trap 1: momentum, AdamW and weight decay move what has a gradient of zero."""
    phase = Phase(gradients, interval, "zero_grad", kind, decay)
    given = [gradient if said else np.zeros(3) for gradient, said in zip(gradients, phase.said, strict=True)]
    np.testing.assert_allclose(phase.slow[-1], BY_HAND[kind](phase.slow[0], given, decay), rtol=1e-10)
    after_first = range(interval, STEPS)
    assert all(not np.array_equal(phase.slow[step], phase.slow[step + 1]) for step in after_first)
    skipped = sum(np.abs(phase.slow[step + 1] - phase.slow[step]).sum() for step in after_first if not phase.said[step])
    assert skipped > 0
    assert sum(phase.said) == STEPS // interval


@pytest.mark.parametrize("mode", ["skip", "zero_grad", "accumulate"])
def test_intervals_of_one_make_all_modes_the_plain_optimizer(gradients, mode):
    phase = Phase(gradients, 1, mode, "sgd", 0.1)
    np.testing.assert_allclose(phase.slow[-1], sgd(phase.slow[0], list(gradients), 0.1), rtol=1e-10)


def test_a_parameter_without_gradient_counts_as_zero_in_the_mean():
    silent = parameter()
    gate = Gate([silent], 2, "accumulate")
    silent.grad = torch.full((3,), 4.0, dtype=torch.float64)
    assert not gate.before_step()
    assert silent.grad is None
    assert gate.before_step()
    assert silent.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("mode", ["skip", "zero_grad", "accumulate"])
def test_a_gate_without_parameters_never_reports_an_update(mode):
    gate = Gate([], 2, mode)
    assert [gate.before_step() for _ in range(4)] == [False] * 4
    assert gate.steps == 4


@given(st.integers(0, 9), st.integers(0, 40))
def test_updates_and_pending_against_counting(interval, steps):
    gate = Gate([parameter()], interval, "skip")
    updates, since, said = 0, 0, 0
    for _ in range(steps):
        since += 1
        if since == max(1, interval):
            updates, since = updates + 1, 0
        said += gate.before_step()
    assert (said, gate.pending, gate.steps) == (updates, since, steps)
    assert said == math.floor(steps / max(1, interval))


@pytest.mark.parametrize("mode", ["skip", "accumulate"])
def test_a_gate_goes_on_from_anothers_state(gradients, mode):
    """Seven steps, then four on another gate: the same gradients at every step as on one gate."""

    def prepared(gate: Gate, rows: np.ndarray) -> list[list[float] | None]:
        seen: list[list[float] | None] = []
        for row in rows:
            gate.parameters[0].grad = torch.from_numpy(row.copy())
            gate.before_step()
            gradient = gate.parameters[0].grad
            seen.append(None if gradient is None else gradient.tolist())
        return seen

    whole, first, second = (Gate([parameter()], 3, mode) for _ in range(3))
    wanted, begun = prepared(whole, gradients), prepared(first, gradients[:7])
    second.restore(first.state())
    assert begun + prepared(second, gradients[7:]) == wanted
    assert [step for step, gradient in enumerate(wanted, start=1) if gradient is not None] == [3, 6, 9]
    assert (second.steps, second.pending) == (11, 2)


def test_gates_of_several_scales_stand_side_by_side(gradients):
    """Slow skips with interval 2, mid takes the mean of 3 gradients, fast has no gate."""
    members = {scale.name: parameter() for scale in THREE}
    gates = {
        scale.name: Gate([members[scale.name]], scale.interval(ARGS), scale.update(ARGS))
        for scale in THREE
        if scale.interval_key
    }
    assert list(gates) == ["slow", "mid"]
    for step, gradient in enumerate(gradients, start=1):
        for member in members.values():
            member.grad = torch.from_numpy(gradient.copy())
        moved = {name for name, gate in gates.items() if gate.before_step()}
        expected = {"slow": gradient if step % 2 == 0 else None, "fast": gradient}
        expected["mid"] = gradients[step - 3 : step].sum(axis=0) / 3 if step % 3 == 0 else None
        assert moved == {name for name in gates if expected[name] is not None}
        for name, value in expected.items():
            assert (members[name].grad is None) == (value is None)
            if value is not None:
                np.testing.assert_allclose(members[name].grad.numpy(), value, rtol=1e-12)
