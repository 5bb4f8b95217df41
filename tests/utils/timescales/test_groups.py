"""Groups, rates and the slow gate: against hand-computed steps of SGD and AdamW."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from easydict import EasyDict
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim

from utils.errors import ConfigError
from utils.timescales.gate import SlowGate, check_interval, steps_of, verify_gate
from utils.timescales.groups import count_parameters, describe, func_groups, make_optimizer, rd_groups, verify_groups

ARGS = EasyDict(
    nested_lora_lr_slow=0.001,
    nested_lora_lr_fast=0.01,
    init_lr=0.005,
    rd_lr=0.02,
    optimizer="sgd",
    weight_decay=0.1,
    nested_lora_update_interval_slow=2,
    nested_lora_slow_update="skip",
)
GROUP_OF = {"slow": "slow", "fast": "fast", "adapter": "other", "router": "other", "head": "other"}
ROLES = [*GROUP_OF, "descriptor"]


def args(**changes: object) -> EasyDict:
    return EasyDict({**ARGS, **changes})


def parameter(size: int = 3, learns: bool = True) -> nn.Parameter:
    return nn.Parameter(torch.randn(size, dtype=torch.float64), requires_grad=learns)


def one_of_each() -> dict[str, nn.Parameter]:
    return {role: parameter(size) for size, role in enumerate(ROLES, start=1)}


# ---- groups


@given(st.lists(st.tuples(st.sampled_from(ROLES), st.booleans())))
def test_every_learning_parameter_is_in_the_one_group_of_its_role(drawn):
    roles = [(role, parameter(learns=learns)) for role, learns in drawn]
    expected: dict[str, list[int]] = {"slow": [], "fast": [], "other": [], "descriptor": []}
    for role, member in roles:
        if member.requires_grad:
            expected[GROUP_OF.get(role, role)].append(id(member))
    groups = func_groups(iter(roles), ARGS)
    assert [(group["name"], group["lr"]) for group in groups] == [("slow", 0.001), ("fast", 0.01), ("other", 0.005)]
    (descriptors,) = rd_groups(iter(roles), ARGS)
    assert (descriptors["name"], descriptors["lr"]) == ("descriptor", 0.02)
    for group in (*groups, descriptors):
        assert [id(member) for member in group["params"]] == expected[group["name"]]


@pytest.mark.parametrize("groups", [func_groups, rd_groups])
def test_an_unknown_role_is_an_error(groups):
    with pytest.raises(KeyError, match="gate"):
        groups([("gate", parameter())], ARGS)


@pytest.mark.parametrize(("kind", "optimizer"), [("sgd", optim.SGD), ("adam", optim.AdamW)])
def test_the_optimizer_holds_the_filled_groups_with_their_rates(caplog, kind, optimizer):
    members = one_of_each()
    del members["slow"]
    caplog.set_level("INFO")
    held = make_optimizer(func_groups(members.items(), ARGS), args(optimizer=kind))
    assert type(held) is optimizer
    assert [(group["name"], group["lr"]) for group in held.param_groups] == [("fast", 0.01), ("other", 0.005)]
    assert {group["weight_decay"] for group in held.param_groups} == {0.1}
    assert {group["fused"] for group in held.param_groups} == {True}
    if kind == "sgd":
        assert {group["momentum"] for group in held.param_groups} == {0.9}
    for name, rate, tensors, numbers in (("slow", 0.001, 0, 0), ("fast", 0.01, 1, 2), ("other", 0.005, 3, 12)):
        assert f"group {name}: lr {rate:g}, {tensors} tensors, {numbers} parameters" in caplog.text


def test_describe_counts_tensors_and_parameters():
    group = {"name": "fast", "lr": 0.5, "params": [parameter(3), parameter(4)]}
    assert describe(group) == {"name": "fast", "lr": 0.5, "tensors": 2, "parameters": 7}


def test_parameters_are_counted_by_role_frozen_or_not():
    roles = [("slow", parameter(3, learns=False)), ("head", parameter(5)), ("slow", parameter(4))]
    assert count_parameters(roles) == {"slow": 7, "head": 5}


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
    check_interval(interval, 12, task=3)


def test_an_interval_longer_than_the_phase_is_an_error_that_names_both():
    with pytest.raises(ConfigError, match=r"nested_lora_update_interval_slow.*\b13\b.*task 4.*\b12\b"):
        check_interval(13, 12, task=4)


# ---- holding the optimizer against the declaration


@pytest.fixture
def members() -> dict[str, nn.Parameter]:
    return one_of_each()


def optimizer_for(groups: list[dict]) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    held = make_optimizer(groups, ARGS)
    return held, optim.lr_scheduler.CosineAnnealingLR(held, 4)


def test_what_was_declared_passes_at_every_epoch(members):
    held, scheduler = optimizer_for(func_groups(members.items(), ARGS))
    for _ in range(4):
        verify_groups(held, members.items(), ARGS)
        held.step()
        scheduler.step()


def test_declared_groups_that_are_empty_pass(members):
    for role in ("slow", "fast", "adapter", "router"):
        members[role].requires_grad_(False)
    held, _ = optimizer_for(func_groups(members.items(), ARGS))
    assert [group["name"] for group in held.param_groups] == ["other"]
    verify_groups(held, members.items(), ARGS)


def _slow_in_fast(groups: dict[str, dict]) -> None:
    groups["fast"]["params"] += groups["slow"]["params"]
    groups["slow"]["params"] = []


def _swapped(groups: dict[str, dict]) -> None:
    groups["fast"]["params"], groups["slow"]["params"] = groups["slow"]["params"], groups["fast"]["params"]


def _all_in_other(groups: dict[str, dict]) -> None:
    for name in ("slow", "fast"):
        groups["other"]["params"] += groups[name]["params"]
        groups[name]["params"] = []


def _one_missing(groups: dict[str, dict]) -> None:
    groups["other"]["params"] = groups["other"]["params"][:-1]


def _group_missing(groups: dict[str, dict]) -> None:
    groups["slow"]["params"] = []


def _stranger(groups: dict[str, dict]) -> None:
    groups["slow"]["params"] = [*groups["slow"]["params"], parameter()]


def _rate(groups: dict[str, dict]) -> None:
    groups["slow"]["lr"] = 0.01


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (_slow_in_fast, "group slow"),
        (_swapped, "group slow"),
        (_all_in_other, "group slow"),
        (_one_missing, "group other"),
        (_group_missing, "group slow"),
        (_stranger, "group slow"),
        (_rate, r"group slow.*0\.001.*0\.01"),
    ],
)
def test_an_optimizer_that_is_not_as_declared_is_an_error(members, fault, named):
    groups = {group["name"]: group for group in func_groups(members.items(), ARGS)}
    fault(groups)
    held, _ = optimizer_for(list(groups.values()))
    with pytest.raises(RuntimeError, match=named):
        verify_groups(held, members.items(), ARGS)


def test_a_rate_is_compared_as_declared_and_not_as_scheduled(members):
    held, scheduler = optimizer_for(func_groups(members.items(), ARGS))
    held.step()
    scheduler.step()
    assert held.param_groups[0]["lr"] < 0.001
    verify_groups(held, members.items(), ARGS)
    with pytest.raises(RuntimeError, match="group slow"):
        verify_groups(held, members.items(), args(nested_lora_lr_slow=0.002))


def test_a_gate_as_declared_passes(members):
    verify_gate(SlowGate([members["slow"]], 2, "skip"), members.items(), ARGS)
    verify_gate(SlowGate([members["slow"]], 0, "skip"), members.items(), args(nested_lora_update_interval_slow=1))
    verify_gate(SlowGate([members["slow"]], 1, "skip"), members.items(), args(nested_lora_update_interval_slow=0))


@pytest.mark.parametrize(
    "make",
    [
        lambda members: SlowGate([members["slow"]], 3, "skip"),
        lambda members: SlowGate([members["slow"]], 1, "skip"),
        lambda members: SlowGate([members["slow"]], 2, "zero_grad"),
        lambda members: SlowGate([members["fast"]], 2, "skip"),
        lambda members: SlowGate([], 2, "skip"),
        lambda members: SlowGate([members["slow"], members["fast"]], 2, "skip"),
    ],
)
def test_a_gate_that_is_not_as_declared_is_an_error(members, make):
    with pytest.raises(RuntimeError, match=r"slow gate.*declared are 2, skip, 1"):
        verify_gate(make(members), members.items(), ARGS)


# ---- the slow gate


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
        self.gate = SlowGate([slow], interval, mode)
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
    assert phase.gate.updates == sum(expected) == {0: 11, 1: 11, 2: 5, 5: 2}[interval]
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
    assert phase.gate.updates == STEPS // interval


@pytest.mark.parametrize("mode", ["skip", "zero_grad", "accumulate"])
def test_intervals_of_one_make_all_modes_the_plain_optimizer(gradients, mode):
    phase = Phase(gradients, 1, mode, "sgd", 0.1)
    np.testing.assert_allclose(phase.slow[-1], sgd(phase.slow[0], list(gradients), 0.1), rtol=1e-10)


def test_a_parameter_without_gradient_counts_as_zero_in_the_mean():
    silent = parameter()
    gate = SlowGate([silent], 2, "accumulate")
    silent.grad = torch.full((3,), 4.0, dtype=torch.float64)
    assert not gate.before_step()
    assert silent.grad is None
    assert gate.before_step()
    assert silent.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("mode", ["skip", "zero_grad", "accumulate"])
def test_a_gate_without_parameters_never_reports_an_update(mode):
    gate = SlowGate([], 2, mode)
    assert [gate.before_step() for _ in range(4)] == [False] * 4
    assert gate.updates == 0
    assert gate.steps == 4


@given(st.integers(0, 9), st.integers(0, 40))
def test_updates_and_pending_against_counting(interval, steps):
    gate = SlowGate([parameter()], interval, "skip")
    updates, since = 0, 0
    for _ in range(steps):
        since += 1
        if since == max(1, interval):
            updates, since = updates + 1, 0
        gate.before_step()
    assert (gate.updates, gate.pending, gate.steps) == (updates, since, steps)
    assert gate.updates == math.floor(steps / max(1, interval))
