"""Runs with one part broken on purpose are stopped; what is reported of a run agrees with its numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_trainer import events, images, results, run  # noqa: F401

import models.sema
import trainer
from backbone.nested_lora import NestedLoRAAdapter
from models import Setup
from tools.finished.reader import read_run
from utils.config.schema import Config
from utils.errors import AuditError
from utils.runs.predictions import read_predictions
from utils.timescales import groups as param_groups
from utils.timescales.gate import Gate

NESTED: dict[str, Any] = {"max_tasks": 2, "nested_lora_update_interval_slow": 2}


def test_every_func_phase_in_which_slow_trains_is_audited(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run(**NESTED)
    trained = [
        (phase["task"], phase["cycle"])
        for phase in events(path, "phase")
        if any(group["name"] == "slow" for group in phase["groups"])
    ]
    audits = events(path, "cadence")
    assert [(audit["task"], audit["cycle"]) for audit in audits] == trained
    assert all(audit["passed"] and audit["observed"] == audit["expected"] == [2, 4, 6] for audit in audits)


def test_zero_grad_is_seen_to_move_slow_on_every_step(run: Callable[..., Path]) -> None:  # noqa: F811
    (audit,) = events(run(**{**NESTED, "max_tasks": 1}, nested_lora_slow_update="zero_grad"), "cadence")
    assert (audit["observed"], audit["expected"], audit["passed"]) == ([1, 2, 3, 4, 5, 6], None, True)


Groups = list[dict[str, Any]]


def one_group(groups: Groups) -> Groups:
    """Nested modules and a plain optimizer."""
    return [{**groups[-1], "params": [parameter for group in groups for parameter in group["params"]]}]


def one_misplaced(groups: Groups) -> Groups:
    """A slow parameter in the fast group."""
    slow, fast, other = groups
    fast["params"].append(slow["params"].pop())
    return [slow, fast, other]


@pytest.mark.parametrize("mistake", [one_group, one_misplaced])
def test_groups_that_do_not_hold_slow_still_are_caught(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[Groups], Groups],
) -> None:
    declared = param_groups.func_groups
    monkeypatch.setattr(models.sema, "func_groups", lambda roles, config: mistake(declared(roles, config)))
    with pytest.raises(AuditError, match="step 1 is the first at which it moved and should not have"):
        run(**NESTED)


def test_groups_without_one_of_the_scales_are_refused_before_anything_trains(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    declared = param_groups.func_groups

    def without_fast(roles: Any, config: Any) -> Groups:
        slow, fast, other = declared(roles, config)
        return [slow, {**fast, "params": []}, {**other, "params": [*other["params"], *fast["params"]]}]

    monkeypatch.setattr(models.sema, "func_groups", without_fast)
    with pytest.raises(RuntimeError, match=r"declare the branches fast, slow, but the optimizer's groups hold .* slow"):
        run(**NESTED)
    (path,) = (tmp_path / "logs").iterdir()
    assert not (path / "metrics.jsonl").exists()


def test_a_rate_that_is_not_as_configured_is_caught_before_anything_trains(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declared = param_groups.func_groups
    equal = {"lr": 0.01}
    monkeypatch.setattr(
        models.sema, "func_groups", lambda roles, config: [{**group, **equal} for group in declared(roles, config)]
    )
    with pytest.raises(AuditError, match=r"group slow has the learning rate 0\.01, the configuration says 0\.001"):
        run(**NESTED)


@pytest.mark.parametrize(
    "broken",
    [
        lambda gate: (gate.steps + 1) % gate.interval,  # off by one
        lambda gate: 0,  # never closed
        lambda gate: 1,  # never open
    ],
)
def test_a_gate_that_is_not_as_configured_is_caught(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    broken: Callable[[Gate], int],
) -> None:
    monkeypatch.setattr(Gate, "pending", property(broken))
    with pytest.raises(
        AuditError, match=r"cadence audit: in the func phase of task 0 cycle 0 .*step [12] is the first"
    ):
        run(**NESTED)
    (path,) = (tmp_path / "logs").iterdir()
    assert [audit["passed"] for audit in events(path, "cadence")] == [False]
    assert not (path / "results.json").exists()


ONE_CLASS = {**NESTED, "init_cls": 1, "increment": 1}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("mode", ["skip", "accumulate"])
@pytest.mark.parametrize(("decay", "idle", "moved"), [(0.0, [1, 2, 3, 4], []), (5e-4, None, [2, 4])])
def test_a_task_of_one_class_moves_slow_by_decay_or_not_at_all(
    run: Callable[..., Path],  # noqa: F811
    optimizer: str,
    mode: str,
    decay: float,
    idle: list[int] | None,
    moved: list[int],
) -> None:
    """Its loss and gradients are zero."""
    path = run(**ONE_CLASS, optimizer=optimizer, nested_lora_slow_update=mode, weight_decay=decay)
    first = events(path, "cadence")[0]
    assert (first["observed"], first["expected"], first["passed"]) == (moved, [2, 4], True)
    assert first.get("idle") == idle
    assert read_run(path).notes == ()


def test_decay_too_small_to_be_seen_at_the_last_rate_of_a_long_phase_is_not_asked_for(
    run: Callable[..., Path],  # noqa: F811
) -> None:
    path = run(**ONE_CLASS, weight_decay=1e-5, func_epoch=8)
    first = events(path, "cadence")[0]
    assert first["passed"]
    assert first["observed"] != first["expected"]


def test_movement_between_updates_is_caught_in_a_task_of_one_class_too(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Gate, "pending", property(lambda gate: 0))
    with pytest.raises(AuditError, match="step 1 is the first at which it moved and should not have"):
        run(**ONE_CLASS, weight_decay=5e-4)


def test_a_loss_that_does_not_depend_on_slow_is_caught(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(NestedLoRAAdapter, "summands", lambda adapter: (adapter.fast,))
    with pytest.raises(AuditError, match="moved at 0 of 6 steps"):
        run(**NESTED)


def test_an_interval_key_that_does_not_reach_the_learner_is_caught(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(config: Config, *rest: Any) -> Setup:
        return Setup(config.model_copy(update={"nested_lora_update_interval_slow": 1}), *rest)

    monkeypatch.setattr(trainer, "Setup", forgetful)
    with pytest.raises(AuditError, match="moved at 6 of 6 steps, the configuration says 3"):
        run(**NESTED)


def test_branches_are_scored_after_every_task_and_around_consolidation(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run(**NESTED, nested_lora_use_consolidation=True)
    found = results(path)
    assert found["branches"].keys() == {"slow+fast", "slow", "fast", "neither"}
    assert found["branches"]["slow+fast"] == found["accuracy"]
    after = [event for event in events(path, "branches") if event["when"] == "after_task"]
    for name, matrix in found["branches"].items():
        assert matrix["correct"] == [event["correct"][name] for event in after]
    # fast was zeroed by the consolidation: it adds nothing, and slow alone is the whole
    assert all(event["correct"]["fast"] == event["correct"]["neither"] for event in after)
    assert all(event["correct"]["slow"] == event["correct"]["slow+fast"] for event in after)
    befores = [event for event in events(path, "branches") if event["when"] == "before_consolidation"]
    for before, receipt in zip(befores, events(path, "consolidation"), strict=True):
        total = 100 * sum(before["correct"]["slow+fast"]) / sum(found["accuracy"]["count"][: before["task"] + 1])
        assert receipt["accuracy_before"]["top1"] == pytest.approx(total, abs=0.005)


@pytest.mark.parametrize("keys", [{"branch_eval": False}, {"ffn_adapter_type": "adaptmlp"}])
def test_branches_are_left_out_when_unwanted_or_absent(run: Callable[..., Path], keys: dict[str, Any]) -> None:  # noqa: F811
    path = run(**NESTED, **keys)
    assert results(path)["branches"] == {}
    assert not events(path, "branches")


@pytest.mark.parametrize("keys", [{"branch_eval": False}, {}, {"ffn_adapter_type": "adaptmlp"}])
def test_every_run_records_what_the_network_answers_with_all_adapters_off(
    run: Callable[..., Path],  # noqa: F811
    keys: dict[str, Any],
) -> None:
    path = run(**NESTED, **keys, init_lr=0.1)
    found = results(path)
    for task, line in enumerate(events(path, "task")):
        labels, answers, _ = read_predictions(path / "predictions" / f"task_{task}.npz")
        off, ends = answers["adapters_off"], np.cumsum(found["accuracy"]["task_sizes"])
        hits = [0] * (task + 1)
        for label, guess in zip(labels.tolist(), off.tolist(), strict=True):
            hits[int(np.searchsorted(ends, label, side="right"))] += int(label == guess)
        changed = sum(a != b for a, b in zip(off.tolist(), answers["whole"].tolist(), strict=True))
        expected = {"correct": hits, "changed": changed, "images": len(labels)}
        assert found["tasks"][task]["adapters_off"] == line["adapters_off"] == expected
        if found["branches"]:
            assert found["branches"]["neither"]["correct"][task] == hits
    run_read = read_run(path)
    assert run_read.off.last_acc == sum(hits) / len(labels)


def test_router_weights_are_means_of_a_softmax_for_every_task_and_adapter(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run(max_tasks=2, exp_threshold=0.0)
    for event in events(path, "router"):
        adapters = results(path)["tasks"][event["task"]]["adapters"]
        for layer, by_task in event["weights"].items():
            assert np.shape(by_task) == (event["task"] + 1, adapters[int(layer)])
            np.testing.assert_allclose(np.sum(by_task, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parameters_trained_in_a_task_and_the_cost_of_an_image_are_exact(
    run: Callable[..., Path],  # noqa: F811
    precision: str,
) -> None:
    path = run(max_tasks=2, exp_threshold=1e9, precision=precision)  # nothing expands: task 1 trains the head alone
    first, second = results(path)["tasks"]
    nested = 3 * 2 * (32 * 3 + 3 + 3 * 32 + 32)  # three layers, two branches of rank 3 at width 32
    assert first["parameters"]["slow"] + first["parameters"]["fast"] == nested
    assert first["trained"] == {
        "slow": nested // 2,
        "fast": nested // 2,
        "router": 2 * 33,
        "descriptor": 2 * (32 * 4 + 4 + 4 * 32 + 32),
        "head": 6 * 33,
    }
    assert second["trained"] == {"head": 6 * 33}
    tokens, width = 5, 32
    block = tokens * (4 * width * width + 2 * 4 * width * width) + 2 * tokens * tokens * width
    adapters = 2 * 2 * 3 * width * tokens
    values = tokens * 2 * width * width + 2 * tokens * width  # keys and values of all, and one query at them
    last = values + (2 * width * width + 2 * 4 * width * width) + adapters // tokens  # the class token alone
    patches = 4 * width * 3 * 64
    assert first["multiply_adds"] == patches + 2 * (block + adapters) + last + 6 * width


@pytest.mark.parametrize(("every", "steps"), [(0, [3, 6]), (2, [2, 4, 6]), (4, [4])])
def test_telemetry_is_taken_at_its_interval_of_every_nested_adapter(
    run: Callable[..., Path],  # noqa: F811
    every: int,
    steps: list[int],
) -> None:
    measured = events(run(**{**NESTED, "max_tasks": 1}, telemetry_every=every), "telemetry")
    assert [event["step"] for event in measured] == steps
    for event in measured:
        assert [(entry["layer"], entry["adapter"]) for entry in event["layers"]] == [(0, 0), (1, 0), (2, 0)]
        assert all(entry["norms"]["fast.down_proj.weight"] > 0 for entry in event["layers"])


def test_telemetry_goes_on_over_frozen_adapters_and_says_that_they_rest(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run(max_tasks=2, exp_threshold=0.0)
    entry = events(path, "telemetry")[-1]["layers"][0]
    assert entry["update_norms"] == {"slow": 0, "fast": 0}
    assert entry["norms"]["slow.up_proj.weight"] > 0


def test_watching_changes_no_number(run: Callable[..., Path]) -> None:  # noqa: F811
    seen, unseen = run("a", **NESTED, telemetry_every=1), run("b", **NESTED, branch_eval=False)
    assert json.dumps(events(seen, "epoch")) == json.dumps(events(unseen, "epoch"))
    assert results(seen)["accuracy"] == results(unseen)["accuracy"]
    assert torch.is_grad_enabled()
