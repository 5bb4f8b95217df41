"""What the two phases minimise, image by image."""

import math

import pytest
import torch
from learners import LAYERS, learn

from backbone.sema_block import SEMAModules
from models.losses import FuncLoss, RdLoss
from models.sema import Learner


def func_loss(learner: Learner) -> FuncLoss:
    return FuncLoss(learner.network, learner.train_loader, ("func",), 5, learner.task_classes)


def rd_loss(learner: Learner) -> RdLoss:
    return RdLoss(learner.network, learner.train_loader, ("rd",), 5)


def test_the_loss_is_cross_entropy_with_the_old_classes_at_minus_infinity(make, tasks):
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    learner.begin_data(data)
    images, labels = torch.rand(5, 3, 32, 32), torch.tensor([2, 3, 3, 2, 3])
    logits = learner.network.eval()(images)["logits"].detach()
    masked = logits[:, :4].double().clone()
    masked[:, :2] = -math.inf
    expected = -sum(masked[i, label] - masked[i].logsumexp(0) for i, label in enumerate(labels)) / 5
    loss, hits = func_loss(learner)((torch.arange(5), images, labels))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hits.item() == sum(int(masked[i].argmax() == label) for i, label in enumerate(labels))


def test_the_rd_loss_is_the_sum_over_layers_of_what_the_cycle_added(make, tasks, script):
    learner, data = make(), tasks([2, 2, 2])
    learner.begin_data(data)
    network, images = learner.network.eval(), torch.rand(5, 3, 32, 32)

    def by_hand(slots: list[SEMAModules]) -> float:
        means = network.token_means(images, LAYERS)
        return sum(((slot.newest.rd(means[slot.layer]) - means[slot.layer]) ** 2).mean().item() for slot in slots)

    both, batch = [network.slots[layer] for layer in LAYERS], (torch.arange(5), images, torch.empty(0))
    assert rd_loss(learner)(batch)[0].item() == pytest.approx(by_hand(both), rel=1e-5)
    for slot in both:
        slot.end_of_cycle()
    network.slots[2].expand()
    assert rd_loss(learner)(batch)[0].item() == pytest.approx(by_hand([network.slots[2]]), rel=1e-5)
