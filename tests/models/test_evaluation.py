"""Scoring test images, against counting by hand, and when it is done."""

import numpy as np
import pytest
import timm
import torch
from conftest import SHAPE
from learners import CONTINUAL, NESTED, assert_equal_states, learn

from backbone.vit_sema import sema_blocks
from models.sema import Learner


def test_accuracy_against_counting_by_hand(make, tasks):
    learner, data = make(eval_batch_size=7, func_epoch=4, init_lr=0.05), tasks([3, 2, 1], test=5)
    learn(learner, data)
    learner.incremental_train(data)
    _, images, labels = data.get_dataset(range(5), "test", "test").tensors
    with torch.no_grad():
        logits = learner.network.eval()(images)["logits"].double().numpy()[:, :5]
    first = [int(np.argmax(row)) for row in logits]
    hits = [int(label == guess) for label, guess in zip(labels.tolist(), first, strict=True)]

    def share(chosen: list[int]) -> float:
        return round(100 * sum(chosen) / len(chosen), 2)

    accuracy, predictions = learner.eval_task()
    assert predictions.labels.tolist() == labels.tolist()
    assert predictions.top1.tolist() == first
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(predictions.confidence, (shares / shares.sum(axis=1, keepdims=True)).max(axis=1), 1e-5)
    assert predictions.top5_hits.all()  # of five classes
    assert accuracy["top1"] == share(hits)
    assert accuracy["top5"] == 100.0
    assert accuracy["grouped"] == {
        "total": share(hits),
        "00-02": share(hits[:15]),
        "03-04": share(hits[15:]),
        "old": share(hits[:15]),
        "new": share(hits[15:]),
    }


def test_top5_counts_the_five_highest_of_the_classes_seen(make, tasks):
    learner, data = make(nb_classes=9), tasks([7, 2], test=3)
    learner.incremental_train(data)
    _, images, labels = data.get_dataset(range(7), "test", "test").tensors
    with torch.no_grad():
        logits = learner.network.eval()(images)["logits"].numpy()[:, :7]
    expected = [label in np.argsort(-row)[:5] for row, label in zip(logits, labels.tolist(), strict=True)]
    _, predictions = learner.eval_task()
    assert predictions.top5_hits.tolist() == expected
    assert not all(expected)


def test_scoring_leaves_the_training_mode(make, tasks):
    learner = make()
    learner.begin_data(tasks([2, 2, 2]))
    for mode in (True, False):
        learner.network.train(mode)
        flags = [module.training for module in learner.network.modules()]
        learner.eval_task()
        assert [module.training for module in learner.network.modules()] == flags


@pytest.mark.parametrize("every", [1, 2, 5])
def test_scoring_in_between_reports_and_changes_nothing(make, tasks, events, every):
    small = {"func_epoch": 5, "rd_epoch": 2, "batch_size": 12}
    plain, scored = make(**small), make(**small, eval_every=every)
    learn(plain, tasks([2, 2, 2]), tasks=2)
    assert not list(events.of("eval"))
    events.clear()
    learn(scored, tasks([2, 2, 2]), tasks=2)
    found = [(event["task"], event["phase"], event["cycle"], event["epoch"]) for event in events.of("eval")]
    phases = [(phase["task"], phase["cycle"]) for phase in events.of("phase") if phase["phase"] == "func"]
    epochs = [epoch for epoch in range(5) if (epoch + 1) % every == 0]
    assert found == [(task, "func", cycle, epoch) for task, cycle in phases for epoch in epochs]
    assert all(0 <= event["accuracy"]["top1"] <= 100 for event in events.of("eval"))
    assert_equal_states(plain, scored)


def test_the_test_set_is_not_looked_at_in_training_unless_asked(make, tasks, monkeypatch):
    learner, scored = make(), []
    monkeypatch.setattr(Learner, "predict", lambda self: scored.append(1))
    learn(learner, tasks([2, 2, 2]), tasks=2)
    assert scored == []


ADAPTERS = {"adaptmlp": {"ffn_adapter_type": "adaptmlp"}, "nested": NESTED, "continual": CONTINUAL}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_with_all_adapters_off_the_head_answers_on_timms_features(make, tasks, kind, randomize):
    learner = make(**ADAPTERS[kind], eval_batch_size=7)
    data = tasks([3, 2, 1], test=5)
    learn(learner, data)
    learner.incremental_train(data)
    _, images, labels = data.get_dataset(range(5), "test", "test").tensors
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SHAPE).eval()
    vit.load_state_dict(learner.network.frozen_state())
    for _ in range(2):  # the second time from the features that are kept
        for slot in learner.network.slots:
            randomize(slot)  # whatever the adapters, routers and descriptors hold
        with torch.no_grad():
            logits = learner.network.fc(vit(images))[:, :5]
        learner.network.train()
        found = learner.predict_off()
        assert learner.network.training
        assert found.labels.tolist() == labels.tolist()
        assert found.top1.tolist() == logits.argmax(dim=1).tolist()
        confidence = logits.softmax(dim=1).amax(dim=1).numpy()
        np.testing.assert_allclose(found.confidence, confidence, 1e-5)
    assert (learner.predict().top1 != found.top1).any()


@pytest.mark.parametrize("rounds", [False, True])
def test_with_no_branch_active_the_answers_are_those_with_all_adapters_off(make, tasks, randomize, rounds):
    learner, data = make(**NESTED, eval_batch_size=7, eval_cache_bf16=rounds), tasks([2, 2, 2])
    learn(learner, data)
    learner.incremental_train(data)
    for slot in learner.network.slots:
        randomize(slot)
    with learner.network.branches(()):
        none = learner.predict()
    for ours, theirs in zip(learner.predict_off(), none, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    report = learner.report_task()
    assert report.branches["neither"] is report.off


def test_adapters_act_again_after_an_error(make, tasks):
    learner = make()
    learner.incremental_train(tasks([2, 2, 2]))
    before = learner.eval_task()[1]

    def stop(point):
        raise KeyboardInterrupt

    learner.hooks.keep = stop
    with pytest.raises(KeyboardInterrupt):
        learner.predict_off()
    learner.hooks.keep = lambda point: None
    assert not any(block.adapters_off for block in sema_blocks(learner.network.backbone))
    np.testing.assert_array_equal(learner.eval_task()[1].confidence, before.confidence)
