"""Whole runs of nested adapters: which tensor moves in which task, for every combination of the keys that decide it.

Three tasks of two classes, 12 images in batches of 5, 5 and 2, a slow interval of 2 within 6 steps. Layers 1 and 2 of
four can expand. Task 1 gives layer 1 and then layer 2 a second adapter, one cycle each; task 2 gives nothing.
"""

import re
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from backbone.sema_block import SEMAModules
from models.phase import Phase
from models.protocol import Hooks
from models.sema import Learner

CONSOLIDATIONS, LIFETIMES, UPDATES = (
    ("off", "weights", "function"),
    ("expansion", "continual"),
    ("skip", "accumulate", "zero_grad"),
)
RUNS = [*product(CONSOLIDATIONS, LIFETIMES, UPDATES)]
OLD = [(0, 0), (1, 0), (2, 0), (3, 0)]  # (layer, adapter) of task 0
NEW = [(1, 1), (2, 1)]  # of task 1
RANK = 3
STEP = Phase.step

NESTED = re.compile(r"backbone\.blocks\.(\d)\.adapter_module\.adapters\.(\d)\.functional\.(slow|fast)\.\w+\.\w+")
DESCRIPTOR = re.compile(r"backbone\.blocks\.(\d)\.adapter_module\.adapters\.(\d)\.rd\.\w+\.\w+")
RECORDS = re.compile(r"backbone\.blocks\.(\d)\.adapter_module\.adapters\.(\d)\.records\.losses")
ROUTER = re.compile(r"backbone\.blocks\.(\d)\.adapter_module\.router\.\w+")


def trained_in(task: int, lifetime: str) -> list[tuple[int, int]]:
    """Adapters whose slow and fast a task trains."""
    if lifetime == "expansion":
        return [OLD, NEW, []][task]
    return [OLD, OLD + NEW, OLD + NEW][task]


def expected_to_move(name: str, task: int, lifetime: str) -> bool:
    """Whether a tensor is another after the task than before; one that the task adds counts as moved."""
    if name.startswith("fc."):
        return True
    if match := NESTED.fullmatch(name):
        return (int(match[1]), int(match[2])) in trained_in(task, lifetime)
    if match := DESCRIPTOR.fullmatch(name) or RECORDS.fullmatch(name):
        return (int(match[1]), int(match[2])) in [[(1, 0), (2, 0)], NEW, []][task]
    if match := ROUTER.fullmatch(name):
        return int(match[1]) in (1, 2) and task < 2  # task 0: decay alone; task 1: a column more
    return False


def is_zeroed(name: str, task: int, consolidation: str, lifetime: str) -> bool:
    """Whether a task ends with this tensor reset to zero, so that it may or may not be what it was before."""
    match = NESTED.fullmatch(name)
    if consolidation == "off" or match is None or match[3] == "slow":
        return False
    return (int(match[1]), int(match[2])) in trained_in(task, lifetime)


@pytest.fixture
def run(config, tasks, events, monkeypatch) -> Callable[..., "Run"]:
    def make(consolidation: str, lifetime: str, update: str, **keys: Any) -> Run:
        learner = Learner(
            config(
                ffn_adapter_type="nested_lora",
                nested_lora_rank=RANK,
                nested_lora_update_interval_slow=2,
                nested_lora_lr_fast=0.1,
                nested_lora_lr_slow=0.02,
                nested_lora_slow_update=update,
                adapter_lifetime=lifetime,
                nested_lora_use_consolidation=consolidation != "off",
                nested_lora_consolidation_mode="weights" if consolidation == "off" else consolidation,
                func_epoch=2,
                rd_epoch=1,
                detect_batch_size=6,
                exp_threshold=1.0,
                weight_decay=0.01,
                **{"batch_size": 5, **keys},
            ),
            hooks=Hooks(events),
        )
        monkeypatch.setattr(SEMAModules, "z_scores", lambda slot, mean: _strange_in_task_1(learner, slot, mean))
        return Run(learner, tasks([2, 2, 2]), monkeypatch)

    return make


def _strange_in_task_1(learner: Learner, slot: SEMAModules, mean: Tensor) -> Tensor:
    strange = learner.cur_task == 1 and slot.num_adapters == 1
    return torch.full((slot.num_adapters, len(mean)), 9.0 if strange else 0.0)


class Run:
    """A run, task by task, with what each step of its func phases does to slow.

    Attributes:
        steps: For each func phase of the last task and each step the adapters whose slow moved and whose fast did.
    """

    def __init__(self, learner: Learner, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.learner, self.data = learner, data
        self.steps: list[list[tuple[set[tuple[int, int]], set[tuple[int, int]]]]] = []
        monkeypatch.setattr(Phase, "step", lambda phase: self._watched_step(phase))

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.learner.network.state_dict().items()}

    @property
    def learned(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.learner.network.learned_state().items()}

    def task(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Learn the next task; the state before and after it."""
        self.steps = []
        before = self.state
        self.learner.incremental_train(self.data)
        self.learner.after_task()
        return before, self.state

    def _watched_step(self, phase: Phase) -> dict[str, int]:
        before = self.learned
        said = STEP(phase)
        if phase.name == "rd":
            names = {name for name, value in self.learned.items() if not torch.equal(value, before[name])}
            assert all(DESCRIPTOR.fullmatch(name) for name in names)
            return said
        parts: dict[str, set[tuple[int, int]]] = {"slow": set(), "fast": set()}
        for name, value in self.learned.items():
            if (match := NESTED.fullmatch(name)) and not torch.equal(value, before[name]):
                parts[match[3]].add((int(match[1]), int(match[2])))
        if phase.steps == 1:
            self.steps.append([])
        self.steps[-1].append((parts["slow"], parts["fast"]))
        return said


def same(before: dict[str, Tensor], after: dict[str, Tensor], name: str) -> bool:
    return name in before and torch.equal(before[name], after[name])


@pytest.mark.parametrize(("consolidation", "lifetime", "update"), RUNS)
def test_which_tensors_move_in_which_task(run, events, consolidation, lifetime, update):
    nested = run(consolidation, lifetime, update)
    consolidated: dict[tuple[int, int], int] = {}
    for task in range(3):
        before, after = nested.task()
        learner = nested.learner
        assert [slot.num_adapters for slot in learner.network.slots] == ([1, 1, 1, 1] if task == 0 else [1, 2, 2, 1])

        zeroed = {name for name in after if is_zeroed(name, task, consolidation, lifetime)}
        assert not any(after[name].any() for name in zeroed)
        moved = {name for name in after if not same(before, after, name)} - zeroed
        expected = {name for name in after if expected_to_move(name, task, lifetime)} - zeroed
        assert moved == expected, f"task {task}: {sorted(moved ^ expected)}"
        assert before.keys() <= after.keys()

        for name in before:  # old columns stay where a column is added
            if ROUTER.fullmatch(name) and task:
                assert torch.equal(after[name][: len(before[name])], before[name])

        trained = trained_in(task, lifetime)
        for place in trained if consolidation != "off" else ():
            consolidated[place] = consolidated.get(place, 0) + 1
        for layer, adapter in OLD + (NEW if task else []):
            functional = learner.network.slots[layer].adapters[adapter].functional
            grown = consolidated.get((layer, adapter), 0) if consolidation == "function" else 0
            assert (functional.slow.rank, functional.fast.rank) == (RANK * (1 + grown), RANK)
            if grown:  # what fast had learned is there, as slow's last hidden units
                assert functional.slow.up_proj.weight[:, -RANK:].abs().max() > 0

        _check_steps(nested, task, lifetime, update)
        _check_reports(nested, task, events, trained, consolidation)
        assert {name for name, p in learner.network.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
        events.clear()


def _check_steps(nested: Run, task: int, lifetime: str, update: str) -> None:
    """Step by step: fast moves always, slow where the gate lets it, and under "zero_grad" in between as well."""
    phases = _phases(task, lifetime)
    assert len(nested.steps) == len(phases)
    for steps, members in zip(nested.steps, phases, strict=True):
        assert len(steps) == 6
        for number, (slow, fast) in enumerate(steps, start=1):
            assert fast == members
            moves = number in (2, 4, 6) or update == "zero_grad"  # decay moves the down-projections from step 1 on
            assert slow == (members if moves else set()), (number, slow)


def _phases(task: int, lifetime: str) -> list[set[tuple[int, int]]]:
    """Adapters that learn in each func phase of a task."""
    old = set() if lifetime == "expansion" else set(OLD)
    if task == 0:
        return [set(OLD)]
    if task == 1:
        first = {(1, 1)} | old
        return [first, {(2, 1)} | (first if old else set())]
    return [old | (set(NEW) if old else set())]


def _check_reports(nested: Run, task: int, events: Any, trained: list[tuple[int, int]], consolidation: str) -> None:
    learner = nested.learner
    kinds = [(phase["phase"], phase["cycle"]) for phase in events.of("phase")]
    assert kinds == [[("func", 0), ("rd", 0)], [("func", 1), ("rd", 1), ("func", 2), ("rd", 2)], [("func", 0)]][task]
    for phase, members in zip(
        (phase for phase in events.of("phase") if phase["phase"] == "func"),
        _phases(task, learner.config.adapter_lifetime),
        strict=True,
    ):
        held = {group["name"]: (group["lr"], group["tensors"]) for group in phase["groups"] if group["tensors"]}
        nested_groups = {"slow": (0.02, 4 * len(members)), "fast": (0.1, 4 * len(members))} if members else {}
        assert held == {**nested_groups, "other": (0.005, [2 + 4, 2 + 2, 2][task])}  # head and routers in training
    steps = [epoch["moved"] for epoch in events.of("epoch") if epoch["phase"] == "func"]
    moved = [{"slow": [2]}, {"slow": [4, 6]}] * len(_phases(task, learner.config.adapter_lifetime))
    assert steps == (moved if trained else [{}, {}])
    receipts = [receipt for event in events.of("consolidation") for receipt in event["receipts"]]
    places = [(receipt["layer"], receipt["adapter"]) for receipt in receipts]
    assert places == (sorted(trained) if consolidation != "off" else [])
    assert all(receipt["mode"] == consolidation and receipt["drift"] > 0 for receipt in receipts)
    scans = [(look["scan"], look["batch"], look["expands"]) for look in events.of("scan")]
    assert scans == [[], [(0, 1, 1), (0, 2, 2)], [(0, 1, None), (0, 2, None)]][task]
    if consolidation != "off":
        for layer, adapter in [[(1, 0), (2, 0)], NEW, []][task]:
            # by one pass, where a slot below was consolidated too
            refilled = (layer, adapter) != (1, 1) or learner.network.continual
            assert (len(learner.network.slots[layer].adapters[adapter].records) == 12) == refilled


@pytest.mark.parametrize(
    ("mode", "reset", "lifetime"),
    [
        ("weights", "zero", "expansion"),
        ("function", "zero", "continual"),
        ("weights", "reinit", "continual"),
        ("function", "reinit", "expansion"),
        ("weights", "keep", "continual"),
        ("function", "keep", "continual"),
    ],
)
def test_every_reset_trains_with_adam_too(run, mode, reset, lifetime):
    nested = run(mode, lifetime, "skip", optimizer="adam", nested_lora_fast_reset=reset, batch_size=6)
    for task in range(3):
        before, after = nested.task()
        for name, value in after.items():
            assert torch.isfinite(value).all(), name
            if (match := NESTED.fullmatch(name)) and (int(match[1]), int(match[2])) not in trained_in(task, lifetime):
                assert same(before, after, name), name
        for layer, adapter in trained_in(task, lifetime):
            fast = nested.learner.network.slots[layer].adapters[adapter].functional.fast
            silent = not fast.up_proj.weight.any() and not fast.up_proj.bias.any()
            assert silent == (reset != "keep")
            assert fast.is_zero() == (reset == "zero")


@pytest.mark.parametrize("mode", ["weights", "function"])
def test_runs_that_differ_in_alpha_differ(run, mode):
    """Trap 2: alpha 0 and 0.1 were once equal to every digit."""
    states = []
    for alpha in (0.0, 0.1, 1.0):
        _, after = run(mode, "expansion", "skip", nested_lora_consolidation_alpha=alpha).task()
        states.append(after)
    names = [name for name in states[0] if ".slow.up_proj.weight" in name]
    assert len(names) == 4
    for first, second in combinations(states, 2):
        assert not any(torch.equal(first[name], second[name]) for name in names)


@pytest.mark.parametrize("consolidation", CONSOLIDATIONS)
@pytest.mark.parametrize("views", [0, 2])
def test_with_the_expandable_layers_alone_adapters_of_the_others_train_in_the_first_task_only(
    run, events, consolidation, views
):
    made = run(consolidation, "continual", "skip", nested_lora_continual_layers="expandable", views=views)
    continual = [place for place in OLD if place[0] in (1, 2)]
    for trained in (OLD, continual + NEW, continual + NEW):
        events.clear()
        before, after = made.task()
        for name, value in after.items():
            match = NESTED.fullmatch(name)
            if match and (int(match[1]), int(match[2])) not in trained:
                assert torch.equal(value, before[name]), name
        assert {place for phase in made.steps for _, fast in phase for place in fast} == set(trained)
        receipts = [receipt for event in events.of("consolidation") for receipt in event["receipts"]]
        found = [(receipt["layer"], receipt["adapter"]) for receipt in receipts]
        assert sorted(found) == (sorted(trained) if consolidation != "off" else [])
        layers = {entry["layer"] for event in events.of("telemetry") for entry in event["layers"]}
        assert layers == ({1, 2, 3} if views and trained is not OLD else {0, 1, 2, 3})
