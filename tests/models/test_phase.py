"""A phase: its rates, its momentum and decay against SGD written out, and that it goes on as if it had not stopped."""

import io
import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from learners import NESTED, STRANGE, learn

from models.gradients import Gradients
from models.losses import FuncLoss, Loss, RdLoss
from models.phase import Phase, PhaseName
from models.sema import Learner

# ---- rates, momentum and decay


def cosine(start: float, floor: float, epoch: int, epochs: int) -> float:
    return floor + (start - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def test_every_group_follows_its_own_cosine(make, tasks, events):
    keys = {"nested_lora_lr_fast": 0.03, "nested_lora_lr_slow": 0.002, "init_lr": 0.01, "rd_lr": 0.05, "min_lr": 0.001}
    learn(make(**NESTED, **keys, func_epoch=4, rd_epoch=3), tasks([2, 2, 2]))
    rates = {"slow": 0.002, "fast": 0.03, "other": 0.01, "descriptor": 0.05}
    seen = {name: [] for name in rates}
    for epoch in events.of("epoch"):
        for name, rate in epoch["lr"].items():
            epochs = 3 if epoch["phase"] == "rd" else 4
            assert rate == pytest.approx(cosine(rates[name], 0.001, epoch["epoch"], epochs), rel=1e-9)
            seen[name].append(rate)
    assert {name: len(found) for name, found in seen.items()} == {"slow": 4, "fast": 4, "other": 4, "descriptor": 3}


def test_after_an_epoch_s_last_step_nothing_is_saved_before_its_report(make, tasks):
    learner, points = make(func_epoch=2, rd_epoch=1), []
    learner.hooks.keep = points.append
    learner.incremental_train(tasks([2]))  # 12 images in batches of 5
    epoch = ["step", "step", "last step", "epoch"]
    assert points == [*epoch, *epoch, "stage", *epoch, "stage", "stage"]


def test_rows_of_other_classes_feel_only_decay_and_momentum_starts_anew_each_phase(make, tasks, script):
    """Rows of classes yet to come, through the two func phases of a task, against SGD written out."""
    decay, rate = 0.5, 0.1
    learner, data = make(weight_decay=decay, init_lr=rate), tasks([2, 2, 2])
    learn(learner, data)
    script({1: [STRANGE], 2: [0, STRANGE]})
    row = learner.network.fc.weight[4].detach().double().numpy().copy()
    old = learner.network.fc.weight[0].detach().double().numpy().copy()
    expected = []
    for value in (row, old):
        for _ in range(2):  # cycles
            velocity = np.zeros_like(value)
            for step in range(6):  # 2 epochs of 5, 5, 2 images
                velocity = 0.9 * velocity + decay * value
                value = value - cosine(rate, 0.0, step // 3, 2) * velocity
        expected.append(value)
    learn(learner, data)
    np.testing.assert_allclose(learner.network.fc.weight[4].detach().numpy(), expected[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(learner.network.fc.weight[0].detach().numpy(), expected[1], rtol=1e-4, atol=1e-7)


def test_a_lone_router_feels_only_decay_in_the_first_task(make, tasks):
    decay, rate = 0.5, 0.1
    learner = make(weight_decay=decay, init_lr=rate)
    value = learner.network.slots[1].router.weight.detach().double().numpy().copy()
    outside = learner.network.slots[0].router.weight.detach().clone()
    velocity = np.zeros_like(value)
    for step in range(6):
        velocity = 0.9 * velocity + decay * value
        value = value - cosine(rate, 0.0, step // 3, 2) * velocity
    learn(learner, tasks([2, 2, 2]))
    np.testing.assert_allclose(learner.network.slots[1].router.weight.detach().numpy(), value, rtol=1e-4, atol=1e-7)
    assert torch.equal(learner.network.slots[0].router.weight, outside)


# ---- state

RECORDS = "backbone.blocks.{}.adapter_module.adapters.0.records.losses"
INTERVAL, EPOCHS, SAVED_AFTER = 4, 3, 5  # steps of an epoch: 3, so the state is of the middle of an epoch and interval


class Walk:
    """A phase of the first task, stepped by hand; everything that comes of it is kept."""

    def __init__(self, learner: Learner, data: Any, name: PhaseName, values: dict[str, torch.Tensor]) -> None:
        self.learner, self.name = learner, name
        learner.begin_data(data)
        for slot in learner.network.expandable:
            slot.newest.records.losses = values.get(RECORDS.format(slot.layer), slot.newest.records.losses)
        learner.network.load_state_dict(values or learner.network.state_dict())
        self.phase: Phase = learner.update_optimizer_and_scheduler(name)
        self.seen: list[Any] = []

    def loss(self) -> Loss:
        learner, stream = self.learner, (self.name, 0, 0)
        if self.name == "rd":
            return RdLoss(learner.network, learner.train_loader, stream, 5)
        return FuncLoss(learner.network, learner.train_loader, stream, 5, range(learner.total_classes))

    def steps(self, count: int) -> None:
        loss, phase = self.loss(), self.phase
        gradients = Gradients.of(phase.optimizer, loss, self.learner.config)
        self.learner.network.train(loss.trains_network)
        for _ in range(count):
            (batch,) = islice(loss.batches(phase.epoch, phase.sums.batches), 1)
            if phase.telemetry:
                phase.telemetry.arm()
            found, hits = gradients(batch)
            moves = phase.step()
            phase.sums.add(found, hits, len(batch[0]), moves)
            self.seen.append((found.item(), moves, phase.rates, phase.telemetry.measure() if phase.telemetry else []))
            if phase.sums.batches == 3:
                phase.end_epoch()

    def outcome(self) -> dict[str, Any]:
        """Everything by which two phases could differ."""
        self.phase.refuse_divergence()
        return {
            "seen": self.seen,
            "values": {name: value.tolist() for name, value in self.learner.network.learned_state().items()},
            "cadence": self.phase.cadence(),
            "state": repr(self.phase.state_dict()),
        }


@pytest.fixture
def begin(make, tasks) -> Callable[..., Walk]:
    keys = {"func_epoch": EPOCHS, "rd_epoch": EPOCHS, "weight_decay": 0.01, "nested_lora_lr_slow": 0.05}

    def begin(name: PhaseName, values: dict[str, torch.Tensor] | None = None, **more: Any) -> Walk:
        learner = make(**{**NESTED, **keys, **more, "nested_lora_update_interval_slow": INTERVAL})
        return Walk(learner, tasks([2, 2, 2]), name, values or {})

    return begin


def saved(walk: Walk) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The state of a phase as it comes back from a file that holds no code, and that of its network."""
    file = io.BytesIO()
    torch.save((walk.phase.state_dict(), walk.learner.network.state_dict()), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("mode", ["skip", "accumulate", "zero_grad", "rd"])
def test_a_phase_saved_within_an_interval_goes_on_as_if_it_had_not_stopped(begin, mode, optimizer):
    name = "rd" if mode == "rd" else "func"
    keys = {"optimizer": optimizer, **({"nested_lora_slow_update": mode} if name == "func" else {})}
    whole = begin(name, **keys)
    whole.steps(SAVED_AFTER)
    state, values = saved(whole)
    whole.steps(3 * EPOCHS - SAVED_AFTER)
    again = begin(name, values, **keys)
    again.phase.load_state_dict(state)
    again.steps(3 * EPOCHS - SAVED_AFTER)
    again.seen = whole.seen[:SAVED_AFTER] + again.seen
    assert again.outcome() == whole.outcome()
    assert [moves for _, moves, *_ in whole.seen if moves] == ([{"slow": 4}, {"slow": 8}] if name == "func" else [])


PARTS = ["epoch", "steps", "optimizer", "scheduler", "gates", "watches", "telemetry", "sums"]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_state_counts(begin, part):
    """With any part of it as in a phase just begun, the phase goes on otherwise; with all of them it does not."""
    whole = begin("func", nested_lora_slow_update="accumulate")
    begun, _ = saved(whole)
    whole.steps(SAVED_AFTER)
    state, values = saved(whole)
    assert {*state} == {*PARTS, "name"}
    whole.steps(1)
    last = whole.seen.pop()
    for changed in (state, {**state, part: begun[part]}):
        again = begin("func", values, nested_lora_slow_update="accumulate")
        again.phase.load_state_dict(changed)
        again.steps(1)
        equal = again.seen == [last] and again.outcome() | {"seen": []} == whole.outcome() | {"seen": []}
        assert equal == (changed is state)
