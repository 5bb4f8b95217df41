"""The baselines: what learns in which task, and heads from statistics against plain numpy on timm's own features."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import SHAPE, TinyTasks
from learners import NESTED, SMALL, learn, moved, values
from torch import Tensor

from models import Setup, get_model, load_run
from models.baselines import FromStatistics, Joint
from models.export import export_model
from models.protocol import Hooks
from models.readouts import KINDS
from models.sema import Learner
from models.trained import TrainedModel
from utils.choices import LEARNERS
from utils.config.schema import Config
from utils.streams import generator

BASELINES = [name for name in LEARNERS.names() if LEARNERS.ships(name) and name != "sema"]
FIRST = {"first_session_adaptation": True}
SIZES = [2, 2, 2]


@pytest.fixture
def baseline(config, events) -> Callable[..., Learner]:
    def make(name: str, **keys: Any) -> Learner:
        return get_model(Setup.of(config(**{**SMALL, "model_name": name, **keys})), Hooks(events))

    return make


def features_of(learner: Learner, data: TinyTasks, split: str, classes: range) -> tuple[np.ndarray, np.ndarray]:
    """Features by a network of timm alone, and labels."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SHAPE).eval()
    vit.load_state_dict(learner.network.frozen_state())
    images = np.concatenate([data.images[split, label] for label in classes]).astype(np.float32)
    labels = np.concatenate([np.full(len(data.images[split, label]), label) for label in classes])
    with torch.no_grad():
        return vit(torch.from_numpy(images)).double().numpy(), labels


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_no_expandable_layer_and_starts_as_sema_does(baseline, name: str) -> None:
    learner, sema = baseline(name), baseline("sema").network.state_dict()
    assert learner.network.expandable == []
    mine = learner.network.state_dict()
    assert not [key for key in mine if ".rd." in key]
    assert all(torch.equal(value, sema[key]) for key, value in mine.items())


def trained_parts(network: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Block and branch, or `fc`, of everything that moved."""
    changed = (name.removeprefix("backbone.blocks.") for name in moved(network, before))
    return {"fc" if name.startswith("fc.") else name.partition(".adapter_module")[0] for name in changed}


EVERY_BLOCK = {str(block) for block in range(SHAPE["depth"])} | {"fc"}


@pytest.mark.parametrize(
    ("name", "keys", "first", "later"),
    [
        ("finetune", {}, EVERY_BLOCK, EVERY_BLOCK),
        ("finetune", NESTED, EVERY_BLOCK, EVERY_BLOCK),
        ("joint", {}, EVERY_BLOCK, EVERY_BLOCK),
        ("linear", NESTED, {"fc"}, {"fc"}),
        ("simplecil", {}, {"fc"}, {"fc"}),
        ("simplecil", {**NESTED, **FIRST}, EVERY_BLOCK, {"fc"}),
        ("ranpac", {}, {"fc"}, {"fc"}),
        ("ranpac", FIRST, EVERY_BLOCK, {"fc"}),
    ],
)
def test_what_learns_in_the_first_task_and_later(baseline, events, name, keys, first, later) -> None:
    learner, data = baseline(name, **keys), TinyTasks(SIZES)
    for expected in (first, later, later):
        before = values(learner.network)
        learn(learner, data)
        assert trained_parts(learner.network, before) == expected
    assert not {kind for kind, _ in events} & {"scan", "router", "mean_z"}
    assert {fields["phase"] for fields in events.of("phase")} <= {"func"}
    assert [slot.num_adapters for slot in learner.network.slots] == [1] * SHAPE["depth"]
    learner.report_task()


def test_finetune_trains_on_what_the_last_task_has_left(baseline) -> None:
    """The first step of the second task starts from the values after the first."""
    learner, data = baseline("finetune", func_epoch=1), TinyTasks(SIZES)
    learn(learner, data)
    kept = values(learner.network)
    learner.begin_data(data)
    learner.begin_task()
    assert moved(learner.network, kept) == set()


def test_joint_begins_every_task_with_a_new_network_and_the_images_of_all_classes(baseline, monkeypatch) -> None:
    learner, data, seen = baseline("joint", **NESTED), TinyTasks(SIZES), []
    new, train = values(learner.network), Joint.learn_task

    def watched(learner: Learner) -> None:
        seen.append((moved(learner.network, new), len(learner.train_loader), learner.task_classes))
        train(learner)

    monkeypatch.setattr(Joint, "learn_task", watched)
    learn(learner, data, 3)
    assert seen == [(set(), images, range(classes)) for images, classes in ((12, 2), (24, 4), (36, 6))]
    assert learner.images_of([12, 12, 12]) == [12, 24, 36]


def test_joint_readouts_observe_the_images_of_all_classes_anew(baseline) -> None:
    learner, data = baseline("joint", readouts=["ncm"]), TinyTasks(SIZES)
    for task in range(3):
        learner.incremental_train(data)
        learner.read_out(learner.report_task())
        assert learner.readouts.members["ncm"].counts.tolist() == [6.0] * (2 * task + 2)
        learner.after_task()


def test_simplecil_answers_with_the_class_of_the_nearest_mean_by_cosine(baseline) -> None:
    learner, data = baseline("simplecil"), TinyTasks(SIZES)
    learn(learner, data, 2)
    learner.incremental_train(data)
    x, labels = features_of(learner, data, "train", range(6))
    means = np.stack([x[labels == label].mean(axis=0) for label in range(6)])
    tested, truth = features_of(learner, data, "test", range(6))
    cosines = (tested @ means.T) / np.linalg.norm(tested, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    predictions = learner.predict()
    np.testing.assert_array_equal(predictions.labels, truth)
    np.testing.assert_array_equal(predictions.top1, cosines.argmax(axis=1))
    np.testing.assert_array_equal(learner.predict_off().top1, predictions.top1)


def test_ranpac_answers_by_ridge_regression_on_a_random_projection(baseline) -> None:
    learner, data = baseline("ranpac"), TinyTasks(SIZES)
    learn(learner, data, 2)
    learner.incremental_train(data)
    (x, labels), (tested, _) = (features_of(learner, data, split, range(6)) for split in ("train", "test"))
    width = 8 * SHAPE["embed_dim"]
    p = torch.randn(len(x[0]), width, dtype=torch.float64, generator=generator(0, "ranpac")).numpy()
    h, t = np.maximum(x @ p, 0), np.eye(6)[labels]
    weights = np.linalg.inv(h.T @ h + float(learner.statistics.ridge) * np.eye(width)) @ h.T @ t
    scores = np.maximum(tested @ p, 0) @ weights
    predictions = learner.predict()
    np.testing.assert_array_equal(predictions.top1, scores.argmax(axis=1))
    logits = learner.network.fc(torch.from_numpy(tested).float()).detach().numpy()
    np.testing.assert_allclose(logits, scores, atol=2e-4)


@pytest.mark.parametrize(("name", "readout"), [("simplecil", "ncm"), ("ranpac", "ranpac")])
def test_a_head_from_statistics_answers_as_the_readout_does(baseline, name: str, readout: str) -> None:
    assert LEARNERS[name].readout is KINDS[readout]
    learner, data = baseline(name, **FIRST, readouts=[readout]), TinyTasks(SIZES)
    for _ in SIZES:
        learner.incremental_train(data)
        report = learner.report_task()
        np.testing.assert_array_equal(learner.read_out(report)[readout], report.predictions.top1)
        learner.after_task()


def test_a_class_without_training_images_is_never_the_answer(baseline) -> None:
    data = TinyTasks([3, 2])
    data.images["train", 1] = data.images["train", 1][:0]
    learner = baseline("simplecil")
    learn(learner, data, 1)
    learner.incremental_train(data)
    predictions = learner.predict()
    assert 1 in predictions.labels
    assert 1 not in predictions.top1


@pytest.mark.parametrize("keys", [{}, FIRST])
@pytest.mark.parametrize("name", ["simplecil", "ranpac"])
def test_a_state_holds_the_statistics(baseline, name: str, keys: dict[str, Any]) -> None:
    data = TinyTasks(SIZES)
    learner, other = baseline(name, **keys), baseline(name, **keys)
    learn(learner, data, 2)
    other.restore(learner.state())
    for one in (learner, other):
        learn(one, data)
    assert isinstance(other, FromStatistics)
    assert all(torch.equal(value, values(other.network)[key]) for key, value in values(learner.network).items())


UNREAD = {"ffn_num": Config.model_fields["ffn_num"].default}  # runs have the default of a key that is not read


@pytest.mark.parametrize(
    ("name", "keys"),
    [("finetune", NESTED), ("joint", {}), ("linear", UNREAD), ("simplecil", UNREAD), ("ranpac", FIRST)],
)
def test_a_checkpoint_and_what_is_exported_of_it_answer_as_the_learner_does(
    baseline, config, tmp_path, logits_of, name, keys
) -> None:
    learner, data, file = baseline(name, **keys), TinyTasks(SIZES), tmp_path / "task_2.safetensors"
    learn(learner, data, 3)
    learner.save_checkpoint(file, {})
    other = baseline(name, **keys)
    other.load_checkpoint(file)
    assert torch.equal(logits_of(other), logits_of(learner))
    read = {} if keys is UNREAD else keys  # without, the width is another, which nothing reads
    values = {**config(**SMALL), "model_name": name, **read, "device": "cpu", "seed": [0]}
    trained = TrainedModel(Config(**{k: v for k, v in values.items() if k in Config.model_fields}), file)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = learner.network.eval()(images)["logits"].numpy()
    np.testing.assert_array_equal(trained.predict(images).logits, expected)
    for form in ("network", "merged"):
        exported = tmp_path / f"{form}.safetensors"
        export_model(trained, exported, form)
        np.testing.assert_allclose(load_run(exported).predict(images).logits, expected, rtol=1e-5, atol=1e-6)
