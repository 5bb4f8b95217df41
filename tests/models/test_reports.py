"""What a learner reports: the events and the lines of the log, against counting by hand."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
from learners import CONSOLIDATED, CONTINUAL, LAYERS, NESTED, STRANGE, learn

from backbone.adapter import norm
from backbone.sema_block import SEMAModules
from models.sema import Learner

# ---- phases


def test_the_groups_of_a_phase_are_reported_with_rate_and_size(make, tasks, events):
    keys = {"nested_lora_lr_fast": 0.03, "nested_lora_lr_slow": 0.002, "init_lr": 0.01, "rd_lr": 0.05}
    learn(make(**NESTED, **keys), tasks([2, 2, 2]))
    func, rd = events.of("phase")
    adapter = 2 * 32 * 3 + 3 + 32
    assert func["groups"] == [
        {"name": "slow", "lr": 0.002, "tensors": 16, "parameters": 4 * adapter},
        {"name": "fast", "lr": 0.03, "tensors": 16, "parameters": 4 * adapter},
        {"name": "other", "lr": 0.01, "tensors": 6, "parameters": 2 * 33 + 6 * 33},
    ]
    assert rd["groups"] == [{"name": "descriptor", "lr": 0.05, "tensors": 8, "parameters": 2 * (2 * 32 * 5 + 5 + 32)}]


def test_a_nested_task_without_expansion_says_that_both_groups_are_empty(make, tasks, script, events, caplog):
    learner, data = make(**NESTED), tasks([2, 2, 2])
    learn(learner, data)
    script({})
    caplog.clear()
    caplog.set_level("INFO")
    learn(learner, data)
    assert "task 1: no adapter trains, slow and fast are empty, the head alone learns" in caplog.text
    *_, last = events.of("phase")
    assert {group["name"]: group["tensors"] for group in last["groups"] if group["tensors"]} == {"other": 2}
    for name, rate in (("slow", 0.001), ("fast", 0.01)):
        assert f"group {name}: lr {rate:g}, 0 tensors, 0 parameters" in caplog.text


@pytest.mark.parametrize(
    ("interval", "expected"), [(0, [*range(1, 7)]), (1, [*range(1, 7)]), (2, [2, 4, 6]), (4, [4]), (6, [6])]
)
def test_the_steps_at_which_slow_moves_are_reported(make, tasks, events, interval, expected):
    keys = {**NESTED, "nested_lora_update_interval_slow": interval}
    learn(make(**keys), tasks([2, 2, 2]))
    func, rd = ([epoch for epoch in events.of("epoch") if epoch["phase"] == phase] for phase in ("func", "rd"))
    assert [*chain(*(epoch["moved"]["slow"] for epoch in func))] == expected
    assert not any("moved" in epoch for epoch in rd)


@pytest.mark.parametrize(
    ("mode", "said"), [("skip", "the last 2 steps"), ("accumulate", "dropped with their gradients")]
)
def test_an_unfinished_interval_is_dropped_and_said(make, tasks, caplog, mode, said):
    caplog.set_level("INFO")
    keys = {**NESTED, "nested_lora_update_interval_slow": 4, "nested_lora_slow_update": mode}
    learn(make(**keys), tasks([2, 2, 2]))
    assert "the last 2 steps, an unfinished interval of slow" in caplog.text
    assert said in caplog.text


# ---- tasks


@pytest.mark.parametrize("mode", ["weights", "function"])
def test_consolidation_reports_receipts_and_accuracy_before_and_after(
    make, tasks, events, caplog, monkeypatch, before_the_end, mode
):
    caplog.set_level("INFO")
    learner = make(**CONSOLIDATED, nested_lora_consolidation_mode=mode, nested_lora_lr_fast=0.3, func_epoch=6)
    evaluate = learner.eval_task

    def marked() -> tuple[dict[str, Any], Any]:
        accuracy, predictions = evaluate()
        return {**accuracy, "fast": norm(learner.network.slots[0].newest.functional.fast)}, predictions

    monkeypatch.setattr(learner, "eval_task", marked)
    learner.incremental_train(tasks([2, 2, 2]))
    (event,) = events.of("consolidation")
    assert event["task"] == 0
    lines = [line for line in caplog.messages if "consolidated" in line]
    assert len(lines) == 4
    for line, receipt in zip(lines, event["receipts"], strict=True):
        assert "task 0" in line
        for key in ("layer", "alpha", "mode", "slow_norm_before", "fast_norm_before", "slow_norm_after", "drift"):
            shown = f"{receipt[key]:.4g}" if isinstance(receipt[key], float) else receipt[key]
            assert f"{key}={shown}" in line
    assert [(receipt["layer"], receipt["adapter"]) for receipt in event["receipts"]] == [
        (layer, 0) for layer in range(4)
    ]
    assert event["accuracy_before"] == before_the_end["accuracy"]
    assert event["accuracy_after"] == learner.eval_task()[0]
    assert event["accuracy_before"]["fast"] > event["accuracy_after"]["fast"] == 0
    for receipt in event["receipts"]:
        assert (receipt["alpha"], receipt["mode"], receipt["reset"]) == (0.1, mode, "zero")
        name = f"backbone.blocks.{receipt['layer']}.adapter_module.adapters.0.functional.fast."
        fast = [value.double() for key, value in before_the_end["values"].items() if key.startswith(name)]
        assert receipt["fast_norm_before"] == pytest.approx(
            math.sqrt(sum(value.square().sum().item() for value in fast))
        )
        assert receipt["fast_norm_after"] == 0
        assert 0 < receipt["drift"] <= 1.5


@pytest.mark.parametrize("scripted", [{}, {2: [STRANGE]}])
def test_mean_z_of_older_descriptors_before_and_after_training(make, tasks, monkeypatch, events, scripted, script):
    learner, data = make(**CONTINUAL, nested_lora_lr_fast=0.3), tasks([2, 2, 2])
    learn(learner, data)
    assert not list(events.of("mean_z"))
    real = SEMAModules.z_scores
    if scripted:
        monkeypatch.setattr(learner, "_first_asking", _asks_once(learner, 2))
    else:
        monkeypatch.setattr(learner, "_first_asking", lambda means: None)
    expected = []
    measure = learner._measure_z

    def watched(when: str) -> None:
        images = data.get_dataset(range(2, 4), "train", "train").tensors[1]
        means = learner.network.eval().token_means(images, LAYERS)
        expected.append({str(at): real(learner.network.slots[at], means[at]).mean(dim=1).tolist() for at in LAYERS})
        measure(when)

    monkeypatch.setattr(learner, "_measure_z", watched)
    learn(learner, data)
    found = list(events.of("mean_z"))
    assert [(event["task"], event["when"]) for event in found] == [(1, "before"), (1, "after")]
    for event, by_hand in zip(found, expected, strict=True):
        assert event["z"].keys() == by_hand.keys()
        for layer, z in event["z"].items():
            assert z == pytest.approx(by_hand[layer], rel=1e-4)
    assert len(found[0]["z"]["2"]) == 1
    assert len(found[1]["z"]["2"]) == 1 + len(scripted)
    assert found[0]["z"]["1"] != found[1]["z"]["1"]


def _asks_once(learner: Learner, layer: int) -> Callable[[Any], SEMAModules | None]:
    slot = learner.network.slots[layer]
    return lambda means: None if slot.added else slot


def test_structure_counts_adapters_and_stored_parameters(make, tasks, script):
    learner, data = (
        make(**NESTED, nested_lora_use_consolidation=True, nested_lora_consolidation_mode="function"),
        tasks([2, 2]),
    )
    learn(learner, data)
    script({2: [STRANGE]})
    learn(learner, data)
    structure, network = learner.structure(), learner.network
    assert structure["adapters"] == [1, 1, 2, 1]
    inner = sum(parameter.numel() for slot in network.slots for parameter in slot.parameters())
    counts = structure["parameters"]
    assert counts["fast"] == 5 * (2 * 32 * 3 + 3 + 32)
    assert counts["slow"] == 5 * (2 * 32 * 6 + 6 + 32)  # each consolidated once: rank 3 + 3
    assert counts["descriptor"] == 3 * (2 * 32 * 5 + 5 + 32)
    assert counts["router"] == 5 * 33
    assert counts["head"] == 6 * 33
    assert inner == counts["fast"] + counts["slow"] + counts["descriptor"] + counts["router"]
    assert counts["total"] == sum(parameter.numel() for parameter in network.parameters())
    assert counts["backbone"] == counts["total"] - inner - counts["head"]
