"""Telemetry of nested adapters: its numbers, against numpy."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from easydict import EasyDict
from telemetry_cases import (
    BRANCHES,
    PAIR,
    D,
    Nested,
    R,
    Triple,
    apply,
    arrays,
    assert_equal,
    batch,
    expected,
    flat,
    full_rank,
    norm,
    train,
    watch,
)
from torch import Tensor, nn

from backbone.sema_block import SEMAModules
from backbone.sema_components import NestedLoRAAdapter
from utils.timescales.telemetry import Telemetry


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_every_number_is_numpys_now_and_since_the_previous_measurement(dtype: torch.dtype, rel: float) -> None:
    nested, h = Nested().to(dtype), batch().to(dtype)
    born = arrays(nested)
    measured = Telemetry([(0, 0, nested, nested)])
    train(nested, h, 2)  # not watched, and yet part of the first update
    measured.arm()
    train(nested, h)
    first = arrays(nested)
    assert_equal(measured.measure()[0], expected(first, born, h), rel)
    train(nested, h, 3)
    measured.arm()
    train(nested, h)
    assert_equal(measured.measure()[0], expected(arrays(nested), first, h), rel)


def test_a_third_branch_is_compared_with_each_of_the_two() -> None:
    triple, h = Triple().double(), batch()
    measured = Telemetry([(0, 0, triple, triple)])
    born = arrays(triple)
    measured.arm()
    train(triple, h)
    (entry,) = measured.measure()
    assert_equal(entry, expected(arrays(triple), born, h))
    for key in ("output_cosine", "update_cosine"):
        assert list(entry[key]) == ["slow+mid", "slow+fast", "mid+fast"]


def test_a_branch_that_is_no_bottleneck_has_no_rank_and_the_rest() -> None:
    class Plain(Nested):
        def __init__(self) -> None:
            super().__init__()
            self.fast = nn.Linear(D, D)

    nested, h = Plain().double(), batch()
    entry, slow = watch(nested, h), arrays(nested)["slow"]
    assert entry["effective_rank"] == {"slow": pytest.approx(full_rank(slow)), "fast": None}
    output = h[:8].numpy() @ nested.fast.weight.detach().numpy().T + nested.fast.bias.detach().numpy()
    total = norm(output) + norm(apply(slow, h[:8].numpy()))
    assert entry["share"]["fast"] == pytest.approx(norm(output) / total)
    assert entry["norms"]["fast.weight"] == pytest.approx(norm(nested.fast.weight.detach().numpy()))


def test_adapters_keep_their_order_and_their_own_inputs() -> None:
    first, second = Nested().double(), Nested(slow_rank=R + 2).double()
    measured = Telemetry([(3, 0, first, first), (5, 1, second, second)])
    measured.arm()
    inputs = batch(), batch()
    second(inputs[1])
    first(inputs[0])
    entries = measured.measure()
    assert [(entry["layer"], entry["adapter"]) for entry in entries] == [(3, 0), (5, 1)]
    for entry, nested, h in zip(entries, (first, second), inputs, strict=True):
        slow, fast = (norm(apply(arrays(nested)[branch], h[:8].numpy())) for branch in BRANCHES)
        assert entry["share"] == pytest.approx({"slow": slow / (slow + fast), "fast": fast / (slow + fast)})


def test_adapters_that_a_slot_runs_at_once_are_measured_as_if_each_were_called(
    make_slot: Callable[..., SEMAModules], real_h: Tensor
) -> None:
    slot = make_slot(3, ffn_adapter_type="nested_lora")
    adapters = [adapter.functional for adapter in slot.adapters]
    measured = Telemetry([(1, index, adapter, slot) for index, adapter in enumerate(adapters)])
    measured.arm()
    assert sum(len(module._forward_pre_hooks) for module in slot.modules()) == 1
    slot(real_h)
    slot(2 * real_h)
    for index, (entry, adapter) in enumerate(zip(measured.measure(), adapters, strict=True)):
        assert entry == {**watch(adapter, real_h), "layer": 1, "adapter": index}


def test_frozen_tensors_keep_their_norms() -> None:
    nested, h = Nested().double(), batch()
    before = watch(nested, h)["norms"]
    assert watch(nested.requires_grad_(False), h)["norms"] == before
    assert min(before.values()) > 0
    assert sorted(before) == sorted(name for name, _ in nested.named_parameters())


def test_only_the_first_images_count_and_as_they_were_in_the_forward() -> None:
    nested, h = Nested().double(), batch()
    plain = watch(nested, h)
    h[8:] += 5
    assert watch(nested, h) == plain
    measured = Telemetry([(0, 0, nested, nested)])
    measured.arm()
    nested(h)
    h.zero_()
    assert measured.measure()[0] == plain
    h = batch()
    measured = Telemetry([(0, 0, nested, nested)], images=2)
    assert watch(nested, h, measured)["share"] == watch(nested, h[:2])["share"] != watch(nested, h)["share"]


def test_of_several_forwards_of_a_step_the_first_counts() -> None:
    nested, h = Nested().double(), batch()
    measured = Telemetry([(0, 0, nested, nested)])
    measured.arm()
    nested(h)
    nested(batch())
    assert measured.measure()[0] == watch(nested, h)


def test_coarser_inputs_are_measured_in_the_precision_of_the_parameters() -> None:
    nested, h = Nested(), batch().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        measured = Telemetry([(0, 0, nested, nested)])
        measured.arm()
        nested(h)
    assert measured.measure()[0] == watch(nested, h.float())


# ---- nothing there, or nothing comparable


def test_adapters_that_are_all_zero_have_no_share_no_cosine_and_rank_zero(
    randomize: Callable[..., nn.Module],
) -> None:
    entry = watch(randomize(Nested(), scale=0.0), batch().float())
    assert set(entry.pop("norms").values()) == {0.0}
    none, zero = {"slow": None, "fast": None}, {"slow": 0.0, "fast": 0.0}
    assert entry == {
        **{"layer": 0, "adapter": 0, "update_norms": zero, "share": none},
        **{"output_cosine": {PAIR: None}, "update_cosine": {PAIR: None}, "effective_rank": zero},
    }


def test_a_branch_that_gives_nothing_leaves_the_other_the_whole_share() -> None:
    nested, h = Nested().double(), batch()
    nn.init.zeros_(nested.fast.up_proj.weight)
    nn.init.zeros_(nested.fast.up_proj.bias)
    entry = watch(nested, h)
    assert entry["share"] == {"slow": 1.0, "fast": 0.0}
    assert entry["output_cosine"] == {PAIR: None}
    assert entry["effective_rank"]["fast"] == 0
    assert entry["norms"]["fast.down_proj.weight"] > 0


def test_a_branch_that_stood_still_has_no_update_cosine() -> None:
    nested, h = Nested().double(), batch()
    measured = Telemetry([(0, 0, nested, nested)])
    with torch.no_grad():
        nested.fast.up_proj.bias += 2
    entry = watch(nested, h, measured)
    assert entry["update_norms"] == pytest.approx({"slow": 0.0, "fast": 2 * math.sqrt(D)})
    assert entry["update_cosine"] == {PAIR: None}


def test_opposite_and_equal_branches_have_cosines_of_minus_and_plus_one() -> None:
    nested, h = Nested(), batch().float()
    nested.slow.load_state_dict(nested.fast.state_dict())
    measured = Telemetry([(0, 0, nested, nested)])
    with torch.no_grad():
        nested.slow.up_proj.weight *= -1
        nested.slow.up_proj.bias *= -1
    assert watch(nested, h, measured)["output_cosine"] == pytest.approx({PAIR: -1})
    with torch.no_grad():
        for parameter in nested.parameters():
            parameter.add_(0.25)
    assert watch(nested, h, measured)["update_cosine"] == pytest.approx({PAIR: 1})


def test_a_slow_that_grows_loses_its_update_for_once_and_the_update_cosine_for_good() -> None:
    config = EasyDict(
        d_model=D,
        nested_lora_rank=R,
        adapter_lifetime="expansion",
        nested_lora_use_consolidation=True,
        nested_lora_consolidation_mode="function",
        nested_lora_fast_reset="reinit",
    )
    nested, h = NestedLoRAAdapter(config, "0.0").double(), batch()
    train(nested, h, 3)
    measured = Telemetry([(0, 0, nested, nested)])
    nested.consolidate(0.5)
    entry = watch(nested, h, measured)
    assert entry["update_norms"]["slow"] is None
    assert entry["update_norms"]["fast"] > 0
    assert entry["update_cosine"] == {PAIR: None}
    last = arrays(nested)
    train(nested, h, 2)
    entry = watch(nested, h, measured)
    now = arrays(nested)
    assert now["slow"]["down_proj.weight"].shape == (2 * R, D)
    assert entry["update_norms"] == pytest.approx({b: norm(flat(now[b], last[b])) for b in BRANCHES})
    assert entry["effective_rank"] == pytest.approx({b: full_rank(now[b]) for b in BRANCHES})
    assert entry["update_cosine"] == {PAIR: None}


def test_numbers_that_are_not_finite_become_none_and_the_rest_stays() -> None:
    nested, h = Nested().double(), batch()
    fine = watch(nested, h)
    with torch.no_grad():
        nested.fast.up_proj.weight[0, 0] = math.nan
        nested.fast.down_proj.weight[0, 0] = math.inf
    entry = watch(nested, h)
    assert entry["norms"]["fast.up_proj.weight"] is None
    assert entry["norms"]["fast.down_proj.weight"] is None
    assert entry["effective_rank"] == {"slow": fine["effective_rank"]["slow"], "fast": None}
    assert entry["share"] == {"slow": None, "fast": None}
    json.dumps(entry, allow_nan=False)
