"""A slot's products over all adapters at once, against one adapter after the other."""

import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from adapter_cases import registered
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from backbone.batched import reconstruction_losses
from backbone.sema_block import SEMAModules
from backbone.sema_components import Adapter, NestedLoRAAdapter

BRANCHES = [("slow", "fast"), ("slow",), ("fast",), ()]
CASES = [{"ffn_adapter_type": "adaptmlp"}, {"ffn_adapter_type": "nested_lora"}]
RANKS = (4, 7, 3, 1, 5)


@pytest.fixture
def mixed_ranks(randomize: Callable[[nn.Module], nn.Module]) -> Callable[[SEMAModules], SEMAModules]:
    """Give the adapters of a slot different inner widths, as consolidation in mode "function" does with slow."""

    def change(slot: SEMAModules) -> SEMAModules:
        for adapter, rank in zip(slot.adapters, RANKS, strict=False):
            grown: Adapter = getattr(adapter.functional, "slow", adapter.functional)
            learns = grown.down_proj.weight.requires_grad
            grown.resize(rank)
            randomize(grown.double().requires_grad_(learns))
        return slot

    return change


def one_after_the_other(slot: SEMAModules, h: Tensor) -> Tensor:
    """Every adapter's own forward, weighted by the softmax of every column."""
    if not slot.expandable:
        return slot.adapters[0](h)
    routers = [router for router in (slot.router, slot.new_router) if router is not None]
    logits = torch.cat([router(h.mean(dim=1)) for router in routers], dim=1)
    shares = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    return sum(shares[:, index, None, None] * adapter(h) for index, adapter in enumerate(slot.adapters))


def outcome(slot: SEMAModules, forward: Callable[[Tensor], Tensor], h: Tensor) -> dict[str, Tensor | None]:
    """Output, and gradients of the input and of every parameter by name, of a loss that weighs every number."""
    slot.zero_grad(set_to_none=True)
    h = h.clone().requires_grad_()
    output = forward(h)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    if output.requires_grad:  # the zero map of a layer that does not mix has nothing to learn
        (output.square() * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in slot.named_parameters()}
    return {"output": output.detach(), "input": h.grad, **gradients}


def assert_as_one_after_the_other(slot: SEMAModules, h: Tensor) -> dict[str, Tensor | None]:
    wanted = outcome(slot, lambda x: one_after_the_other(slot, x), h)
    got = outcome(slot, slot, h)
    assert {name for name, value in got.items() if value is None} == {n for n, v in wanted.items() if v is None}
    for name, value in got.items():
        if value is not None:
            torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    return got


@pytest.mark.parametrize("keys", CASES)
@pytest.mark.parametrize("adapters", [1, 2, 5])
@pytest.mark.parametrize("widths", ["equal", "mixed"])
def test_frozen_adapters_and_a_new_one(make_slot, mixed_ranks, real_h, keys, adapters, widths):
    slot = make_slot(adapters, **keys)
    got = assert_as_one_after_the_other(mixed_ranks(slot) if widths == "mixed" else slot, real_h)
    learns = {name for name, value in got.items() if value is not None} - {"output", "input"}
    assert learns == {name for name, p in slot.named_parameters() if p.requires_grad and ".rd." not in name}
    assert {name.split(".functional.")[0] for name in learns if ".functional." in name} == {f"adapters.{adapters - 1}"}


@pytest.mark.parametrize("keys", CASES)
@pytest.mark.parametrize("adapters", [1, 2, 5])
def test_adapters_that_all_learn(make_slot, mixed_ranks, real_h, keys, adapters):
    slot = mixed_ranks(make_slot(adapters, **keys))
    slot.end_of_cycle()
    slot.requires_grad_(True)
    got = assert_as_one_after_the_other(slot, real_h)
    assert all((value is None) == (".rd." in name) for name, value in got.items())


@pytest.mark.parametrize("keys", CASES)
def test_adapters_that_are_all_frozen_still_pass_the_gradient_on(make_slot, real_h, keys):
    slot = make_slot(3, **keys)
    slot.end_of_cycle()
    got = assert_as_one_after_the_other(slot, real_h)
    assert {name for name, value in got.items() if value is not None} == {"output", "input"}


@pytest.mark.parametrize("active", BRANCHES)
@pytest.mark.parametrize(("adapters", "layer"), [(1, 0), (1, 1), (2, 1), (5, 1)])
def test_nested_adapters_with_some_branches(make_slot, mixed_ranks, real_h, adapters, layer, active):
    slot = mixed_ranks(make_slot(adapters, layer, ffn_adapter_type="nested_lora"))
    for adapter in slot.adapters:
        adapter.functional.active = active
    got = assert_as_one_after_the_other(slot, real_h)
    assert bool(got["output"].any()) == bool(active)
    newest = {name.split(".")[3] for name, v in got.items() if ".functional." in name and v is not None}
    assert newest == set(active)


@pytest.mark.parametrize("kind", ["gain", "three_branches"])
@pytest.mark.parametrize("adapters", [1, 3])
def test_adapters_of_a_type_of_ones_own(make_slot, real_h, kind, adapters):
    with registered(kind):
        slot = make_slot(adapters, ffn_adapter_type=kind)
    assert (slot.newest.functional.summands() is None) == (kind == "gain")
    got = assert_as_one_after_the_other(slot, real_h)
    learns = {name for name, value in got.items() if value is not None} - {"output", "input"}
    assert {name.split(".functional.")[0] for name in learns if ".functional." in name} == {f"adapters.{adapters - 1}"}


def test_branches_may_differ_from_adapter_to_adapter(make_slot, real_h):
    slot = make_slot(4, ffn_adapter_type="nested_lora")
    for adapter, active in zip(slot.adapters, BRANCHES, strict=True):
        adapter.functional.active = active
    assert_as_one_after_the_other(slot, real_h)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_slow_that_consolidation_has_grown(make_slot, real_h, layer):
    slot = make_slot(1 + layer, layer, ffn_adapter_type="nested_lora", nested_lora_consolidation_mode="function")
    slot.begin_func_phase()
    slot(real_h)  # what it has seen before must not matter
    slot.consolidate_nested_lora(0.5)
    assert slot.newest.functional.slow.rank == 6
    assert_as_one_after_the_other(slot, real_h)


def test_other_values_in_frozen_adapters_are_seen_at_once(make_slot, randomize, real_h):
    slot, other = make_slot(3), make_slot(3)
    slot.end_of_cycle(), other.end_of_cycle()
    before = slot(real_h)
    slot.load_state_dict(other.state_dict(), strict=False)
    torch.testing.assert_close(slot(real_h), one_after_the_other(other, real_h), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(slot(real_h), before)


class Sizes(TorchDispatchMode):
    """Keeps the largest number of elements any operation gives."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("keys", CASES)
def test_no_tensor_is_larger_than_the_output_or_the_hidden_units(make_slot, real_h, keys):
    slot = make_slot(5, **keys)
    units = sum(summand.rank for adapter in slot.adapters for summand in adapter.functional.summands())
    with Sizes() as sizes:
        slot(real_h.requires_grad_()).sum().backward()
    assert sizes.largest == max(units, real_h.shape[2]) * real_h.shape[0] * real_h.shape[1] < 2 * real_h.numel()


def test_summands_are_the_adapter_itself_or_its_active_branches(config):
    adapter, nested = Adapter(config(d_model=8), "0.0"), NestedLoRAAdapter(config(d_model=8), "0.0")
    assert adapter.summands() == (adapter,)
    assert nested.summands() == (nested.slow, nested.fast)
    nested.active = ("fast",)
    assert nested.summands() == (nested.fast,)


# ---- descriptors


def remember(slot: SEMAModules, lengths: Sequence[int]) -> None:
    """Give the descriptors records of these lengths."""
    for adapter, length in zip(slot.adapters, lengths, strict=True):
        adapter.records.clear()
        adapter.records.add(torch.rand(length, dtype=torch.float64))


def z_one_by_one(slot: SEMAModules, means: Tensor) -> np.ndarray:  # (A, B)
    """Adapter after adapter, sample after sample, number after number."""
    z = np.zeros((slot.num_adapters, len(means)))
    for row, adapter in zip(z, slot.adapters, strict=True):
        encode, code, decode, shift = (parameter.detach().numpy() for parameter in adapter.rd.parameters())
        past = adapter.records.losses.tolist()
        for index, mean in enumerate(means.numpy()):
            rebuilt = decode @ (encode @ mean + code) + shift
            loss = sum((a - b) ** 2 for a, b in zip(rebuilt, mean, strict=True)) / len(mean)
            row[index] = abs(loss - statistics.fmean(past)) / statistics.stdev(past) if len(past) > 2 else 0.0
    return z


@pytest.mark.parametrize("lengths", [[20], [2], [], [3, 20], [0, 1, 2, 3, 20], [20] * 5])
def test_z_scores_of_all_descriptors(make_slot, real_h, lengths):
    slot, means = make_slot(max(1, len(lengths))), real_h.mean(dim=1)
    remember(slot, lengths or [0])
    z = slot.z_scores(means)
    np.testing.assert_allclose(z.numpy(), z_one_by_one(slot, means), rtol=1e-9, atol=1e-12)
    alone = [module.records.z_scores(module.rd.loss(means).detach()) for module in slot.adapters]
    torch.testing.assert_close(z, torch.stack(alone), rtol=1e-9, atol=1e-12)
    assert not z.requires_grad


@pytest.mark.parametrize("adapters", [1, 2, 5])
def test_losses_of_all_descriptors_and_their_gradients(make_slot, real_h, adapters):
    slot, means = make_slot(adapters), real_h.mean(dim=1)
    descriptors = [adapter.rd for adapter in slot.adapters]
    batched = reconstruction_losses(descriptors, means)
    batched.square().sum().backward()
    got = [[parameter.grad for parameter in rd.parameters()] for rd in descriptors]
    for rd in descriptors:
        rd.zero_grad(set_to_none=True)
    plain = torch.stack([rd.loss(means) for rd in descriptors])
    plain.square().sum().backward()
    torch.testing.assert_close(batched, plain, rtol=1e-11, atol=1e-12)
    for gradients, rd in zip(got, descriptors, strict=True):
        for gradient, parameter in zip(gradients, rd.parameters(), strict=True):
            assert (gradient is None) == (parameter.grad is None) == (not parameter.requires_grad)
            if gradient is not None:
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-11)


def test_z_scores_read_no_value(make_slot):
    """On the meta device, where there are no values, all of it works: no layer of a scan waits for the device."""
    slot = make_slot(3)
    remember(slot, [2, 5, 9])
    assert slot.to("meta").z_scores(torch.empty(6, 32, dtype=torch.float64, device="meta")).shape == (3, 6)


def test_moments_are_computed_once_for_records_that_rest(make_slot, real_h, monkeypatch):
    slot, means = make_slot(3), real_h.mean(dim=1)
    remember(slot, [5, 6, 7])
    slot.z_scores(means)
    computed, std = [], Tensor.std
    monkeypatch.setattr(Tensor, "std", lambda losses: computed.append(len(losses)) or std(losses))
    slot.z_scores(means), slot.z_scores(2 * means)
    assert computed == []
    slot.newest.observe(means)
    slot.z_scores(means), slot.z_scores(means)
    assert computed == [12]
