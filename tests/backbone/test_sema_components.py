"""Adapters, descriptors and records against numpy and plain loops."""

import itertools
from collections import deque
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from backbone.sema_components import AE, Adapter, AdapterModule, NestedLoRAAdapter, Records

D = 8
MODES, RESETS, ALPHAS = ("weights", "function"), ("zero", "reinit", "keep"), (0.0, 0.1, 1.0)
PAIRS = [*itertools.product(RESETS, ALPHAS)]
TENSORS = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")


def adapter_in_numpy(adapter: Adapter, x: Tensor) -> np.ndarray:
    down, bias, up, shift = (adapter.get_parameter(name).detach().numpy() for name in TENSORS)
    return np.maximum(x.numpy() @ down.T + bias, 0) @ up.T + shift


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


# ---- the maps


@pytest.mark.parametrize("kind", [Adapter, NestedLoRAAdapter])
def test_a_new_adapter_is_the_zero_map_and_can_learn(config, kind):
    adapter = kind(config(d_model=D), "0.0")
    output = adapter(torch.randn(2, 5, D))
    assert torch.equal(output, torch.zeros(2, 5, D))
    (output - torch.randn(2, 5, D)).square().sum().backward()
    ups = [parameter for name, parameter in adapter.named_parameters() if name.endswith("up_proj.weight")]
    assert ups
    assert all(parameter.grad.abs().max() > 0 for parameter in ups)


def test_an_adapter_is_born_with_kaiming_uniform_down_and_zeros(config):
    adapter = Adapter(config(d_model=400), "0.0", bottleneck=300)
    weight = adapter.down_proj.weight.detach()
    bound = 1 / np.sqrt(400)  # sqrt(6 / ((1 + a^2) fan_in)) with a = sqrt(5)
    assert weight.abs().max() <= bound
    assert weight.abs().max() == pytest.approx(bound, rel=1e-3)
    assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    for name in TENSORS[1:]:
        assert not adapter.get_parameter(name).any()


def test_a_reset_draws_from_the_cpus_generator_wherever_the_adapter_is(config):
    """Named streams seed that generator alone; "meta" stands in for a GPU."""
    after = []
    for device in ("cpu", "meta"):
        adapter = Adapter(config(d_model=D), "0.0").to(device)
        torch.manual_seed(3)
        adapter.reset()
        after.append(torch.get_rng_state())
    assert torch.equal(*after)
    assert not torch.equal(after[0], torch.manual_seed(3).get_state())


def test_adapter_is_up_relu_down(config, randomize):
    adapter = randomize(Adapter(config(d_model=D), "0.0").double())
    x = torch.randn(2, 5, D, dtype=torch.float64)
    np.testing.assert_allclose(adapter(x).detach().numpy(), adapter_in_numpy(adapter, x), rtol=1e-12)


def test_nested_adapter_is_slow_plus_fast(nested):
    adapter, x = nested(), torch.randn(2, 5, D, dtype=torch.float64)
    expected = adapter_in_numpy(adapter.slow, x) + adapter_in_numpy(adapter.fast, x)
    np.testing.assert_allclose(adapter(x).detach().numpy(), expected, rtol=1e-12)


def test_scalar_and_dropout_do_not_act(config, randomize):
    plain = randomize(Adapter(config(d_model=D), "0.0")).train()
    other = Adapter(config(d_model=D), "0.0", dropout=0.9, adapter_scalar="0.1").train()
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, D)
    assert torch.equal(other(x), plain(x))


def test_dropout_does_not_act_in_a_nested_adapter(config, randomize):
    adapter = randomize(NestedLoRAAdapter(config(d_model=D), "0.0", dropout=0.9)).train()
    x = torch.randn(2, 5, D)
    expected = torch.from_numpy(adapter_in_numpy(adapter.slow, x) + adapter_in_numpy(adapter.fast, x))
    torch.testing.assert_close(adapter(x).detach(), expected)


def test_another_init_option_is_refused(config):
    with pytest.raises(ValueError, match=r"'bert'.*'lora'"):
        Adapter(config(d_model=D), "0.0", init_option="bert")


def test_bottlenecks(config):
    keys = config(d_model=D, ffn_num=4, nested_lora_rank=3)
    assert Adapter(keys, "0.0").rank == 4
    assert Adapter(keys, "0.0", bottleneck=7).rank == 7
    nested = NestedLoRAAdapter(keys, "0.0")
    assert (nested.slow.rank, nested.fast.rank) == (3, 3)


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"ffn_adapter_type": "adaptmlp", "ffn_num": 16}, 25_360),
        ({"ffn_adapter_type": "adaptmlp", "ffn_num": 32}, 49_952),
        ({"ffn_adapter_type": "nested_lora", "nested_lora_rank": 16}, 50_720),
        ({"ffn_adapter_type": "nested_lora", "nested_lora_rank": 8}, 26_128),
    ],
)
def test_parameters_at_width_768(config, keys, count):
    functional = AdapterModule(config(d_model=768, **keys), "0.0", described=False).functional
    assert sum(parameter.numel() for parameter in functional.parameters()) == count


def test_norm_counts_frozen_tensors_too(nested):
    adapter = nested().slow.requires_grad_(False)
    flat = np.concatenate([parameter.numpy().ravel() for parameter in adapter.parameters()])
    assert adapter.norm() == pytest.approx(float(np.linalg.norm(flat)), rel=1e-12)


# ---- names and roles


@pytest.mark.parametrize(
    ("kind", "prefixes"),
    [("adaptmlp", ["functional"]), ("nested_lora", ["functional.slow", "functional.fast"])],
)
@pytest.mark.parametrize("described", [True, False])
def test_names_are_the_public_ones(config, kind, prefixes, described):
    module = AdapterModule(config(d_model=D, ffn_adapter_type=kind), "0.0", described)
    expected = {f"{prefix}.{name}" for prefix in prefixes for name in TENSORS}
    if described:
        expected |= {f"rd.{part}.{name}" for part in ("encoder", "decoder") for name in ("weight", "bias")}
    assert {name for name, _ in module.named_parameters()} == expected


@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora"])
@pytest.mark.parametrize("described", [True, False])
def test_roles_name_every_parameter_once(config, kind, described):
    module = AdapterModule(config(d_model=D, ffn_adapter_type=kind), "0.0", described)
    roles = [(role, id(parameter)) for role, parameter in module.roles()]
    parts = {"adaptmlp": {"adapter": ""}, "nested_lora": {"slow": "slow", "fast": "fast"}}[kind]
    held = {role: module.functional.get_submodule(name).parameters() for role, name in parts.items()}
    expected = [(role, id(parameter)) for role, parameters in held.items() for parameter in parameters]
    if described:
        expected += [("descriptor", id(parameter)) for parameter in module.rd.parameters()]
    assert sorted(roles) == sorted(expected)
    assert len({parameter for _, parameter in roles}) == len(list(module.parameters()))


def test_an_unknown_adapter_type_is_refused_with_the_two_there_are(config):
    with pytest.raises(ValueError, match=r"'lora'.*adaptmlp, nested_lora"):
        AdapterModule(config(d_model=D, ffn_adapter_type="lora"), "0.0", described=False)


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


# ---- descriptors


def test_descriptor_loss_against_a_loop_over_samples(config, randomize):
    rd = randomize(AE(config(d_model=D)).double())
    means = torch.randn(6, D, dtype=torch.float64)
    encode, code, decode, shift = (parameter.detach().numpy() for parameter in rd.parameters())
    expected = []
    for mean in means.numpy():
        rebuilt = decode @ (encode @ mean + code) + shift
        expected.append(sum((rebuilt[i] - mean[i]) ** 2 for i in range(D)) / D)
    np.testing.assert_allclose(rd.loss(means).detach().numpy(), expected, rtol=1e-12)


def test_a_descriptor_is_born_with_kaiming_uniform_weights_and_zero_biases(config):
    rd = AE(config(d_model=300, rd_dim=200))
    for layer, fan_in in ((rd.encoder, 300), (rd.decoder, 200)):
        assert layer.weight.abs().max().item() == pytest.approx(1 / np.sqrt(fan_in), rel=1e-3)
        assert layer.weight.std().item() == pytest.approx(1 / np.sqrt(3 * fan_in), rel=0.03)
        assert not layer.bias.any()


# ---- records


def kept_one_by_one(size: int, batches: list[list[float]]) -> list[float]:
    """What stays, loss by loss: a batch that meets a buffer with room ends where the buffer is full."""
    kept: deque[float] = deque(maxlen=size)
    for batch in batches:
        slides = len(kept) == size
        for loss in batch:
            if slides or len(kept) < size:
                kept.append(loss)
    return list(kept)


def recorded(size: int, batches: list[list[float]]) -> Records:
    records = Records(size)
    for batch in batches:
        records.add(torch.tensor(batch, dtype=torch.float64))
    return records


@given(st.integers(1, 7), st.lists(st.integers(0, 9), max_size=8))
def test_records_against_a_list(size, lengths):
    numbers = itertools.count()
    batches = [[float(next(numbers)) for _ in range(length)] for length in lengths]
    assert recorded(size, batches).losses.tolist() == kept_one_by_one(size, batches)


@pytest.mark.parametrize(
    ("size", "lengths", "kept"),
    [
        (500, [32] * 15, range(480)),
        (500, [32] * 16, range(500)),  # of the 16th batch it takes 20
        (500, [32] * 17, [*range(32, 500), *range(512, 544)]),
        (50, [80], range(50)),
        (50, [80, 10], [*range(10, 50), *range(80, 90)]),
        (50, [50, 80], range(80, 130)),
    ],
)
def test_records_in_the_published_cases(size, lengths, kept):
    numbers = itertools.count()
    records = recorded(size, [[float(next(numbers)) for _ in range(length)] for length in lengths])
    assert records.losses.tolist() == list(kept)
    assert len(records) == len(kept)


def test_records_hold_values_and_no_graph():
    records = Records(5)
    records.add(torch.ones(3, requires_grad=True) * 2)
    assert not records.losses.requires_grad


def test_cleared_records_fill_again_from_empty():
    records = recorded(4, [[1.0, 2.0, 3.0, 4.0]])
    records.clear()
    assert len(records) == 0
    records.add(torch.arange(6.0))
    assert records.losses.tolist() == [0, 1, 2, 3]


@given(st.lists(st.floats(0, 100), min_size=3, max_size=20), st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_z_scores_against_numpy(past, new):
    if np.std(past) < 1e-3:
        past = [*past, past[0] + 1]
    z = recorded(50, [past]).z_scores(torch.tensor(new, dtype=torch.float64))
    expected = np.abs(np.array(new) - np.mean(past)) / np.std(past, ddof=1)
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("past", [[], [1.0], [1.0, 2.0]])
def test_z_scores_are_zero_with_two_records_or_fewer(past):
    assert torch.equal(recorded(50, [past]).z_scores(torch.tensor([7.0, 9.0])), torch.zeros(2))


def filled() -> Records:
    records = recorded(5, [[1.0, 2.0, 4.0, 8.0, 16.0]])
    records.moments  # noqa: B018  as it was asked for before the change
    return records


def _copy_takes_other_values(records: Records) -> Records:
    records.losses.mul_(1).mul_(1)  # a version that the copy's tensor starts below
    records.moments  # noqa: B018
    copied = deepcopy(records)
    copied.load_state_dict({"losses": torch.arange(5.0)})
    return copied


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records.add(torch.tensor([7.0, 9.0])),
        lambda records: records.clear(),
        lambda records: records.load_state_dict({"losses": torch.arange(5.0)}),
        lambda records: records.losses.mul_(3),
        lambda records: setattr(records, "losses", torch.arange(4.0)),
        lambda records: records.float(),
        _copy_takes_other_values,
    ],
)
def test_moments_are_those_of_the_records_as_they_are(change):
    records = filled()
    after = change(records)
    records = after if isinstance(after, Records) else records
    losses = records.losses.double().numpy()
    expected = [losses.mean(), losses.std(ddof=1)] if len(losses) > 2 else [0, np.inf]
    np.testing.assert_allclose(records.moments.numpy(), expected, rtol=1e-6)
    assert records.moments.dtype == records.losses.dtype
    assert records.state_dict().keys() == {"losses"}


def test_observing_records_and_teaches_while_scoring_does_neither(config):
    module = AdapterModule(config(d_model=D), "0.0", described=True)
    means = torch.randn(6, D)
    losses = module.observe(means)
    assert torch.equal(module.records.losses, losses.detach())
    losses.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (module.rd.encoder.weight, module.rd.decoder.weight))
    z = module.z_scores(means)
    assert len(module.records) == 6
    assert not z.requires_grad
    expected = np.abs(losses.detach().numpy() - losses.detach().numpy().mean()) / losses.detach().numpy().std(ddof=1)
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-4, atol=1e-6)
