"""Equal seeds pair: what two configurations have in common starts bit-equal, whatever else they differ in.

A tiny learner is trained on two tasks, in each of which both expandable layers get an adapter. Noted are the values
that every module is born with, and the order of the images in every pass.
"""

import functools
import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from adapter_cases import ThreeBranches
from conftest import SHAPE, TINY, TinyTasks
from easydict import EasyDict
from learners import CONTINUAL, SMALL, STRANGE, learn
from torch import Tensor

from backbone.adapter import Adapter, FunctionalAdapter
from backbone.nested_lora import NestedLoRAAdapter
from backbone.sema_block import SEMAModules
from models.sema import Learner
from utils.config.identity import expands
from utils.config.load import load
from utils.config.schema import defaults, schemas
from utils.data.loader import StreamLoader

EXPS = Path(__file__).parents[1] / "exps"
FILES = sorted(EXPS.glob("*.json"))
BASE = {**TINY, **SMALL, "func_epoch": 1}
OWN: dict[str, Any] = {  # values where another type of value is needed
    "optimizer": "adam",
    "ffn_adapter_type": "nested_lora",
    "adapt_start_layer": 2,
    "adapt_end_layer": 3,
    "backbone_type": "deit_tiny_patch16_224_adapter",
    "backbone_kwargs": {**SHAPE, "depth": 5},
    "on_nan": "skip",
    "on_bad_image": "skip",
    "precision": "bf16",
    "nested_lora_slow_update": "accumulate",
    "nested_lora_consolidation_mode": "function",
    "nested_lora_fast_reset": "keep",
    "adapter_lifetime": "continual",
    "nested_lora_continual_layers": "expandable",
    "class_order_seed": 3,
    "max_tasks": 2,
    "eval_cache_on": "disk",
    "predict_format": "csv",
    "export_form": "merged",
    "nested_lora_consolidation_alpha": 0.2,
    "readouts": ["lda"],
    "transient": [1],
    "nested_lora_train": ["fast"],
}
SMALLER = [  # keys that a shipped configuration takes from the tiny one
    *("backbone_type", "backbone_kwargs", "backbone_checkpoint", "pretrained", "adapt_start_layer", "adapt_end_layer"),
    *("device", "seed", "num_workers", "batch_size", "func_epoch", "rd_epoch", "nested_lora_update_interval_slow"),
]
UNLIKE = [*SMALLER, "dataset", "data_root", "prefix", "init_cls", "increment", "class_order_seed", "max_tasks"]
ELSEWHERE = {
    "seed": "every value is another draw",
    "device": "needs a device; the generator of the CPU draws on all of them",
    "dataset": "the images",
    "data_root": "the images",
    "backbone_checkpoint": "the backbone's values",
    "pretrained": "the backbone's values",
    "model_name": "see test_a_baseline_starts_as_sema_does",
    "first_session_adaptation": "acts with other learners only",
    "val_fraction": "sets images aside, and so changes what is trained on",
    "evaluate_on": "needs val_fraction; that it changes no training is in tests/test_validation_images.py",
    "views": "other random streams for the order of scans and the augmentation, see models/test_kept_views.py",
    "augment_on": "draws what the other choice draws, see utils/data/test_resample.py",
}


class Start(NamedTuple):
    """Initial values by the name of their place, and the order of the images by the name of the pass."""

    born: dict[str, Tensor]
    orders: dict[tuple[int | str, ...], list[int]]


def start(**keys: Any) -> Start:
    """Train a learner, and note how its modules and passes start."""
    found = Start({}, {})
    expand, order = Learner._expand, StreamLoader.order

    def expanded(learner: Learner, slot: SEMAModules) -> None:
        expand(learner, slot)
        note(found.born, f"{learner.cur_task}.{slot.layer}.{slot.num_adapters}", slot.newest.state_dict())
        assert slot.new_router is not None
        note(found.born, f"{learner.cur_task}.{slot.layer}.router", slot.new_router.state_dict())

    def ordered(loader: StreamLoader, *stream: int | str, shuffle: bool) -> list[int]:
        found.orders[stream] = order(loader, *stream, shuffle=shuffle)
        return found.orders[stream]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function: function)
        patch.setattr(Learner, "_expand", expanded)
        patch.setattr(StreamLoader, "order", ordered)
        patch.setattr(SEMAModules, "z_scores", lambda slot, mean: torch.full((slot.num_adapters, len(mean)), STRANGE))
        learner = Learner(EasyDict({**defaults(), **BASE, **keys}))
        for slot in learner.network.slots:
            for number, module in enumerate(slot.modules_in_order):
                note(found.born, f"0.{slot.layer}.{number}", module.state_dict())
            note(found.born, f"0.{slot.layer}.router", slot.router.state_dict())
        note(found.born, "head", learner.network.fc.state_dict())
        note(found.born, "backbone", learner.network.frozen_state())
        learn(learner, TinyTasks([2, 2], train=5), tasks=2)
    return found


def note(born: dict[str, Tensor], place: str, values: Mapping[str, Tensor]) -> None:
    """Note the values; the hidden units of an adapter are noted in the order in which they are drawn."""
    born |= {f"{place}.{name}": value.detach().clone() for name, value in values.items()}
    slow, fast = (values.get(f"functional.{branch}.down_proj.weight") for branch in ("slow", "fast"))
    if slow is not None and fast is not None:
        born[f"{place}.functional.down_proj.weight"] = torch.stack([slow, fast], dim=1).flatten(0, 1).clone()


@functools.cache
def plain() -> Start:
    return start()


def of_file(path: Path) -> Start:
    """The start of a shipped configuration on the tiny backbone and the tiny tasks."""
    keys = load(path).model_dump()
    widths = {key: keys[key] // 4 for key in ("ffn_num", "nested_lora_rank")}
    small = {key: {**defaults(), **BASE}[key] for key in SMALLER}
    return start(**{**keys, **widths, **small})


def assert_paired(first: Start, second: Start, owned: str = " ") -> None:
    """What both have is equal; of tensors whose first sizes differ, the rows that both have."""
    common = {name for name in first.born.keys() & second.born.keys() if not name.startswith(owned)}
    assert {"head.weight", "0.1.0.functional.down_proj.weight", "0.3.router.bias"} <= common
    assert any(name.startswith("1.2.") for name in common)
    for name in sorted(common):
        ours, theirs = first.born[name], second.born[name]
        if ours.shape[1:] == theirs.shape[1:] and name.partition("records")[1] == "":
            rows = min(len(ours), len(theirs))
            assert torch.equal(ours[:rows], theirs[:rows]), name
    passes = first.orders.keys() & second.orders.keys()
    assert {"func", "rd", "scan"} <= {str(stream[0]) for stream in passes}
    for stream in passes:
        assert first.orders[stream] == second.orders[stream], stream


def other(key: str) -> Any:
    value = {**defaults(), **BASE}[key]
    if key in OWN or value is None:
        return OWN.get(key, "x")
    return not value if isinstance(value, bool) else value + "x" if isinstance(value, str) else value + 1


NESTED = [key for key in schemas() if key.startswith("nested_lora")]
WALKED = [("adaptmlp", key) for key in schemas() if key not in ELSEWHERE] + [("nested_lora", key) for key in NESTED]


@pytest.mark.parametrize(("kind", "key"), WALKED)
def test_a_key_leaves_the_start_of_everything_that_it_does_not_own(kind: str, key: str) -> None:
    changed = start(**{"ffn_adapter_type": kind, key: other(key)})
    assert_paired(plain(), changed, "backbone" if key.startswith("backbone") else " ")


def test_shipped_configurations_start_alike() -> None:
    expanding = [path for path in FILES if expands(load(path))]
    assert len(expanding) > 20
    starts = [of_file(path) for path in distinct(expanding)]
    assert len(starts) > 10
    for first, second in combinations(starts, 2):
        assert_paired(first, second)


@pytest.mark.parametrize("name", ["finetune", "linear", "joint", "simplecil", "ranpac"])
def test_a_baseline_starts_as_sema_does(name: str) -> None:
    ours, common = start(model_name=name).born, plain().born
    assert {"head.weight", "0.1.0.functional.down_proj.weight"} <= ours.keys() & common.keys()
    for place in ours.keys() & common.keys():
        assert torch.equal(ours[place], common[place]), place


def distinct(files: list[Path]) -> list[Path]:
    """One file of those that differ in nothing that the tiny learner of `of_file` has."""
    found = {json.dumps({**load(path).model_dump(mode="json"), **dict.fromkeys(UNLIKE)}): path for path in files}
    return list(found.values())


def born(kind: type[FunctionalAdapter], **keys: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return kind(EasyDict({**defaults(), **TINY, "d_model": 8, **keys}), "0.0").state_dict()


def test_the_branches_have_in_turn_the_units_of_a_single_adapter() -> None:
    pair, single = born(NestedLoRAAdapter, nested_lora_rank=5), born(Adapter, ffn_num=10)["down_proj.weight"]
    assert torch.equal(single[0::2], pair["slow.down_proj.weight"])
    assert torch.equal(single[1::2], pair["fast.down_proj.weight"])


def test_a_third_time_scale_leaves_the_other_two_alone_and_starts_otherwise() -> None:
    two, three = born(NestedLoRAAdapter), born(ThreeBranches)
    assert all(torch.equal(value, three[name]) for name, value in two.items())
    slow, mid, fast = (three[f"{branch}.down_proj.weight"] for branch in ("slow", "mid", "fast"))
    assert not {row.numpy().tobytes() for row in mid} & {row.numpy().tobytes() for row in torch.cat([slow, fast])}


def test_no_two_modules_start_alike() -> None:
    """Other places and other seeds are other draws."""
    weights = [
        value.numpy().tobytes()
        for begun in (start(ffn_adapter_type="nested_lora", seed=seed) for seed in (0, 1))
        for name, value in begun.born.items()
        if name.endswith(("coder.weight", "slow.down_proj.weight", "fast.down_proj.weight", "router.weight"))
    ]
    assert len(set(weights)) == len(weights) > 40


def test_a_branch_that_starts_anew_draws_the_same_however_many_others_do() -> None:
    """An adapter that has nothing to revive does not shift the draws of the next one."""
    keys = EasyDict({**defaults(), **TINY, **CONTINUAL, "d_model": 8})

    def revived(*zeroed: int) -> dict[int, Tensor]:
        slot = SEMAModules(keys, 1)
        slot.end_of_cycle()
        slot.expand()
        slot.end_of_cycle()
        for index in zeroed:
            slot.functional[index].get_submodule("fast").zero()
        torch.manual_seed(4)
        assert slot.begin_task() == list(zeroed)
        return {i: slot.functional[i].get_parameter("fast.down_proj.weight").detach() for i in zeroed}

    both, last = revived(0, 1), revived(1)
    assert torch.equal(both[1], last[1])
    assert not torch.equal(both[0], both[1])
