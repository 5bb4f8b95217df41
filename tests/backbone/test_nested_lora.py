"""Nested LoRA's branches, their consolidation, and a branch more, against numpy."""

import itertools
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from adapter_cases import TENSORS, ThreeBranches, adapter_in_numpy
from torch import Tensor, nn

from backbone.adapter import norm
from backbone.nested_lora import NestedLoRAAdapter

D = 8
MODES, RESETS, ALPHAS = ("weights", "function"), ("zero", "reinit", "keep"), (0.0, 0.1, 1.0)
PAIRS = [*itertools.product(RESETS, ALPHAS)]


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(module: nn.Module, expected: dict[str, Tensor]) -> None:
    assert module.state_dict().keys() == expected.keys()
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def nested(config, randomize) -> Callable[..., NestedLoRAAdapter]:
    """A nested adapter in float64 with random values everywhere."""
    return lambda **keys: randomize(NestedLoRAAdapter(config(d_model=D, **keys), "0.0").double())


# ---- the map


def test_nested_adapter_is_slow_plus_fast(nested):
    adapter, x = nested(), torch.randn(2, 5, D, dtype=torch.float64)
    expected = adapter_in_numpy(adapter.slow, x) + adapter_in_numpy(adapter.fast, x)
    np.testing.assert_allclose(adapter(x).detach().numpy(), expected, rtol=1e-12)


def test_dropout_does_not_act_in_a_nested_adapter(config, randomize):
    adapter = randomize(NestedLoRAAdapter(config(d_model=D), "0.0", dropout=0.9)).train()
    x = torch.randn(2, 5, D)
    expected = torch.from_numpy(adapter_in_numpy(adapter.slow, x) + adapter_in_numpy(adapter.fast, x))
    torch.testing.assert_close(adapter(x).detach(), expected)


def test_both_branches_have_the_rank(config):
    adapter = NestedLoRAAdapter(config(d_model=D, nested_lora_rank=3), "0.0")
    assert (adapter.slow.rank, adapter.fast.rank) == (3, 3)


@pytest.mark.parametrize(
    ("consolidates", "mode", "grows"),
    [(True, "function", True), (True, "weights", False), (False, "function", False), (False, "weights", False)],
)
def test_only_a_consolidation_of_functions_adds_parameters(config, consolidates, mode, grows):
    keys = {"nested_lora_use_consolidation": consolidates, "nested_lora_consolidation_mode": mode}
    adapter = NestedLoRAAdapter(config(d_model=D, **keys), "0.0")
    before = sum(parameter.numel() for parameter in adapter.parameters())
    if adapter.consolidates:
        adapter.consolidate(0.5)
    after = sum(parameter.numel() for parameter in adapter.parameters())
    assert adapter.grows == (after > before) == grows


def test_consolidation_is_the_configurations(config):
    for consolidates in (False, True):
        adapter = NestedLoRAAdapter(config(d_model=D, nested_lora_use_consolidation=consolidates), "0.0")
        assert adapter.consolidates == consolidates


@pytest.mark.parametrize("chosen", [None, ["slow"], ["fast"], ["slow", "fast"]])
def test_only_the_chosen_branches_learn(config, chosen):
    adapter = NestedLoRAAdapter(config(d_model=D, nested_lora_train=chosen), "0.0").requires_grad_(False)
    adapter.let_learn()
    learning = {role for role, parameter in adapter.roles() if parameter.requires_grad}
    assert learning == set(chosen or ["slow", "fast"]) == set(adapter.learning(adapter.config))
    assert all(p.requires_grad == (role in learning) for role, p in adapter.roles())


# ---- consolidation


@pytest.mark.parametrize(("reset", "alpha"), PAIRS)
def test_weights_mode_adds_alpha_fast_to_every_slow_tensor(nested, reset, alpha):
    adapter = nested(nested_lora_consolidation_mode="weights", nested_lora_fast_reset=reset)
    slow, fast = values(adapter.slow), values(adapter.fast)
    adapter.consolidate(alpha)
    for name in TENSORS:
        expected = slow[name].numpy() + alpha * fast[name].numpy()
        np.testing.assert_allclose(adapter.slow.get_parameter(name).detach().numpy(), expected, rtol=1e-12, atol=1e-15)
    assert adapter.slow.rank == adapter.fast.rank == 3


@pytest.mark.parametrize(("reset", "alpha"), PAIRS)
def test_function_mode_adds_alpha_fast_to_slows_output(config, randomize, real_h, reset, alpha):
    keys = {"nested_lora_consolidation_mode": "function", "nested_lora_fast_reset": reset}
    adapter = randomize(NestedLoRAAdapter(config(d_model=real_h.shape[-1], **keys), "0.0").double())
    slow, fast = values(adapter.slow), values(adapter.fast)
    expected = adapter_in_numpy(adapter.slow, real_h) + alpha * adapter_in_numpy(adapter.fast, real_h)
    adapter.consolidate(alpha)
    np.testing.assert_allclose(adapter.slow(real_h).detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    assert adapter.slow.rank == 6
    assert torch.equal(adapter.slow.down_proj.weight, torch.cat([slow["down_proj.weight"], fast["down_proj.weight"]]))
    assert torch.equal(adapter.slow.up_proj.weight[:, :3], slow["up_proj.weight"])
    adapter.consolidate(alpha)
    assert adapter.slow.rank == 9


@pytest.mark.parametrize(("mode", "alpha"), [*itertools.product(MODES, ALPHAS)])
def test_fast_after_each_reset(nested, mode, alpha):
    fast = {}
    for reset in RESETS:
        adapter = nested(nested_lora_consolidation_mode=mode, nested_lora_fast_reset=reset)
        before = values(adapter.fast)
        adapter.consolidate(alpha)
        fast[reset] = (adapter.fast, before)
    assert not any(parameter.any() for parameter in fast["zero"][0].parameters())
    assert_same(*fast["keep"])
    reborn, before = fast["reinit"]
    assert not any(reborn.get_parameter(name).any() for name in TENSORS[1:])
    assert 0 < reborn.down_proj.weight.abs().max() <= 1 / np.sqrt(D)
    assert not torch.isclose(reborn.down_proj.weight, before["down_proj.weight"]).any()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_what_a_function_consolidation_leaves_of_the_adapter(nested, alpha):
    x = torch.randn(2, 5, D, dtype=torch.float64)
    for reset, share in {"zero": alpha, "reinit": alpha, "keep": 1 + alpha}.items():
        adapter = nested(nested_lora_consolidation_mode="function", nested_lora_fast_reset=reset)
        expected = adapter_in_numpy(adapter.slow, x) + share * adapter_in_numpy(adapter.fast, x)
        adapter.consolidate(alpha)
        np.testing.assert_allclose(adapter(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_alpha_zero_leaves_slow_as_it_was(nested, mode):
    adapter, x = nested(nested_lora_consolidation_mode=mode), torch.randn(2, 5, D, dtype=torch.float64)
    expected = adapter_in_numpy(adapter.slow, x)
    adapter.consolidate(0.0)
    np.testing.assert_allclose(adapter(x).detach().numpy(), expected, rtol=1e-12)


# ---- a second life for fast


def trained(adapter: NestedLoRAAdapter) -> tuple[float, dict[str, bool]]:
    """Fit `fast` to a target that depends on the input; the last loss and which tensors moved."""
    before = values(adapter.fast)
    x = torch.randn(40, 1, D, dtype=torch.float64)
    target = torch.relu(x @ torch.randn(D, D, dtype=torch.float64)) + adapter.slow(x).detach()
    optimizer = torch.optim.SGD(adapter.fast.parameters(), lr=0.1, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (adapter(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item(), {name: not torch.equal(adapter.fast.get_parameter(name), before[name]) for name in TENSORS}


def test_a_zeroed_fast_moves_only_its_output_bias(nested):
    adapter = nested()
    adapter.consolidate(1.0)
    _, moved = trained(adapter)
    assert moved == dict.fromkeys(TENSORS, False) | {"up_proj.bias": True}


def test_a_revived_fast_learns_what_a_zeroed_one_cannot(nested):
    dead = nested()
    dead.consolidate(1.0)
    revived = deepcopy(dead)
    slow, x = values(revived.slow), torch.randn(2, 5, D, dtype=torch.float64)
    assert revived.revive()
    assert_same(revived.slow, slow)
    torch.testing.assert_close(revived(x), dead(x), rtol=0, atol=0)
    losses = {}
    for name, adapter in {"dead": dead, "revived": revived}.items():
        torch.manual_seed(1)  # the same task for both
        losses[name], moved = trained(adapter)
    assert all(moved.values())
    assert losses["revived"] < 0.7 * losses["dead"]


def test_revive_leaves_a_living_fast_alone(nested, config):
    for adapter in (nested(), NestedLoRAAdapter(config(d_model=D), "0.0")):
        before = values(adapter)
        assert not adapter.revive()
        assert_same(adapter, before)


# ---- a branch more


@pytest.fixture
def three(config, randomize) -> Callable[..., ThreeBranches]:
    """An adapter of three branches in float64 with random values everywhere."""
    return lambda **keys: randomize(ThreeBranches(config(d_model=D, **keys), "0.0").double())


def test_three_branches_are_summed(three):
    adapter, x = three(), torch.randn(2, 5, D, dtype=torch.float64)
    parts = {name: adapter_in_numpy(getattr(adapter, name), x) for name in ("slow", "mid", "fast")}
    np.testing.assert_allclose(adapter(x).detach().numpy(), sum(parts.values()), rtol=1e-12)
    for active in (("slow", "mid"), ("mid",), ("slow", "fast"), ()):
        adapter.active = active
        expected = sum((parts[name] for name in active), np.zeros(x.shape))
        np.testing.assert_allclose(adapter(x).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_every_branch_is_the_role_of_its_parameters(three):
    adapter = three()
    found: dict[str, list[str]] = {}
    names = {id(parameter): name for name, parameter in adapter.named_parameters()}
    for role, parameter in adapter.roles():
        found.setdefault(role, []).append(names[id(parameter)])
    assert found == {role: [f"{role}.{name}" for name in TENSORS] for role in ("slow", "mid", "fast")}


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: module.get_parameter(name).detach().numpy().copy() for name in TENSORS}


@pytest.mark.parametrize(("reset", "alpha"), [*itertools.product(("zero", "keep"), ALPHAS)])
def test_weights_mode_moves_each_branch_into_the_next_slower_one(three, reset, alpha):
    adapter = three(nested_lora_consolidation_mode="weights", nested_lora_fast_reset=reset)
    slow, mid, fast = (arrays(branch) for branch in (adapter.slow, adapter.mid, adapter.fast))
    assert adapter.consolidate(alpha) == {"alpha": alpha, "mode": "weights", "reset": reset}
    kept = 1.0 if reset == "keep" else 0.0
    for name in TENSORS:
        expected = {"slow": slow[name] + alpha * mid[name], "mid": kept * mid[name] + alpha * fast[name]}
        expected["fast"] = kept * fast[name]
        for branch, value in expected.items():
            got = arrays(getattr(adapter, branch))[name]
            np.testing.assert_allclose(got, value, rtol=1e-12, atol=1e-15, err_msg=f"{branch}.{name}")


@pytest.mark.parametrize(("reset", "alpha"), PAIRS)
def test_function_mode_moves_each_branchs_output_into_the_next_slower_one(three, reset, alpha):
    adapter = three(nested_lora_consolidation_mode="function", nested_lora_fast_reset=reset)
    x = torch.randn(2, 5, D, dtype=torch.float64)
    slow, mid, fast = (adapter_in_numpy(branch, x) for branch in (adapter.slow, adapter.mid, adapter.fast))
    adapter.consolidate(alpha)
    kept = 1.0 if reset == "keep" else 0.0
    expected = {"slow": slow + alpha * mid, "mid": kept * mid + alpha * fast, "fast": kept * fast}
    for branch, value in expected.items():
        got = adapter_in_numpy(getattr(adapter, branch), x)
        np.testing.assert_allclose(got, value, rtol=1e-10, atol=1e-12, err_msg=branch)
    assert [branch.rank for branch in (adapter.slow, adapter.mid, adapter.fast)] == [6, 6, 3]
    adapter.consolidate(alpha)
    assert [branch.rank for branch in (adapter.slow, adapter.mid, adapter.fast)] == [12, 9, 3]


def test_reinit_gives_the_branches_between_a_fresh_down_projection_and_fasts_share(three):
    adapter = three(nested_lora_consolidation_mode="weights", nested_lora_fast_reset="reinit")
    mid, fast = arrays(adapter.mid), arrays(adapter.fast)
    adapter.consolidate(0.5)
    after = arrays(adapter.mid)
    for name in TENSORS[1:]:
        np.testing.assert_allclose(after[name], 0.5 * fast[name], rtol=1e-12)
    fresh = after[TENSORS[0]] - 0.5 * fast[TENSORS[0]]
    assert 0 < np.abs(fresh).max() <= 1 / np.sqrt(D) + 1e-12
    assert not np.isclose(fresh, mid[TENSORS[0]]).any()


def test_a_receipt_measures_every_branch_and_the_ranks_of_those_that_grow(three):
    adapter = three()
    expected = {
        f"{name}_norm": pytest.approx(np.linalg.norm(np.concatenate([v.ravel() for v in arrays(branch).values()])))
        for name, branch in (("slow", adapter.slow), ("mid", adapter.mid), ("fast", adapter.fast))
    }
    assert adapter.measure() == expected | {"slow_rank": 3, "mid_rank": 3}


def test_every_dead_branch_but_the_slowest_is_revived(three):
    adapter = three()
    for branch in (adapter.slow, adapter.mid, adapter.fast):
        branch.zero()
    assert adapter.revive()
    assert [norm(branch) > 0 for branch in (adapter.slow, adapter.mid, adapter.fast)] == [False, True, True]
    assert not adapter(torch.randn(2, 5, D, dtype=torch.float64)).any()
    assert not adapter.revive()


def test_branches_take_the_ranks_of_a_checkpoint_but_the_fastest(three):
    adapter = three()
    ranks = {"slow": 9, "mid": 6, "fast": 5}
    adapter.fit({f"{branch}.down_proj.weight": (rank, D) for branch, rank in ranks.items()})
    assert [branch.rank for branch in (adapter.slow, adapter.mid, adapter.fast)] == [9, 6, 3]
    assert adapter.mid.up_proj.weight.shape == (D, 6)


@pytest.mark.parametrize("shape", [(), (0, D), (3,), (2, 3, 4)])
def test_a_shape_that_no_branch_has_is_left_to_the_comparison_of_names_and_shapes(three, shape):
    adapter = three()
    adapter.fit({"slow.down_proj.weight": shape})
    assert adapter.slow.rank == 3


@pytest.mark.parametrize("kind", [NestedLoRAAdapter, ThreeBranches])
@pytest.mark.parametrize(("mode", "reset", "alpha"), [*itertools.product(MODES, RESETS, ALPHAS)])
def test_an_adapter_knows_whether_a_consolidation_preserves_its_function(config, randomize, kind, mode, reset, alpha):
    keys = {"nested_lora_consolidation_mode": mode, "nested_lora_fast_reset": reset}
    keys = {**keys, "nested_lora_consolidation_alpha": alpha}
    adapter, x = randomize(kind(config(d_model=D, **keys), "0.0").double()), torch.randn(2, 5, D, dtype=torch.float64)
    before = adapter(x)
    adapter.consolidate(alpha)
    assert adapter.preserves_function(adapter.config) == torch.allclose(adapter(x), before, rtol=1e-9)
