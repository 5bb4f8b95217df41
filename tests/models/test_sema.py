"""The walk of a task: what trains when, when a layer is expanded, what the end of a task does, what a seed decides."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from learners import (
    CODERS,
    CONSOLIDATED,
    CONTINUAL,
    ENDS,
    FAMILIAR,
    HEAD,
    LAYERS,
    NESTED,
    SMALL,
    STRANGE,
    WEIGHTS,
    assert_equal_states,
    learn,
    moved,
    own,
    values,
)
from torch import Tensor

import models.sema
from backbone.registry import ADAPTERS
from backbone.sema_block import SEMAModules
from models.sema import Learner

# ---- the stages of a task


@pytest.fixture
def watch(monkeypatch) -> Callable[[Learner], list[tuple[str, set[str]]]]:
    """Keep what each phase of a learner moves."""

    def begin(learner: Learner) -> list[tuple[str, set[str]]]:
        phases: list[tuple[str, set[str]]] = []
        init_train = learner._init_train

        def watched(phase: str) -> None:
            before = values(learner.network)
            init_train(phase)
            phases.append((phase, {own(name) for name in moved(learner.network, before)}))

        monkeypatch.setattr(learner, "_init_train", watched)
        return phases

    return begin


def test_the_first_task_is_func_then_rd_and_nothing_else(make, tasks, events):
    learner = make()
    learn(learner, tasks([2, 2, 2]))
    assert [(phase["phase"], phase["cycle"]) for phase in events.of("phase")] == [("func", 0), ("rd", 0)]
    assert [(epoch["phase"], epoch["epoch"]) for epoch in events.of("epoch")] == [
        ("func", 0),
        ("func", 1),
        ("rd", 0),
    ]
    assert not list(events.of("scan"))
    assert [slot.num_adapters for slot in learner.network.slots] == [1, 1, 1, 1]
    assert learner.position.stage == "done"


@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_what_the_two_phases_of_the_first_task_move(make, tasks, watch, kind, decay):
    """func: adapters of every layer, routers (by decay alone), head; rd: descriptors of the expandable layers."""
    parts = {"adaptmlp": [""], "nested_lora": ["slow.", "fast."]}[kind]
    adapters = {f"{layer}.0.functional.{part}{end}" for layer in range(4) for part in parts for end in ENDS}
    routers = {f"{layer}.router.{name}" for layer in LAYERS for name in WEIGHTS} if decay else set()
    descriptors = {f"{layer}.0.rd.{part}.{name}" for layer in LAYERS for part in CODERS for name in WEIGHTS}
    records = {f"{layer}.0.records.losses" for layer in LAYERS}
    learner = make(ffn_adapter_type=kind, weight_decay=decay)
    phases = watch(learner)
    learn(learner, tasks([2, 2, 2]))
    assert phases == [("func", adapters | routers | records | HEAD), ("rd", descriptors | records)]


@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora"])
def test_only_the_head_can_learn_after_a_task(make, tasks, script, kind):
    learner = make(ffn_adapter_type=kind)
    script({1: [STRANGE]})
    data = tasks([2, 2, 2])
    for _ in range(2):
        learn(learner, data)
        learns = {name for name, parameter in learner.network.named_parameters() if parameter.requires_grad}
        assert learns == HEAD
        assert all(slot.new_router is None for slot in learner.network.slots)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_task_without_expansion_trains_only_the_head(make, tasks, script, events, optimizer):
    learner, data = make(optimizer=optimizer), tasks([2, 2, 2])
    learn(learner, data)
    script({})
    events.clear()
    before = values(learner.network)
    learn(learner, data)
    assert moved(learner.network, before) == HEAD
    assert [(phase["phase"], phase["cycle"]) for phase in events.of("phase")] == [("func", 0)]
    assert len(list(events.of("epoch"))) == SMALL["func_epoch"]


@pytest.mark.parametrize("kind", ADAPTERS.names())
def test_every_adapter_is_of_the_configured_type(make, tasks, script, kind):
    """Trap 2 the other way round: a configuration that asks for slow and fast, and modules that have neither."""
    learner, data = make(ffn_adapter_type=kind, nested_lora_update_interval_slow=2), tasks([2, 2, 2])
    learn(learner, data)
    script({1: [STRANGE]})
    learn(learner, data)
    adapters = [adapter for slot in learner.network.slots for adapter in slot.functional]
    assert [type(adapter) for adapter in adapters] == [ADAPTERS[kind]] * 5
    assert {adapter.kind for adapter in adapters} == {learner.network.adapter_type.kind} == {kind}


# ---- expansion


def expansions_by_rule(z: dict[int, list[Any]], batches: int, threshold: float) -> list[tuple[int, int, int]]:
    """(scan, batch, layer) of every expansion of a task, by the rule as sema.md words it."""
    look, scan, given, found = 0, 0, set(), []
    while True:
        grew = False
        for batch in range(1, batches + 1):
            for layer in LAYERS:
                scripted = z[layer][look] if look < len(z[layer]) else FAMILIAR
                smallest = min(scripted) if isinstance(scripted, list) else scripted
                if layer not in given and smallest > threshold:
                    given.add(layer)
                    found.append((scan, batch, layer))
                    grew = True
                    break
            look += 1
        if not grew:
            return found
        scan += 1


SCRIPTS = [
    {1: [], 2: []},
    {1: [STRANGE], 2: []},
    {1: [], 2: [STRANGE]},
    {1: [STRANGE], 2: [STRANGE]},  # the shallower gets it; the deeper does not see that batch
    {1: [STRANGE], 2: [STRANGE, STRANGE]},
    {1: [STRANGE, STRANGE, STRANGE], 2: []},  # one a layer a task
    {1: [0, STRANGE], 2: [STRANGE]},
    {1: [0, 0, STRANGE], 2: [0, 0, STRANGE]},  # the last, small batch counts too, and a second scan follows
    {1: [0, 0, STRANGE], 2: [0, 0, 0, 0, STRANGE]},
    {1: [STRANGE, 0, 0, 0, 0, 0], 2: [0, 0, 0, 0, 0, STRANGE]},
    {1: [STRANGE], 2: [0, 0, 0, 0, 0, 0, STRANGE]},  # a third scan, which never comes
    {1: [1.0], 2: [1.0 + 1e-6]},  # above the threshold, not at it
]


@pytest.fixture
def no_training(monkeypatch) -> None:
    monkeypatch.setattr(Learner, "_init_train", lambda self, phase: None)


@pytest.mark.parametrize("z", SCRIPTS)
def test_expansion_follows_the_rule(make, tasks, script, events, no_training, z):
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    script(z)
    learn(learner, data)
    expected = expansions_by_rule(z, batches=3, threshold=1.0)  # 12 images in batches of 5, 5, 2
    found = [
        (look["scan"], look["batch"], look["expands"]) for look in events.of("scan") if look["expands"] is not None
    ]
    assert found == expected
    assert [slot.num_adapters for slot in learner.network.slots] == [
        1 + sum(layer == at for *_, at in expected) for layer in range(4)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_expansion_follows_the_rule_for_random_scores_over_tasks(make, tasks, script, events, no_training, seed):
    rng = np.random.RandomState(seed)
    learner, data = make(), tasks([2, 1, 2, 1])
    learn(learner, data)
    for task in (1, 2, 3):
        count = {slot.layer: slot.num_adapters for slot in learner.network.slots}
        z = {
            layer: [[float(value) for value in rng.choice([0.5, 1.5], count[layer], p=[0.4, 0.6])] for _ in range(12)]
            for layer in LAYERS
        }
        expected = expansions_by_rule(z, batches=-(-6 * data.get_task_size(task) // 5), threshold=1.0)
        looks = script(z)
        events.clear()
        learn(learner, data)
        found = [(look["scan"], look["batch"], look["expands"]) for look in events.of("scan") if look["expands"]]
        assert found == expected
        assert looks[1] == looks[2] > 0


def test_a_layer_asks_only_if_all_its_descriptors_find_the_batch_strange(make, tasks, script, events, no_training):
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    script({1: [STRANGE]})
    learn(learner, data)
    assert learner.network.slots[1].num_adapters == 2
    script({1: [[STRANGE, 0.9], [0.9, STRANGE], [STRANGE, STRANGE]]})
    events.clear()
    learn(learner, data)
    assert [look["expands"] for look in events.of("scan")] == [None, None, 1, None, None, None]


def test_a_layers_score_is_the_batch_mean(make, tasks, monkeypatch, events, no_training):
    """One image of five that is very strange, or all of them a little: the mean decides."""
    learner, data = make(exp_threshold=1.0), tasks([2, 2, 2])
    learn(learner, data)

    def z_scores(slot: SEMAModules, mean: Tensor) -> Tensor:
        z = torch.zeros(slot.num_adapters, len(mean))
        z[:, 0] = {1: 0.99, 2: 1.01}[slot.layer] * len(mean)
        return z if slot.num_adapters == 1 else 0 * z

    monkeypatch.setattr(SEMAModules, "z_scores", z_scores)
    learn(learner, data)
    assert [slot.num_adapters for slot in learner.network.slots] == [1, 1, 2, 1]


def test_a_look_brings_the_scores_of_all_layers_to_the_host_at_once(make, tasks, monkeypatch, no_training):
    learner, data, transfers, to_host = make(exp_threshold=1e9), tasks([2, 2, 2]), [], models.sema.to_host
    learn(learner, data)
    monkeypatch.setattr(models.sema, "to_host", lambda groups: transfers.append(len(groups[0])) or to_host(groups))
    learn(learner, data)
    assert transfers == [len(LAYERS)] * 3  # 12 images in batches of 5


def test_a_task_in_which_the_head_alone_learns_is_said(make, tasks, script, caplog):
    learner, data = make(**NESTED), tasks([2, 2])
    with caplog.at_level("INFO"):
        learn(learner, data)
        assert "the head alone learns" not in caplog.text
        script({})
        learn(learner, data)
    assert "task 1: no adapter trains, slow and fast are empty, the head alone learns" in caplog.text


def test_a_scan_that_was_stopped_goes_on_behind_its_last_batch(make, tasks, script, events):
    learner, data, steps = make(), tasks([2, 2]), []
    learn(learner, data)
    script({})

    def stop(point: str) -> None:
        steps.append(point)
        if steps.count("step") == 2:
            raise InterruptedError

    learner.hooks.keep = stop
    events.clear()
    with pytest.raises(InterruptedError):
        learner.incremental_train(data)
    other = make()
    other.restore(learner.state())
    other.continue_training(data)
    assert [look["batch"] for look in events.of("scan")] == [1, 2, 3]  # 12 images in batches of 5


@pytest.mark.parametrize("triggers", [[], [0], [0, 1], [2]])
def test_each_scan_looks_at_every_image_once_in_eval_mode_without_gradients(make, tasks, script, triggers):
    """Also when training comes between: the scan goes on behind the batch that triggered."""
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    script({layer: [0] * look + [STRANGE] for layer, look in zip(LAYERS, triggers, strict=False)})
    network, looks = learner.network, []
    token_means = network.token_means

    def watched(images: Tensor, layers: list[int]) -> dict[int, Tensor]:
        if learner.position.stage == "scan":
            assert not any(module.training for module in network.modules())
            looks.append(images[:, 0, 0, 0].tolist())
        return token_means(images, layers)

    network.token_means = watched
    learner.incremental_train(data)
    stored = data.get_dataset([2, 3], "train", "train").tensors[1][:, 0, 0, 0].tolist()
    scans = [looks[start : start + 3] for start in range(0, len(looks), 3)]
    assert len(scans) == {0: 1, 1: 2, 2: 1}[len(triggers)]  # when no layer is left there is nothing to scan for
    for scan in scans:
        assert [len(batch) for batch in scan] == [5, 5, 2]
    orders = [tuple(chain(*scan)) for scan in scans]
    assert all(sorted(order) == sorted(stored) for order in orders)
    assert len({*orders, tuple(stored)}) == len(orders) + 1


def test_every_cycle_trains_its_own_adapter_column_and_the_head(make, tasks, script, watch, events):
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    script({1: [STRANGE], 2: [0, STRANGE]})
    phases = watch(learner)
    events.clear()
    learn(learner, data)
    assert [(phase["phase"], phase["cycle"]) for phase in events.of("phase")] == [
        ("func", 1),
        ("rd", 1),
        ("func", 2),
        ("rd", 2),
    ]
    for (phase, names), layer in zip(phases, (1, 1, 2, 2), strict=True):
        records = {f"{layer}.1.records.losses"}
        if phase == "func":
            adapter = {f"{layer}.1.functional.{end}" for end in ENDS}
            assert names == adapter | {f"{layer}.new_router.{name}" for name in WEIGHTS} | records | HEAD
        else:
            assert names == {f"{layer}.1.rd.{part}.{name}" for part in CODERS for name in WEIGHTS} | records


def test_strange_images_get_an_adapter_and_familiar_ones_none(make, tasks):
    """With nothing scripted: descriptors, records and z-scores as they are."""
    keys = {"func_epoch": 1, "rd_epoch": 15, "rd_lr": 0.1, "exp_threshold": 30.0, "batch_size": 20}
    data = tasks([2, 2, 2], train=20, shifts=[0.0, 0.0, 6.0])
    learner = make(**keys, detect_batch_size=40)
    learn(learner, data, tasks=2)
    assert [slot.num_adapters for slot in learner.network.slots] == [1, 1, 1, 1]
    learn(learner, data)
    assert max(slot.num_adapters for slot in learner.network.slots) == 2


# ---- consolidation


@pytest.mark.parametrize("seed", [0, 1])
def test_drift_is_measured_on_inputs_from_before_any_layer_was_consolidated(make, tasks, events, monkeypatch, seed):
    learner = make(**CONSOLIDATED, nested_lora_lr_fast=0.3, seed=seed)
    given: dict[int, Tensor] = {}
    end = SEMAModules.end_of_task_training
    images: list[Tensor] = []
    slot_inputs = learner.network.slot_inputs

    def probed(batch: Tensor, layers: Any) -> dict[int, Tensor]:
        if learner.position.stage == "end":
            images.append(batch)
        return slot_inputs(batch, layers)

    def watched(slot: SEMAModules, h: Tensor | None = None, task: int | None = None) -> list[dict[str, Any]]:
        if not given:  # nothing is consolidated yet
            expected.update(slot_inputs(images[0], range(4)))
        given[slot.layer] = h
        return end(slot, h, task)

    expected: dict[int, Tensor] = {}
    learner.network.slot_inputs = probed
    monkeypatch.setattr(SEMAModules, "end_of_task_training", watched)
    learner.incremental_train(tasks([2, 2, 2]))
    assert given.keys() == {0, 1, 2, 3}
    assert all(torch.equal(given[layer], expected[layer]) for layer in range(4))
    later = slot_inputs(images[0], range(4))
    assert not torch.equal(given[3], later[3])


@pytest.mark.parametrize("lifetime", ["expansion", "continual"])
def test_function_mode_with_alpha_one_leaves_the_logits(make, tasks, script, before_the_end, logits_of, lifetime):
    keys = {"nested_lora_consolidation_mode": "function", "nested_lora_consolidation_alpha": 1.0}
    learner, data = (
        make(**CONSOLIDATED, **keys, adapter_lifetime=lifetime, nested_lora_lr_fast=0.3),
        tasks([2, 2, 2]),
    )
    script({2: [STRANGE]})
    for _ in range(3):
        learn(learner, data)
        torch.testing.assert_close(logits_of(learner), before_the_end["logits"], rtol=1e-5, atol=1e-5)


def test_weights_mode_changes_the_logits(make, tasks, before_the_end, logits_of):
    learner = make(**CONSOLIDATED, nested_lora_lr_fast=0.3)
    learn(learner, tasks([2, 2, 2]))
    assert not torch.allclose(logits_of(learner), before_the_end["logits"], atol=1e-3)


def test_a_task_that_trained_no_adapter_consolidates_nothing(make, tasks, script, events):
    learner, data = make(**CONSOLIDATED), tasks([2, 2, 2])
    learn(learner, data)
    script({})
    events.clear()
    before = values(learner.network)
    learn(learner, data)
    assert not list(events.of("consolidation"))
    assert moved(learner.network, before) == HEAD


# ---- lifetime "continual"


@pytest.mark.parametrize("reset", ["zero", "reinit", "keep"])
def test_fast_learns_again_in_the_next_task_whatever_the_reset(make, tasks, script, watch, reset):
    keys = {"nested_lora_use_consolidation": True, "nested_lora_fast_reset": reset}
    learner, data = make(**CONTINUAL, **keys), tasks([2, 2, 2])
    learn(learner, data)
    script({})
    phases = watch(learner)
    learn(learner, data)
    ((_, names),) = phases
    assert {f"{layer}.0.functional.fast.{end}" for layer in range(4) for end in ENDS} <= names


def test_a_zeroed_branch_that_learns_again_is_said(make, tasks, script, caplog):
    caplog.set_level("INFO")
    learner, data = make(**CONTINUAL, nested_lora_use_consolidation=True), tasks([2, 2, 2])
    script({})
    learn(learner, data, tasks=2)
    assert "task 1 layer 0: adapters [0] re-initialised" in caplog.text


# ---- reproducibility


@pytest.mark.parametrize("keys", [{}, {**CONSOLIDATED, "nested_lora_fast_reset": "reinit"}])
def test_a_seed_decides_everything_and_the_global_generators_nothing(make, tasks, keys):
    keys = {**keys, "exp_threshold": 0.5}
    learners, untouched = [], []
    for seed, ambient in ((1, 11), (1, 22), (2, 11)):
        torch.manual_seed(ambient)
        np.random.seed(ambient)
        learner = make(seed=seed, **keys)
        state = torch.get_rng_state()
        learn(learner, tasks([2, 2, 2]), tasks=2)
        untouched.append(torch.equal(torch.get_rng_state(), state))
        learners.append(learner)
    assert sum(slot.num_adapters for slot in learners[0].network.slots) > 4
    assert_equal_states(learners[0], learners[1])
    assert all(untouched)
    assert not torch.equal(learners[0].network.fc.weight, learners[2].network.fc.weight)
    assert not torch.equal(learners[0].network.backbone.pos_embed, learners[2].network.backbone.pos_embed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_seed_decides_everything_on_a_gpu_too(make, tasks, script):
    keys = {**CONTINUAL, "nested_lora_use_consolidation": True, "device": [torch.device("cuda", 0)]}
    learners = []
    for reset in ("zero", "reinit"):
        for ambient in (11, 22):
            torch.cuda.manual_seed_all(ambient)
            script({1: [STRANGE]})
            learners.append(make(**keys, nested_lora_fast_reset=reset))
            learn(learners[-1], tasks([2, 2, 2]), tasks=3)
        assert_equal_states(*learners[-2:])


def test_nested_keys_change_nothing_of_adaptmlp(make, tasks, events):
    nested = {
        "nested_lora_rank": 7,
        "nested_lora_lr_fast": 0.5,
        "nested_lora_lr_slow": 0.1,
        "nested_lora_update_interval_slow": 5000,
        "nested_lora_slow_update": "accumulate",
        "nested_lora_use_consolidation": True,
        "nested_lora_consolidation_alpha": 1.0,
        "nested_lora_consolidation_mode": "function",
        "nested_lora_fast_reset": "reinit",
    }
    runs = []
    for keys in ({}, nested):
        events.clear()
        learner, data = make(exp_threshold=0.5, **keys), tasks([2, 2, 2])
        for _ in range(3):
            learner.incremental_train(data)
            learner.eval_task()
            learner.after_task()
        runs.append((learner, [event for event in events if event[0] != "phase"]))
    assert sum(slot.num_adapters for slot in runs[0][0].network.slots) > 4
    assert_equal_states(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert {"epoch", "scan"} <= {kind for kind, _ in runs[0][1]}
