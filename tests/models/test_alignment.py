"""Classifier alignment: the Gaussians against numpy, the training of the head against a loop by hand, and a learner."""

import copy

import numpy as np
import pytest
import torch
from learners import NESTED, SMALL, assert_equal_states, learn, moved, values
from torch import nn

from models import Setup, get_model
from models.alignment import JITTER, ClassGaussians, Settings, align
from models.protocol import Hooks
from models.readouts import square
from utils.readouts import ALIGNMENT
from utils.runs.checkpoint import CheckpointError, read_checkpoint
from utils.streams import generator

WIDTH, SIZES = 5, [2, 2, 2]
ALIGNED = {"classifier_alignment": True, "classifier_alignment_epochs": 2, "classifier_alignment_samples": 6}


@pytest.fixture
def data():
    rng = np.random.RandomState(1)
    labels = np.repeat([0, 1, 2], [7, 9, 1])
    return torch.from_numpy(rng.randn(17, WIDTH).astype(np.float32) + labels[:, None]), torch.from_numpy(labels)


@pytest.fixture
def gaussians(data):
    found = ClassGaussians(WIDTH)
    features, labels = data
    found.observe(features[:16], labels[:16], range(2))
    found.observe(features[16:], labels[16:], range(2, 3))
    return found


def test_a_gaussian_has_the_mean_and_the_covariance_of_its_class(gaussians, data):
    features, labels = (tensor.numpy() for tensor in data)
    for label in range(3):
        x = features[labels == label].astype(np.float64)
        np.testing.assert_allclose(gaussians.means[label], x.mean(axis=0), rtol=1e-6)
        expected = np.cov(x.T) if len(x) > 1 else np.zeros((WIDTH, WIDTH))
        np.testing.assert_allclose(square(gaussians.covariances[label].double()), expected, atol=1e-6)
    for label, mean, factor in gaussians.factors():
        assert torch.equal(mean, gaussians.means[label])
        whole = square(gaussians.covariances[label].double()).numpy()
        whole += JITTER * whole.trace() / WIDTH * np.eye(WIDTH)
        np.testing.assert_allclose(factor @ factor.T, whole, atol=1e-6)


def test_a_class_without_images_has_no_samples(gaussians):
    gaussians.observe(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64), range(3, 4))
    assert [label for label, _, _ in gaussians.factors()] == [0, 1, 2]
    assert gaussians.classes == 4
    align(head := nn.Linear(WIDTH, 6), gaussians, Settings(1, 4, 0.1, 0.0), 3)
    assert bool(head.weight.isfinite().all())


def test_the_head_is_trained_as_the_formula_says(gaussians):
    head = nn.Linear(WIDTH, 4)
    w, b = head.weight.detach()[:3].double().numpy().copy(), head.bias.detach()[:3].double().numpy().copy()
    samples, rate, decay, kept = 4, 0.3, 0.01, (head.weight[3].clone(), head.bias[3].clone())
    losses = align(head, gaussians, Settings(1, samples, rate, decay), 3, "alignment", 1)
    draws = generator(3, "alignment", 1, 0)
    x = np.concatenate(
        [
            (m + torch.randn(samples, WIDTH, generator=draws) @ factor.T).numpy().astype(np.float64)
            for _, m, factor in gaussians.factors()
        ]
    )
    y, order, momentum, seen = np.repeat([0, 1, 2], samples), torch.randperm(12, generator=draws).numpy(), 0.0, []
    for batch in order.reshape(3, 4):
        weight, bias = torch.from_numpy(w).requires_grad_(), torch.from_numpy(b).requires_grad_()
        z = torch.from_numpy(x[batch]) @ weight.T + bias
        z = z / (0.1 * z.square().sum(1, keepdim=True).sqrt())
        loss = (z.logsumexp(1) - z[torch.arange(4), y[batch]]).mean()
        loss.backward()
        seen.append(float(loss.detach()))
        step = np.concatenate([weight.grad.numpy() + decay * w, (bias.grad.numpy() + decay * b)[:, None]], axis=1)
        momentum = 0.9 * momentum + step
        w, b = w - rate * momentum[:, :-1], b - rate * momentum[:, -1]
    np.testing.assert_allclose(head.weight.detach()[:3], w, atol=1e-5)
    np.testing.assert_allclose(head.bias.detach()[:3], b, atol=1e-5)
    assert losses == pytest.approx([np.mean(seen)], rel=1e-5)
    assert torch.equal(head.weight[3], kept[0])
    assert torch.equal(head.bias[3], kept[1])


# ---- in a learner


@pytest.fixture
def make(config, events):
    return lambda **keys: get_model(
        Setup.of(config(**{**SMALL, "exp_threshold": 1e9, **ALIGNED, **keys})), Hooks(events)
    )


@pytest.mark.parametrize("keys", [{}, NESTED, {"model_name": "finetune"}, {"model_name": "linear"}])
def test_only_the_head_changes_by_alignment_and_from_the_second_task_on(make, tasks, events, monkeypatch, keys):
    learner, data, changed = make(**keys), tasks(SIZES), []
    plain = type(learner)._align

    def watched(learner):
        before = values(learner.network)
        plain(learner)
        changed.append(moved(learner.network, before))

    monkeypatch.setattr(type(learner), "_align", watched)
    learn(learner, data, 3)
    assert changed == [set(), {"fc.weight", "fc.bias"}, {"fc.weight", "fc.bias"}]
    found = list(events.of("alignment"))
    assert [(event["task"], len(event["losses"])) for event in found] == [(1, 2), (2, 2)]
    assert all(event["head_change"] > 0 for event in found)


def test_an_aligned_head_tells_the_classes_of_all_tasks_apart(make, tasks):
    hits, keys = {}, {"model_name": "linear", "classifier_alignment_epochs": 20}
    for aligned in (True, False):
        learner, data = make(**keys, classifier_alignment=aligned), tasks([2, 2], test=20)
        learn(learner, data)
        learner.incremental_train(data)
        predictions = learner.predict()
        hits[aligned] = int((predictions.top1 == predictions.labels).sum())
    assert (hits[True] > 70, hits[False] < 50) == (True, True), hits


def test_a_resumed_learner_takes_the_gaussians_of_a_checkpoint(make, tasks, tmp_path):
    data, file = tasks(SIZES), tmp_path / "task_1.safetensors"
    whole, cut, resumed = make(), make(), make()
    learn(whole, data, 3)
    learn(cut, data, 2)
    cut.save_checkpoint(file, {})
    tensors = read_checkpoint(file)[0]
    assert tensors["alignment.covariances"].shape == (4, 32 * 33 // 2)
    state = cut.state()
    assert state.keys() == make(classifier_alignment=False).state().keys()  # it is written after every epoch
    assert not [name for name in state["network"]["tensors"] if name.startswith(ALIGNMENT)]
    resumed.restore(state)
    resumed.load_statistics(file)
    learn(resumed, data)
    assert all(torch.equal(value, values(resumed.network)[name]) for name, value in values(whole.network).items())


@pytest.mark.parametrize("task", [0, 1])
def test_a_learner_resumed_from_the_last_state_within_a_task_ends_as_the_whole_one(make, tasks, tmp_path, task):
    data, file = tasks(SIZES), tmp_path / f"task_{task}.safetensors"
    whole, cut, resumed, states = make(), make(), make(), []
    learn(cut, data, task)
    cut.save_checkpoint(file, {})
    cut.hooks.keep = lambda point: states.append(copy.deepcopy(cut.state())) if point == "stage" else None
    learn(cut, data)
    learn(whole, data, 3)
    resumed.restore(states[-1])
    if task:
        resumed.load_statistics(file)
    resumed.continue_training(data)
    resumed.after_task()
    learn(resumed, data, 2 - task)
    assert torch.equal(resumed.gaussians.means, whole.gaussians.means)
    assert_equal_states(whole, resumed)


def test_a_checkpoint_without_its_gaussians_is_refused(make, tasks, tmp_path):
    learner, data, file = make(classifier_alignment=False), tasks(SIZES), tmp_path / "task_0.safetensors"
    learn(learner, data)
    learner.save_checkpoint(file, {})
    other = make()
    other.restore(learner.state())
    with pytest.raises(CheckpointError, match="it lacks the Gaussians of 2 classes that classifier_alignment needs"):
        other.load_statistics(file)
