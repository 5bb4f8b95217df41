"""Records taken anew after a consolidation, and what it says of z-scores, against numpy on each image by itself."""

from typing import Any

import numpy as np
import pytest
import torch
from learners import CONSOLIDATED, FAMILIAR, LAYERS, NESTED, STRANGE, learn

from backbone.sema_components import Records
from models.sema import Learner

HOT = {**CONSOLIDATED, "nested_lora_lr_fast": 0.3}
STATISTICS = ["z_mean_before", "z_std_before", "z_mean_after", "z_std_after"]


@pytest.fixture
def stale(monkeypatch) -> list[np.ndarray]:
    """The records that were emptied, in that order."""
    seen: list[np.ndarray] = []
    clear = Records.clear

    def watched(records: Records) -> None:
        seen.append(records.losses.double().numpy().copy())
        clear(records)

    monkeypatch.setattr(Records, "clear", watched)
    return seen


def losses_one_by_one(learner: Learner, layer: int, adapter: int, data: Any, labels: range) -> list[float]:
    """Reconstruction losses of a task's images as the network is now, image after image."""
    rd, losses = learner.network.slots[layer].adapters[adapter].rd, []
    for image in data.get_dataset(labels, "train", "train").tensors[1]:
        mean = learner.network.token_means(image[None], [layer])[layer][0]
        losses.append(((rd(mean) - mean) ** 2).mean().item())
    return losses


def loss(learner: Learner, layer: int, image: Any) -> float:
    """The reconstruction error of one image, by numpy."""
    rd = {name: value.double().numpy() for name, value in learner.network.slots[layer].newest.rd.state_dict().items()}
    mean = learner.network.token_means(image[None], [layer])[layer][0].double().numpy()
    code = rd["encoder.weight"] @ mean + rd["encoder.bias"]
    return float(np.mean((rd["decoder.weight"] @ code + rd["decoder.bias"] - mean) ** 2))


def statistics(losses: np.ndarray, records: np.ndarray) -> list[float]:
    z = [abs(value - records.mean()) / np.std(records, ddof=1) for value in losses]
    return [np.mean(z), np.sqrt(np.mean((z - np.mean(z)) ** 2))]


@pytest.mark.parametrize("mode", ["weights", "function"])
@pytest.mark.parametrize("buffer_size", [8, 20])  # fewer and more than the 12 images of the task
def test_z_before_and_after_recomputation_is_that_of_the_task_s_images_one_by_one(
    make, tasks, events, stale, mode, buffer_size
):
    learner, data = make(**HOT, nested_lora_consolidation_mode=mode, buffer_size=buffer_size), tasks([2, 2])
    learner.incremental_train(data)
    (event,) = events.of("consolidation")
    images = data.get_dataset(range(2), "train", "train").tensors[1]
    learner.network.eval()
    for number, layer in enumerate(LAYERS):
        losses = np.array([loss(learner, layer, image) for image in images])
        fresh = learner.network.slots[layer].newest.records.losses.double().numpy()
        expected = [*statistics(losses, stale[number]), *statistics(losses, fresh)]
        receipt = event["receipts"][layer]
        np.testing.assert_allclose([receipt[key] for key in STATISTICS], expected, rtol=1e-4)
        assert receipt["z_mean_before"] != pytest.approx(receipt["z_mean_after"], rel=0.01)


def test_only_receipts_whose_records_were_taken_anew_have_z(make, tasks, events, monkeypatch):
    learner, data = make(**HOT, adapter_lifetime="continual", exp_threshold=1e9), tasks([2, 2])
    for _ in range(2):  # the second task adds nothing, and consolidates the adapters of the first again
        learner.incremental_train(data)
        learner.after_task()
    first, second = events.of("consolidation")
    assert [receipt["z_mean_after"] is not None for receipt in first["receipts"]] == [False, True, True, False]
    assert [[receipt[key] for key in STATISTICS] for receipt in second["receipts"]] == [[None] * 4] * 4


@pytest.mark.parametrize("mode", ["weights", "function"])
def test_records_are_refilled_from_the_features_as_they_are_now(make, tasks, script, mode):
    learner, data = make(**CONSOLIDATED, nested_lora_consolidation_mode=mode, nested_lora_lr_fast=0.3), tasks([2, 2, 2])
    learn(learner, data)
    for layer in LAYERS:
        losses = learner.network.slots[layer].adapters[0].records.losses
        np.testing.assert_allclose(
            sorted(losses.tolist()), sorted(losses_one_by_one(learner, layer, 0, data, range(2))), rtol=1e-4
        )
    first = [learner.network.slots[layer].adapters[0].records.losses.clone() for layer in LAYERS]
    script({1: [STRANGE], 2: [FAMILIAR, STRANGE]})
    learn(learner, data)
    new = learner.network.slots[2].adapters[1].records.losses
    np.testing.assert_allclose(
        sorted(new.tolist()), sorted(losses_one_by_one(learner, 2, 1, data, range(2, 4))), rtol=1e-4
    )
    assert len(learner.network.slots[1].adapters[1].records) > 12  # no slot below has changed: as training left them
    for layer, losses in zip(LAYERS, first, strict=True):
        assert torch.equal(learner.network.slots[layer].adapters[0].records.losses, losses)


def test_refilled_records_hold_at_most_the_buffer(make, tasks):
    learner, data = make(**CONSOLIDATED, buffer_size=7), tasks([2, 2, 2])
    learn(learner, data)
    known = losses_one_by_one(learner, 1, 0, data, range(2))
    losses = learner.network.slots[1].adapters[0].records.losses.tolist()
    assert len(losses) == 7
    assert all(min(abs(loss - one) for one in known) < 1e-5 * (1 + loss) for loss in losses)


# ---- a consolidation that preserves the function

KEPT = {**HOT, "nested_lora_consolidation_mode": "function", "nested_lora_consolidation_alpha": 1.0}


@pytest.mark.parametrize(("reset", "threshold"), [("zero", 1.6), ("zero", 2.5), ("reinit", 2.5)])
def test_a_run_whose_function_is_preserved_goes_on_as_one_without_consolidation(
    make, tasks, events, logits_of, reset, threshold
):
    """To rounding: the sum of hidden units is taken in another order. z-scores divide by small spreads."""
    seen = []
    for keys in ({**NESTED, "nested_lora_lr_fast": 0.3}, {**KEPT, "nested_lora_fast_reset": reset}):
        events.clear()
        learner, data = make(**keys, exp_threshold=threshold), tasks([2, 2, 2], shifts=[0.0, 0.0, 3.0])
        predicted = []
        for _ in range(3):
            learner.incremental_train(data)
            predicted.append(learner.predict().top1.tolist())
            learner.after_task()
        scans = [(scan["task"], scan["scan"], scan["batch"], scan["expands"]) for scan in events.of("scan")]
        z = [value for scan in events.of("scan") for values in scan["z"].values() for value in values]
        seen.append((scans, predicted, [slot.num_adapters for slot in learner.network.slots], z, logits_of(learner)))
    assert seen[0][:3] == seen[1][:3]
    assert max(seen[0][2]) > 1
    np.testing.assert_allclose(seen[0][3], seen[1][3], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(seen[0][4], seen[1][4], rtol=1e-3, atol=1e-4)


def test_the_z_scores_of_a_preserved_function_are_reported_of_its_records_as_they_are(make, tasks, events, stale):
    learner, data = make(**KEPT), tasks([2, 2])
    learner.incremental_train(data)
    (event,) = events.of("consolidation")
    images = data.get_dataset(range(2), "train", "train").tensors[1]
    learner.network.eval()
    assert not stale
    for layer in LAYERS:
        losses = np.array([loss(learner, layer, image) for image in images])
        records = learner.network.slots[layer].newest.records.losses.double().numpy()
        assert len(records) > len(images)
        found = [event["receipts"][layer][key] for key in STATISTICS]
        np.testing.assert_allclose(found, 2 * statistics(losses, records), rtol=1e-4)
