"""The learner's mechanics: what trains when, when a layer is expanded, what the end of a task does."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models.phases
import models.sema
import models.steps
from backbone.sema_block import SEMAModules
from backbone.sema_components import ADAPTER_TYPES, AE, Adapter
from models import get_model
from models.sema import Learner
from utils.data.loader import Batch
from utils.errors import ConfigError
from utils.runs.checkpoint import CheckpointError
from utils.timescales.gate import SlowGate
from utils.timescales.groups import func_groups

LAYERS = (1, 2)  # the expandable ones of the tiny configuration
SMALL = {"func_epoch": 2, "rd_epoch": 1, "batch_size": 5, "detect_batch_size": 5, "exp_threshold": 1.0}
NESTED = {"ffn_adapter_type": "nested_lora", "nested_lora_update_interval_slow": 2}
CONTINUAL = {**NESTED, "nested_lora_lifetime": "continual"}
STRANGE, FAMILIAR = 9.0, 0.0
WEIGHTS, CODERS, HEAD = ("weight", "bias"), ("encoder", "decoder"), {"fc.weight", "fc.bias"}
ENDS = [f"{part}.{name}" for part in ("down_proj", "up_proj") for name in WEIGHTS]


@pytest.fixture
def make(config, events) -> Callable[..., Learner]:
    return lambda **keys: Learner(config(**{**SMALL, **keys}), events)


@pytest.fixture
def script(monkeypatch) -> Callable[[dict[int, list[Any]]], list[int]]:
    """Let the z-scores of a layer follow a script, look by look, then be FAMILIAR; gives the looks each has seen."""

    def follow(scripts: dict[int, list[Any]]) -> list[int]:
        looks = [0, 0, 0, 0]

        def z_scores(slot: SEMAModules, mean: Tensor) -> Tensor:  # (B, D) -> (A, B)
            scripted = scripts.get(slot.layer, [])
            look = looks[slot.layer]
            looks[slot.layer] += 1
            value = scripted[look] if look < len(scripted) else FAMILIAR
            column = value if isinstance(value, list) else [value] * slot.num_adapters
            column = column + [FAMILIAR] * (slot.num_adapters - len(column))  # adapters added since the task began
            return torch.tensor(column, dtype=torch.float32)[:, None].expand(-1, len(mean))

        monkeypatch.setattr(SEMAModules, "z_scores", z_scores)
        return looks

    return follow


def values(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def moved(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names whose values changed, whose shapes changed, or that are new."""
    after = network.state_dict()
    return {name for name, value in after.items() if name not in before or not torch.equal(before[name], value)}


@pytest.fixture
def watch(monkeypatch) -> Callable[[Learner], list[tuple[str, set[str]]]]:
    """Keep what each phase of a learner moves."""

    def begin(learner: Learner) -> list[tuple[str, set[str]]]:
        phases: list[tuple[str, set[str]]] = []
        init_train = learner._init_train

        def watched(phase: str) -> None:
            before = values(learner._network)
            init_train(phase)
            phases.append((phase, {own(name) for name in moved(learner._network, before)}))

        monkeypatch.setattr(learner, "_init_train", watched)
        return phases

    return begin


def learn(learner: Learner, data: Any, tasks: int = 1) -> None:
    for _ in range(tasks):
        learner.incremental_train(data)
        learner.after_task()


def assert_equal_states(first: Learner, second: Learner) -> None:
    ours, theirs = first._network.state_dict(), second._network.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def own(name: str) -> str:
    """Short names: `1.0.functional.x` for adapter 0 of layer 1, `1.router.weight`."""
    return name.removeprefix("backbone.blocks.").replace("adapter_module.", "").replace("adapters.", "")


# ---- the stages of a task


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
    assert [slot.num_adapters for slot in learner._network.slots] == [1, 1, 1, 1]
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
        learns = {name for name, parameter in learner._network.named_parameters() if parameter.requires_grad}
        assert learns == HEAD
        assert all(slot.new_router is None for slot in learner._network.slots)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_task_without_expansion_trains_only_the_head(make, tasks, script, events, optimizer):
    learner, data = make(optimizer=optimizer), tasks([2, 2, 2])
    learn(learner, data)
    script({})
    events.clear()
    before = values(learner._network)
    learn(learner, data)
    assert moved(learner._network, before) == HEAD
    assert [(phase["phase"], phase["cycle"]) for phase in events.of("phase")] == [("func", 0)]
    assert len(list(events.of("epoch"))) == SMALL["func_epoch"]


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
    monkeypatch.setattr(models.phases.PhaseLearner, "_init_train", lambda self, phase: None)


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
    assert [slot.num_adapters for slot in learner._network.slots] == [
        1 + sum(layer == at for *_, at in expected) for layer in range(4)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_expansion_follows_the_rule_for_random_scores_over_tasks(make, tasks, script, events, no_training, seed):
    rng = np.random.RandomState(seed)
    learner, data = make(), tasks([2, 1, 2, 1])
    learn(learner, data)
    for task in (1, 2, 3):
        count = {slot.layer: slot.num_adapters for slot in learner._network.slots}
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
    assert learner._network.slots[1].num_adapters == 2
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
    assert [slot.num_adapters for slot in learner._network.slots] == [1, 1, 2, 1]


def test_a_look_brings_the_scores_of_all_layers_to_the_host_at_once(make, tasks, monkeypatch, no_training):
    learner, data, transfers, to_host = make(exp_threshold=1e9), tasks([2, 2, 2]), [], models.sema.to_host
    learn(learner, data)
    monkeypatch.setattr(models.sema, "to_host", lambda groups: transfers.append(len(groups[0])) or to_host(groups))
    learn(learner, data)
    assert transfers == [len(LAYERS)] * 3  # 12 images in batches of 5


@pytest.mark.parametrize("triggers", [[], [0], [0, 1], [2]])
def test_each_scan_looks_at_every_image_once_in_eval_mode_without_gradients(make, tasks, script, triggers):
    """Also when training comes between: the scan goes on behind the batch that triggered."""
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    script({layer: [0] * look + [STRANGE] for layer, look in zip(LAYERS, triggers, strict=False)})
    network, looks = learner._network, []
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
    assert [slot.num_adapters for slot in learner._network.slots] == [1, 1, 1, 1]
    learn(learner, data)
    assert max(slot.num_adapters for slot in learner._network.slots) == 2


# ---- losses, rates, steps


def test_the_loss_is_cross_entropy_with_the_old_classes_at_minus_infinity(make, tasks):
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    learner.begin_data(data)
    images, labels = torch.rand(5, 3, 32, 32), torch.tensor([2, 3, 3, 2, 3])
    logits = learner._network.eval()(images)["logits"].detach()
    masked = logits[:, :4].double().clone()
    masked[:, :2] = -math.inf
    expected = -sum(masked[i, label] - masked[i].logsumexp(0) for i, label in enumerate(labels)) / 5
    loss, hits = learner._func_loss((torch.arange(5), images, labels))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hits.item() == sum(int(masked[i].argmax() == label) for i, label in enumerate(labels))


def test_an_epochs_loss_and_accuracy_are_means_over_images(make, tasks, events, monkeypatch):
    """12 images in batches of 5, 5 and 2: the small last batch weighs less."""
    learner, batches = make(), {"func": [], "rd": []}
    func_loss, rd_loss = learner._func_loss, learner._rd_loss

    def func(batch: Batch) -> tuple[Tensor, Tensor]:
        loss, hits = func_loss(batch)
        batches["func"].append((loss.item(), len(batch[0]), hits.item()))
        return loss, hits

    def rd(batch: Batch) -> tuple[Tensor, Tensor]:
        loss, hits = rd_loss(batch)
        batches["rd"].append((loss.item(), len(batch[0]), 0))
        return loss, hits

    monkeypatch.setattr(learner, "_func_loss", func)
    monkeypatch.setattr(learner, "_rd_loss", rd)
    learn(learner, tasks([2, 2, 2]))
    epochs = list(events.of("epoch"))
    assert len(epochs) == 3
    for epoch in epochs:
        mine = batches[epoch["phase"]][3 * epoch["epoch"] : 3 * epoch["epoch"] + 3]
        assert [count for _, count, _ in mine] == [5, 5, 2]
        assert epoch["loss"] == pytest.approx(sum(loss * count for loss, count, _ in mine) / 12, rel=1e-5)
        if epoch["phase"] == "func":
            assert epoch["train_accuracy"] == pytest.approx(100 * sum(hits for *_, hits in mine) / 12)


def test_the_rd_loss_is_the_sum_over_layers_of_what_the_cycle_added(make, tasks, script):
    learner, data = make(), tasks([2, 2, 2])
    learner.begin_data(data)
    network, images = learner._network.eval(), torch.rand(5, 3, 32, 32)

    def by_hand(slots: list[SEMAModules]) -> float:
        means = network.token_means(images, LAYERS)
        return sum(((slot.newest.rd(means[slot.layer]) - means[slot.layer]) ** 2).mean().item() for slot in slots)

    both, batch = [network.slots[layer] for layer in LAYERS], (torch.arange(5), images, torch.empty(0))
    assert learner._rd_loss(batch)[0].item() == pytest.approx(by_hand(both), rel=1e-5)
    for slot in both:
        slot.end_of_cycle()
    network.slots[2].expand()
    assert learner._rd_loss(batch)[0].item() == pytest.approx(by_hand([network.slots[2]]), rel=1e-5)


def cosine(start: float, floor: float, epoch: int, epochs: int) -> float:
    return floor + (start - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def test_every_group_follows_its_own_cosine(make, tasks, events):
    keys = {"nested_lora_lr_fast": 0.03, "nested_lora_lr_slow": 0.002, "init_lr": 0.01, "rd_lr": 0.05, "min_lr": 0.001}
    learn(make(**NESTED, **keys, func_epoch=4, rd_epoch=3), tasks([2, 2, 2]))
    rates = {"slow": 0.002, "fast": 0.03, "other": 0.01, "descriptor": 0.05}
    seen = {name: [] for name in rates}
    for epoch in events.of("epoch"):
        for name, rate in epoch["lr"].items():
            epochs = 3 if epoch["phase"] == "rd" else 4
            assert rate == pytest.approx(cosine(rates[name], 0.001, epoch["epoch"], epochs), rel=1e-9)
            seen[name].append(rate)
    assert {name: len(found) for name, found in seen.items()} == {"slow": 4, "fast": 4, "other": 4, "descriptor": 3}


def test_rows_of_other_classes_feel_only_decay_and_momentum_starts_anew_each_phase(make, tasks, script):
    """Rows of classes yet to come, through the two func phases of a task, against SGD written out."""
    decay, rate = 0.5, 0.1
    learner, data = make(weight_decay=decay, init_lr=rate), tasks([2, 2, 2])
    learn(learner, data)
    script({1: [STRANGE], 2: [0, STRANGE]})
    row = learner._network.fc.weight[4].detach().double().numpy().copy()
    old = learner._network.fc.weight[0].detach().double().numpy().copy()
    expected = []
    for value in (row, old):
        for _ in range(2):  # cycles
            velocity = np.zeros_like(value)
            for step in range(6):  # 2 epochs of 5, 5, 2 images
                velocity = 0.9 * velocity + decay * value
                value = value - cosine(rate, 0.0, step // 3, 2) * velocity
        expected.append(value)
    learn(learner, data)
    np.testing.assert_allclose(learner._network.fc.weight[4].detach().numpy(), expected[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(learner._network.fc.weight[0].detach().numpy(), expected[1], rtol=1e-4, atol=1e-7)


def test_a_lone_router_feels_only_decay_in_the_first_task(make, tasks):
    decay, rate = 0.5, 0.1
    learner = make(weight_decay=decay, init_lr=rate)
    value = learner._network.slots[1].router.weight.detach().double().numpy().copy()
    outside = learner._network.slots[0].router.weight.detach().clone()
    velocity = np.zeros_like(value)
    for step in range(6):
        velocity = 0.9 * velocity + decay * value
        value = value - cosine(rate, 0.0, step // 3, 2) * velocity
    learn(learner, tasks([2, 2, 2]))
    np.testing.assert_allclose(learner._network.slots[1].router.weight.detach().numpy(), value, rtol=1e-4, atol=1e-7)
    assert torch.equal(learner._network.slots[0].router.weight, outside)


@pytest.mark.parametrize(
    ("interval", "expected"), [(0, [*range(1, 7)]), (1, [*range(1, 7)]), (2, [2, 4, 6]), (4, [4]), (6, [6])]
)
def test_the_steps_at_which_slow_moves_are_reported(make, tasks, events, interval, expected):
    keys = {**NESTED, "nested_lora_update_interval_slow": interval}
    learn(make(**keys), tasks([2, 2, 2]))
    func, rd = ([epoch for epoch in events.of("epoch") if epoch["phase"] == phase] for phase in ("func", "rd"))
    assert [*chain(*(epoch["slow_steps"] for epoch in func))] == expected
    assert not any("slow_steps" in epoch for epoch in rd)


@pytest.mark.parametrize(
    ("mode", "said"), [("skip", "the last 2 steps"), ("accumulate", "dropped with their gradients")]
)
def test_an_unfinished_interval_is_dropped_and_said(make, tasks, caplog, mode, said):
    caplog.set_level("INFO")
    keys = {**NESTED, "nested_lora_update_interval_slow": 4, "nested_lora_slow_update": mode}
    learn(make(**keys), tasks([2, 2, 2]))
    assert "the last 2 steps, an unfinished slow interval" in caplog.text
    assert said in caplog.text


def test_an_interval_longer_than_the_phase_is_an_error_that_names_both(make, tasks):
    with pytest.raises(ConfigError, match=r"\b7\b.*task 0.*\b6\b"):
        learn(make(**{**NESTED, "nested_lora_update_interval_slow": 7}), tasks([2, 2, 2]))


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


def _one_group(roles: Any, args: Any) -> list[dict[str, Any]]:
    members = [parameter for role, parameter in roles if role != "descriptor" and parameter.requires_grad]
    return [{"name": "other", "params": members, "lr": args.init_lr}]


def _equal_rates(roles: Any, args: Any) -> list[dict[str, Any]]:
    return [{**group, "lr": args.init_lr} for group in func_groups(roles, args)]


@pytest.mark.parametrize("groups", [_one_group, _equal_rates])
def test_an_optimizer_that_is_not_as_declared_stops_the_run(make, tasks, monkeypatch, groups):
    """Trap 2: nested modules and a plain optimizer."""
    monkeypatch.setattr(models.steps, "func_groups", groups)
    with pytest.raises(RuntimeError, match="group slow"):
        learn(make(**NESTED), tasks([2, 2, 2]))


def test_plain_modules_under_a_nested_configuration_stop_the_run(make, tasks, monkeypatch):
    """Trap 2 the other way round: the configuration asks for slow and fast, and nothing is there to hold them."""
    monkeypatch.setitem(ADAPTER_TYPES, "nested_lora", Adapter)
    with pytest.raises(RuntimeError):
        learn(make(**NESTED), tasks([2, 2, 2]))


def test_a_gate_that_is_not_as_declared_stops_the_run(make, tasks, monkeypatch):
    monkeypatch.setattr(models.steps, "SlowGate", lambda slow, interval, mode: SlowGate(slow, 1, "skip"))
    with pytest.raises(RuntimeError, match="slow gate"):
        learn(make(**NESTED), tasks([2, 2, 2]))


# ---- records


def test_records_hold_the_losses_of_both_phases_in_order(make, tasks, monkeypatch):
    """Every loss a descriptor sees in training, through a plain list that fills and then slides."""
    learner, seen = make(buffer_size=23), {1: [], 2: []}
    loss = AE.loss
    owner = {id(learner._network.slots[layer].newest.rd): layer for layer in LAYERS}

    def watched(rd: AE, mean: Tensor) -> Tensor:
        losses = loss(rd, mean)
        seen[owner[id(rd)]].append(losses.detach().tolist())
        return losses

    monkeypatch.setattr(AE, "loss", watched)
    learner.incremental_train(tasks([2, 2, 2]))
    for layer in LAYERS:
        assert [len(batch) for batch in seen[layer]] == [5, 5, 2] * 3
        kept: list[float] = []
        for batch in seen[layer]:
            kept = (kept + batch)[-23:] if len(kept) == 23 else (kept + batch)[:23]
        assert learner._network.slots[layer].newest.records.losses.tolist() == kept


def test_records_stand_still_once_the_adapter_is_frozen(make, tasks, script):
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    before = [learner._network.slots[layer].newest.records.losses.clone() for layer in LAYERS]
    script({1: [STRANGE]})
    learn(learner, data)
    learner.eval_task()
    for layer, losses in zip(LAYERS, before, strict=True):
        assert torch.equal(learner._network.slots[layer].adapters[0].records.losses, losses)
    assert len(learner._network.slots[1].newest.records) == 20


# ---- reproducibility


@pytest.mark.parametrize(
    "keys", [{}, {**NESTED, "nested_lora_use_consolidation": True, "nested_lora_fast_reset": "reinit"}]
)
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
    assert sum(slot.num_adapters for slot in learners[0]._network.slots) > 4
    assert_equal_states(learners[0], learners[1])
    assert all(untouched)
    assert not torch.equal(learners[0]._network.fc.weight, learners[2]._network.fc.weight)
    assert not torch.equal(learners[0]._network.backbone.pos_embed, learners[2]._network.backbone.pos_embed)


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
        "nested_lora_lifetime": "continual",
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
    assert sum(slot.num_adapters for slot in runs[0][0]._network.slots) > 4
    assert_equal_states(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert {"epoch", "scan"} <= {kind for kind, _ in runs[0][1]}


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


# ---- evaluation


def test_accuracy_against_counting_by_hand(make, tasks):
    learner, data = make(eval_batch_size=7, func_epoch=4, init_lr=0.05), tasks([3, 2, 1], test=5)
    learn(learner, data)
    learner.incremental_train(data)
    _, images, labels = data.get_dataset(range(5), "test", "test").tensors
    with torch.no_grad():
        logits = learner._network.eval()(images)["logits"].double().numpy()[:, :5]
    first = [int(np.argmax(row)) for row in logits]
    hits = [int(label == guess) for label, guess in zip(labels.tolist(), first, strict=True)]

    def share(chosen: list[int]) -> float:
        return round(100 * sum(chosen) / len(chosen), 2)

    accuracy, predictions = learner.eval_task()
    assert predictions.labels.tolist() == labels.tolist()
    assert predictions.top1.tolist() == first
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
        logits = learner._network.eval()(images)["logits"].numpy()[:, :7]
    expected = [label in np.argsort(-row)[:5] for row, label in zip(logits, labels.tolist(), strict=True)]
    _, predictions = learner.eval_task()
    assert predictions.top5_hits.tolist() == expected
    assert not all(expected)


def test_scoring_leaves_the_training_mode(make, tasks):
    learner = make()
    learner.begin_data(tasks([2, 2, 2]))
    for mode in (True, False):
        learner._network.train(mode)
        flags = [module.training for module in learner._network.modules()]
        learner.eval_task()
        assert [module.training for module in learner._network.modules()] == flags


def test_structure_counts_adapters_and_stored_parameters(make, tasks, script):
    learner, data = (
        make(**NESTED, nested_lora_use_consolidation=True, nested_lora_consolidation_mode="function"),
        tasks([2, 2]),
    )
    learn(learner, data)
    script({2: [STRANGE]})
    learn(learner, data)
    structure, network = learner.structure(), learner._network
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


# ---- consolidation


CONSOLIDATED = {**NESTED, "nested_lora_use_consolidation": True}


@pytest.fixture
def before_the_end(monkeypatch) -> dict[str, Any]:
    """The network as it was when the end of the last task began."""
    kept: dict[str, Any] = {}
    end = Learner._end_task

    def watched(learner: Learner) -> None:
        kept["values"] = values(learner._network)
        kept["accuracy"] = learner.eval_task()[0]
        kept["logits"] = logits_of(learner)
        end(learner)

    monkeypatch.setattr(Learner, "_end_task", watched)
    return kept


@torch.no_grad()
def logits_of(learner: Learner) -> Tensor:
    images = torch.from_numpy(np.random.RandomState(9).randn(8, 3, 32, 32).astype(np.float32))
    return learner._network.eval()(images)["logits"]


@pytest.mark.parametrize("mode", ["weights", "function"])
def test_consolidation_reports_receipts_and_accuracy_before_and_after(
    make, tasks, events, caplog, monkeypatch, before_the_end, mode
):
    caplog.set_level("INFO")
    learner = make(**CONSOLIDATED, nested_lora_consolidation_mode=mode, nested_lora_lr_fast=0.3, func_epoch=6)
    evaluate = learner.eval_task

    def marked() -> tuple[dict[str, Any], Any]:
        accuracy, predictions = evaluate()
        return {**accuracy, "fast": learner._network.slots[0].newest.functional.fast.norm()}, predictions

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


@pytest.mark.parametrize("seed", [0, 1])
def test_drift_is_measured_on_inputs_from_before_any_layer_was_consolidated(make, tasks, events, monkeypatch, seed):
    learner = make(**CONSOLIDATED, nested_lora_lr_fast=0.3, seed=seed)
    given: dict[int, Tensor] = {}
    end = SEMAModules.end_of_task_training
    images: list[Tensor] = []
    slot_inputs = learner._network.slot_inputs

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
    learner._network.slot_inputs = probed
    monkeypatch.setattr(SEMAModules, "end_of_task_training", watched)
    learner.incremental_train(tasks([2, 2, 2]))
    assert given.keys() == {0, 1, 2, 3}
    assert all(torch.equal(given[layer], expected[layer]) for layer in range(4))
    later = slot_inputs(images[0], range(4))
    assert not torch.equal(given[3], later[3])


@pytest.mark.parametrize("lifetime", ["expansion", "continual"])
def test_function_mode_with_alpha_one_leaves_the_logits(make, tasks, script, before_the_end, lifetime):
    keys = {"nested_lora_consolidation_mode": "function", "nested_lora_consolidation_alpha": 1.0}
    learner, data = (
        make(**CONSOLIDATED, **keys, nested_lora_lifetime=lifetime, nested_lora_lr_fast=0.3),
        tasks([2, 2, 2]),
    )
    script({2: [STRANGE]})
    for _ in range(3):
        learn(learner, data)
        torch.testing.assert_close(logits_of(learner), before_the_end["logits"], rtol=1e-5, atol=1e-5)


def test_weights_mode_changes_the_logits(make, tasks, before_the_end):
    learner = make(**CONSOLIDATED, nested_lora_lr_fast=0.3)
    learn(learner, tasks([2, 2, 2]))
    assert not torch.allclose(logits_of(learner), before_the_end["logits"], atol=1e-3)


def losses_one_by_one(learner: Learner, layer: int, adapter: int, data: Any, labels: range) -> list[float]:
    """Reconstruction losses of a task's images as the network is now, image after image."""
    rd, losses = learner._network.slots[layer].adapters[adapter].rd, []
    for image in data.get_dataset(labels, "train", "train").tensors[1]:
        mean = learner._network.token_means(image[None], [layer])[layer][0]
        losses.append(((rd(mean) - mean) ** 2).mean().item())
    return losses


@pytest.mark.parametrize("mode", ["weights", "function"])
def test_records_are_refilled_from_the_features_as_they_are_now(make, tasks, script, mode):
    learner, data = make(**CONSOLIDATED, nested_lora_consolidation_mode=mode, nested_lora_lr_fast=0.3), tasks([2, 2, 2])
    learn(learner, data)
    for layer in LAYERS:
        losses = learner._network.slots[layer].adapters[0].records.losses
        np.testing.assert_allclose(
            sorted(losses.tolist()), sorted(losses_one_by_one(learner, layer, 0, data, range(2))), rtol=1e-4
        )
    first = [learner._network.slots[layer].adapters[0].records.losses.clone() for layer in LAYERS]
    script({2: [STRANGE]})
    learn(learner, data)
    new = learner._network.slots[2].adapters[1].records.losses
    np.testing.assert_allclose(
        sorted(new.tolist()), sorted(losses_one_by_one(learner, 2, 1, data, range(2, 4))), rtol=1e-4
    )
    for layer, losses in zip(LAYERS, first, strict=True):
        assert torch.equal(learner._network.slots[layer].adapters[0].records.losses, losses)


def test_refilled_records_hold_at_most_the_buffer(make, tasks):
    learner, data = make(**CONSOLIDATED, buffer_size=7), tasks([2, 2, 2])
    learn(learner, data)
    known = losses_one_by_one(learner, 1, 0, data, range(2))
    losses = learner._network.slots[1].adapters[0].records.losses.tolist()
    assert len(losses) == 7
    assert all(min(abs(loss - one) for one in known) < 1e-5 * (1 + loss) for loss in losses)


def test_a_task_that_trained_no_adapter_consolidates_nothing(make, tasks, script, events):
    learner, data = make(**CONSOLIDATED), tasks([2, 2, 2])
    learn(learner, data)
    script({})
    events.clear()
    before = values(learner._network)
    learn(learner, data)
    assert not list(events.of("consolidation"))
    assert moved(learner._network, before) == HEAD


# ---- lifetime "continual"


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
    report = learner._report_drift_of_data

    def watched(when: str) -> None:
        images = data.get_dataset(range(2, 4), "train", "train").tensors[1]
        means = learner._network.eval().token_means(images, LAYERS)
        expected.append({str(at): real(learner._network.slots[at], means[at]).mean(dim=1).tolist() for at in LAYERS})
        report(when)

    monkeypatch.setattr(learner, "_report_drift_of_data", watched)
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
    slot = learner._network.slots[layer]
    return lambda means: None if slot.added else slot


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


def test_a_zeroed_fast_that_learns_again_is_said(make, tasks, script, caplog):
    caplog.set_level("INFO")
    learner, data = make(**CONTINUAL, nested_lora_use_consolidation=True), tasks([2, 2, 2])
    script({})
    learn(learner, data, tasks=2)
    assert "task 1 layer 0: zeroed fast of adapters [0] re-initialised" in caplog.text


# ---- checkpoints


@pytest.mark.parametrize("keys", [{}, {**CONSOLIDATED, "nested_lora_consolidation_mode": "function"}])
def test_a_saved_learner_comes_back_and_evaluates_the_same(make, tasks, script, tmp_path, keys):
    learner, data, path = make(**keys), tasks([2, 2, 2]), tmp_path / "task_1.safetensors"
    script({1: [STRANGE]})
    learner.incremental_train(data)
    learner.after_task()
    learner.incremental_train(data)
    learner.save_checkpoint(path, {"class_order": [1, 0], "config": {"a": 1}})
    accuracy, predictions = learner.eval_task()
    other = make(**keys)
    meta = other.load_checkpoint(str(path))
    assert (meta["class_order"], meta["config"], meta["task_sizes"]) == ([1, 0], {"a": 1}, [2, 2])
    assert (other.cur_task, other.known_classes, other.total_classes) == (1, 2, 4)
    assert_equal_states(learner, other)
    other.begin_test(data)
    again, same = other.eval_task()
    assert again == accuracy
    assert same.top1.tolist() == predictions.top1.tolist()


def test_a_checkpoint_on_other_backbone_weights_is_refused(make, tasks, tmp_path):
    learner = make(seed=1)
    learn(learner, tasks([2, 2, 2]))
    learner.save_checkpoint(tmp_path / "a.safetensors", {})
    other = make(seed=2)
    before = values(other._network)
    with pytest.raises(CheckpointError, match=learner._network.provenance["sha256"][:16]):
        other.load_checkpoint(tmp_path / "a.safetensors")
    assert moved(other._network, before) == set()
    assert other.cur_task == -1


# ---- the registry


def test_the_registry_knows_sema(config):
    assert type(get_model("sema", config())) is Learner
    with pytest.raises(KeyError):
        get_model("lwf", config())


def test_missing_keys_take_their_defaults(config):
    given = {key: config()[key] for key in ("backbone_type", "backbone_kwargs", "pretrained", "nb_classes")}
    keys = {**given, "seed": 3, "device": [torch.device("cpu")], "adapt_start_layer": 1, "adapt_end_layer": 2}
    learner = Learner(keys)
    assert (learner.args.ffn_adapter_type, learner.args.buffer_size, learner.args.init_lr) == ("adaptmlp", 500, 0.005)
    assert learner._network.slots[1].newest.functional.rank == 16
