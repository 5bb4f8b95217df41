"""An adapter with its descriptor and its records, against numpy and plain loops."""

import itertools
from collections import deque
from copy import deepcopy

import numpy as np
import pytest
import torch
from adapter_cases import TENSORS, registered
from hypothesis import given
from hypothesis import strategies as st

from backbone import adapter, nested_lora, sema_components
from backbone.sema_components import AE, AdapterModule, Records

D = 8


# ---- the adapter


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


def test_the_public_names_are_here():
    assert sema_components.Adapter is adapter.Adapter
    assert sema_components.NestedLoRAAdapter is nested_lora.NestedLoRAAdapter


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


def test_the_adapter_is_of_the_registered_type(config):
    with registered("gain"):
        module = AdapterModule(config(d_model=D, ffn_adapter_type="gain"), "0.0", described=True)
    assert (type(module.functional).__name__, module.functional.kind) == ("Gain", "gain")
    assert {name: role for role, p in module.roles() for name, q in module.named_parameters() if p is q} == {
        "functional.gain": "adapter",
        **{f"rd.{part}.{name}": "descriptor" for part in ("encoder", "decoder") for name in ("weight", "bias")},
    }


def test_an_unknown_adapter_type_is_refused_with_the_two_there_are(config):
    with pytest.raises(ValueError, match=r"'lora'.*adaptmlp, nested_lora"):
        AdapterModule(config(d_model=D, ffn_adapter_type="lora"), "0.0", described=False)


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


def test_observing_records_and_teaches_while_scoring_does_not_record(config):
    module = AdapterModule(config(d_model=D), "0.0", described=True)
    means = torch.randn(6, D)
    losses = module.observe(means)
    assert torch.equal(module.records.losses, losses.detach())
    losses.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (module.rd.encoder.weight, module.rd.decoder.weight))
    z = module.records.z_scores(module.rd.loss(means).detach())
    assert len(module.records) == 6
    expected = np.abs(losses.detach().numpy() - losses.detach().numpy().mean()) / losses.detach().numpy().std(ddof=1)
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-4, atol=1e-6)
