"""The plain learner really does the plain method's work, and gets the learner's numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from backbone.sema_components import AE
from benchmarks.reference import PlainSlot, Reference
from models.sema import Learner

SMALL = {"func_epoch": 2, "rd_epoch": 1, "batch_size": 5, "detect_batch_size": 5}


@pytest.fixture
def pair(config: Callable[..., Any], tasks: Callable[..., Any]) -> tuple[Learner, Reference]:
    """Both learners at the beginning of their first rd phase."""
    learners = Learner(config(**SMALL)), Reference(config(**SMALL))
    for learner in learners:
        learner.begin_data(tasks([2, 2, 2]))
        learner.begin_task()
        learner.network.eval()
    return learners


def test_both_begin_with_the_same_values(pair):
    ours, plain = (learner.network.state_dict() for learner in pair)
    assert ours.keys() == plain.keys()
    for name, value in ours.items():
        assert torch.equal(plain[name], value), name


def gradients(learner: Learner) -> dict[str, Tensor]:
    named = learner.network.named_parameters()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def test_the_rd_phase_gives_a_gradient_to_all_that_is_trainable_and_descriptors_the_learners(pair, images):
    got = []
    for learner in pair:
        loss, _ = learner.loss("rd")((torch.arange(5), images, torch.zeros(5)))
        loss.backward()
        got.append(gradients(learner))
    ours, plain = got
    assert all(".rd." in name for name in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(plain[name], gradient)
    before = {
        f"backbone.blocks.{layer}.adapter_module.adapters.0.functional" for layer in (0, 1)
    }  # the last rd is at 2
    assert {name.rsplit(".", 2)[0] for name in plain if ".functional." in name} == before


def test_samples_pass_the_descriptors_one_by_one_and_the_network_as_a_whole(pair, images, monkeypatch):
    reference, shapes, passes, forward = pair[1], [], [], AE.forward
    monkeypatch.setattr(AE, "forward", lambda rd, mean: shapes.append(tuple(mean.shape)) or forward(rd, mean))
    reference.network.fc.register_forward_hook(lambda *_: passes.append("all of it"))
    reference.loss("rd")((torch.arange(5), images, torch.zeros(5)))
    reference.look(images)
    assert shapes == [(32,)] * 5 * 2 * 2
    assert len(passes) == 2
    for slot in reference.network.expandable:
        assert type(slot) is PlainSlot
        assert len(slot.newest.records) == 5


def test_adapters_run_one_after_the_other(pair, images):
    reference, calls = pair[1], []
    (slot, _) = reference.network.expandable
    slot.end_of_cycle()
    slot.expand()
    for index, adapter in enumerate(slot.adapters):
        adapter.register_forward_hook(lambda *_, place=index: calls.append(place))
    reference.network(images)
    assert calls == [0, 1]


def test_the_test_set_is_scored_after_every_epoch(config, tasks, monkeypatch):
    reference, scored, predict = Reference(config(**SMALL)), [], Reference.predict
    monkeypatch.setattr(Reference, "predict", lambda self: scored.append(str(self.phase)) or predict(self))
    reference.incremental_train(tasks([2, 2, 2]))
    phases = [("func", 1), ("func", 2), ("rd", 1)]
    assert scored == [f"task 0 cycle 0 {name} phase, epoch {1 + done}" for name, done in phases]
