"""What a consolidation says of z-scores, against plain numpy on each image by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backbone.sema_components import Records
from models.sema import Learner

LAYERS = (1, 2)  # the expandable ones of the tiny configuration
KEYS = {
    "ffn_adapter_type": "nested_lora",
    "nested_lora_use_consolidation": True,
    "nested_lora_lr_fast": 0.3,
    "func_epoch": 2,
    "rd_epoch": 1,
    "batch_size": 5,
    "detect_batch_size": 5,
}
STATISTICS = ["z_mean_before", "z_std_before", "z_mean_after", "z_std_after"]


@pytest.fixture
def make(config, events) -> Callable[..., Learner]:
    return lambda **keys: Learner(config(**KEYS, **keys), events)


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


def loss(learner: Learner, layer: int, image: Any) -> float:
    """The reconstruction error of one image, by numpy."""
    rd = {name: value.double().numpy() for name, value in learner._network.slots[layer].newest.rd.state_dict().items()}
    mean = learner._network.token_means(image[None], [layer])[layer][0].double().numpy()
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
    learner, data = make(nested_lora_consolidation_mode=mode, buffer_size=buffer_size), tasks([2, 2])
    learner.incremental_train(data)
    (event,) = events.of("consolidation")
    images = data.get_dataset(range(2), "train", "train").tensors[1]
    learner._network.eval()
    for number, layer in enumerate(LAYERS):
        losses = np.array([loss(learner, layer, image) for image in images])
        fresh = learner._network.slots[layer].newest.records.losses.double().numpy()
        expected = [*statistics(losses, stale[number]), *statistics(losses, fresh)]
        receipt = event["receipts"][layer]
        np.testing.assert_allclose([receipt[key] for key in STATISTICS], expected, rtol=1e-4)
        assert receipt["z_mean_before"] != pytest.approx(receipt["z_mean_after"], rel=0.01)


def test_only_receipts_whose_records_were_taken_anew_have_z(make, tasks, events, monkeypatch):
    learner, data = make(nested_lora_lifetime="continual", exp_threshold=1e9), tasks([2, 2])
    for _ in range(2):  # the second task adds nothing, and consolidates the adapters of the first again
        learner.incremental_train(data)
        learner.after_task()
    first, second = events.of("consolidation")
    assert [receipt["z_mean_after"] is not None for receipt in first["receipts"]] == [False, True, True, False]
    assert [[receipt[key] for key in STATISTICS] for receipt in second["receipts"]] == [[None] * 4] * 4
