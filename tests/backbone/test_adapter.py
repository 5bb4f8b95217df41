"""The bottleneck adapter, and what an adapter type has by default."""

import numpy as np
import pytest
import torch
from adapter_cases import TENSORS, Gain, ThreeBranches, adapter_in_numpy, registered

from backbone.adapter import Adapter, norm
from backbone.nested_lora import NestedLoRAAdapter

D = 8


# ---- the map


@pytest.mark.parametrize("kind", [Adapter, NestedLoRAAdapter, ThreeBranches])
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


def test_a_reset_draws_from_the_cpus_generator_wherever_the_adapter_is(config, monkeypatch):
    """Named streams seed that generator alone; "meta" stands in for a GPU."""
    drawn, kaiming = {}, torch.nn.init.kaiming_uniform_

    def noted(tensor, a):
        drawn[device] = kaiming(tensor, a=a).clone()
        return tensor

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", noted)
    for device in ("cpu", "meta"):
        adapter = Adapter(config(d_model=D), "0.0").to(device)
        del drawn[device]
        torch.manual_seed(3)
        adapter.reset()
    assert drawn["meta"].device.type == "cpu"
    assert torch.equal(drawn["cpu"], drawn["meta"])


def test_adapter_is_up_relu_down(config, randomize):
    adapter = randomize(Adapter(config(d_model=D), "0.0").double())
    x = torch.randn(2, 5, D, dtype=torch.float64)
    np.testing.assert_allclose(adapter(x).detach().numpy(), adapter_in_numpy(adapter, x), rtol=1e-12)


def test_scalar_and_dropout_do_not_act(config, randomize):
    plain = randomize(Adapter(config(d_model=D), "0.0")).train()
    other = Adapter(config(d_model=D), "0.0", dropout=0.9, adapter_scalar="0.1").train()
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, D)
    assert torch.equal(other(x), plain(x))


def test_another_init_option_is_refused(config):
    with pytest.raises(ValueError, match=r"'bert'.*'lora'"):
        Adapter(config(d_model=D), "0.0", init_option="bert")


def test_bottlenecks(config):
    keys = config(d_model=D, ffn_num=4)
    assert Adapter(keys, "0.0").rank == 4
    assert Adapter(keys, "0.0", bottleneck=7).rank == 7


def test_norm_counts_frozen_tensors_too(config, randomize):
    adapter = randomize(Adapter(config(d_model=D), "0.0").double()).requires_grad_(False)
    flat = np.concatenate([parameter.numpy().ravel() for parameter in adapter.parameters()])
    assert norm(adapter) == pytest.approx(float(np.linalg.norm(flat)), rel=1e-12)


# ---- the defaults of an adapter type


def test_a_type_without_branches_is_on_no_time_scale(config):
    for kind in (Adapter, Gain):
        adapter = kind(config(d_model=D), "0.0")
        assert [(role, id(p)) for role, p in adapter.roles()] == [("adapter", id(p)) for p in adapter.parameters()]
        assert (adapter.branches, adapter.active, adapter.consolidates) == ((), (), False)
        assert adapter.measure() == {}
        assert not adapter.revive()


def test_a_type_says_by_its_summands_whether_a_slot_may_run_all_adapters_at_once(config):
    adapter = Adapter(config(d_model=D), "0.0")
    assert adapter.summands() == (adapter,)
    assert Gain(config(d_model=D), "0.0").summands() is None


def test_consolidating_a_type_that_has_none_names_adapter_and_type(config):
    with (
        registered("gain"),
        pytest.raises(TypeError, match=r"adapter 3\.1 is of type gain, which has no consolidation"),
    ):
        Gain(config(d_model=D), "3.1").consolidate(0.5)
