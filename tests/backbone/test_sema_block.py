"""One block's slot: mixing, expansion, freezing and consolidation."""

import copy
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import timm
import torch
from adapter_cases import adapter_in_numpy, registered
from torch import Tensor, nn

from backbone.adapter import norm
from backbone.sema_block import SEMABlock, SEMAModules, relative_change

D = 32  # width of the tiny ViT
KINDS = ("adaptmlp", "nested_lora")
INSIDE, OUTSIDE = 1, 0  # layers: the tiny configuration expands layers 1 and 2


@pytest.fixture
def own_types() -> Iterator[None]:
    with registered("gain", "three_branches"):
        yield


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    after = module.state_dict()
    return {name for name in before.keys() | after.keys() if not torch.equal(before[name], after[name])}


def router_columns(slot: SEMAModules) -> tuple[np.ndarray, np.ndarray]:
    """Weight (A, D) and bias (A,) of the router and the new router."""
    routers = [router for router in (slot.router, slot.new_router) if router is not None]
    weight = np.concatenate([router.weight.detach().numpy() for router in routers])
    return weight, np.concatenate([router.bias.detach().numpy() for router in routers])


def mixed_one_by_one(slot: SEMAModules, h: Tensor) -> Tensor:
    """Sample after sample, adapter after adapter."""
    weight, bias = router_columns(slot)
    mixed = torch.zeros_like(h)
    for sample in range(len(h)):
        mean = sum(h[sample, token] for token in range(h.shape[1])).numpy() / h.shape[1]
        logits = [float(row @ mean + shift) for row, shift in zip(weight, bias, strict=True)]
        total = sum(math.exp(logit) for logit in logits)
        for logit, adapter in zip(logits, slot.adapters, strict=True):
            mixed[sample] += math.exp(logit) / total * adapter(h[sample : sample + 1])[0].detach()
    return mixed


# ---- forward


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapters", [1, 2, 3])
@pytest.mark.parametrize("joined", [False, True])
def test_mixing_against_a_loop(make_slot, real_h, kind, adapters, joined):
    slot = make_slot(adapters, ffn_adapter_type=kind)
    if joined:
        slot.end_of_cycle()
    assert (slot.new_router is None) == (joined or adapters == 1)
    assert slot.num_adapters == adapters == len(router_columns(slot)[0])
    torch.testing.assert_close(slot(real_h).detach(), mixed_one_by_one(slot, real_h), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer", [INSIDE, OUTSIDE])
@pytest.mark.parametrize("adapters", [1, 3])
@pytest.mark.parametrize("joined", [False, True])
def test_adapters_that_have_a_forward_and_no_summands_are_mixed_like_others(
    own_types, make_slot, real_h, layer, adapters, joined
):
    """The router's softmax over `gain * tanh(h)` in numpy, number by number."""
    slot = make_slot(adapters if layer == INSIDE else 1, layer, ffn_adapter_type="gain")
    if joined:
        slot.end_of_cycle()
    gains = [adapter.gain.detach().numpy() for adapter in slot.functional]
    weight, bias = router_columns(slot)
    expected = np.zeros(real_h.shape)
    for sample, tokens in enumerate(real_h.numpy()):
        shares = np.exp(weight @ (sum(tokens) / len(tokens)) + bias) if layer == INSIDE else np.ones(1)
        for share, gain in zip(shares / sum(shares), gains, strict=True):
            expected[sample] += share * gain * np.tanh(tokens)
    np.testing.assert_allclose(slot(real_h).detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_outside_the_range_is_its_one_adapter(make_slot, real_h, kind):
    slot = make_slot(layer=OUTSIDE, ffn_adapter_type=kind)
    slot(real_h).square().sum().backward()
    torch.testing.assert_close(slot(real_h), slot.adapters[0](real_h), rtol=1e-12, atol=1e-14)
    assert not slot.expandable
    assert not slot.describing
    assert not any("rd" in name or "records" in name for name, _ in slot.named_modules())
    assert slot.router.weight.shape == (1, D)
    assert slot.router.weight.grad is slot.router.bias.grad is None
    assert not slot.router.weight.requires_grad


def test_a_lone_adapters_router_has_a_gradient_that_is_exactly_zero(make_slot, real_h):
    slot = make_slot()
    slot(real_h).square().sum().backward()
    for parameter in slot.router.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_the_range_includes_both_ends(config):
    slots = [SEMAModules(config(d_model=D, adapt_start_layer=1, adapt_end_layer=2), layer) for layer in range(4)]
    assert [slot.expandable for slot in slots] == [False, True, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e6])  # the second is strange to every descriptor
def test_forward_never_changes_the_module_tree(make_slot, real_h, kind, training, scale):
    slot = make_slot(2, ffn_adapter_type=kind, exp_threshold=0.0).train(training)
    tree = [(name, id(module)) for name, module in slot.named_modules()]
    parameters = [(name, id(parameter)) for name, parameter in slot.named_parameters()]
    before = values(slot)
    for _ in range(5):
        slot(scale * real_h)
        slot.z_scores(scale * real_h.mean(dim=1))
    assert [(name, id(module)) for name, module in slot.named_modules()] == tree
    assert [(name, id(parameter)) for name, parameter in slot.named_parameters()] == parameters
    lengths = {name for name in before if len(before[name]) != len(slot.state_dict()[name])}
    assert lengths == ({"adapters.1.records.losses"} if training else set())


# ---- descriptors


def test_records_see_training_batches_of_the_newest_descriptor_only(make_slot, real_h):
    slot = make_slot(2).train()
    means = real_h.mean(dim=1)
    slot(real_h)
    expected = slot.newest.rd.loss(means).detach()
    assert torch.equal(slot.newest.records.losses, expected)
    assert len(slot.adapters[0].records) == 0
    slot.eval()(real_h)
    assert torch.equal(slot.newest.records.losses, expected)
    slot.train().end_of_cycle()
    slot(real_h)
    assert torch.equal(slot.newest.records.losses, expected)


def test_rd_loss_is_the_newest_descriptors_batch_mean_and_is_recorded(make_slot, real_h):
    slot = make_slot(3)
    means = real_h.mean(dim=1)
    losses = [((slot.newest.rd(mean) - mean).square().sum() / D).item() for mean in means]
    assert slot.rd_loss(means).item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    np.testing.assert_allclose(slot.newest.records.losses.numpy(), losses, rtol=1e-12)
    slot.rd_loss(means).backward()
    got = {name.split(".rd.")[0] for name, parameter in slot.named_parameters() if parameter.grad is not None}
    assert got == {"adapters.2"}


def test_z_scores_of_every_adapter_against_numpy(make_slot, real_h):
    slot, means = make_slot(3), real_h.mean(dim=1)
    past = [np.random.RandomState(seed).rand(9) for seed in range(3)]
    for adapter, losses in zip(slot.adapters, past, strict=True):
        adapter.records.add(torch.from_numpy(losses))
    z = slot.z_scores(means)
    for row, adapter, losses in zip(z.numpy(), slot.adapters, past, strict=True):
        now = ((adapter.rd(means) - means) ** 2).mean(dim=1).detach().numpy()
        np.testing.assert_allclose(row, np.abs(now - losses.mean()) / losses.std(ddof=1), rtol=1e-10)
    assert not z.requires_grad


def test_describing_is_true_from_birth_to_the_end_of_the_cycle(make_slot):
    slot = make_slot()
    assert slot.describing
    slot.end_of_cycle()
    assert not slot.describing
    slot.expand()
    assert slot.describing
    assert not slot.adapters[0].rd.encoder.weight.requires_grad


# ---- expansion


@pytest.mark.parametrize("kind", KINDS)
def test_expansion_adds_a_zero_adapter_a_descriptor_and_a_column(make_slot, real_h, kind):
    slot = make_slot(ffn_adapter_type=kind)
    slot.end_of_cycle()
    before, parameters = values(slot), [id(parameter) for parameter in slot.parameters()]
    slot.begin_task()
    slot.expand()
    assert (slot.num_adapters, slot.added) == (2, 1)
    assert moved(slot, before | {name: value for name, value in values(slot).items() if name not in before}) == set()
    assert [id(parameter) for parameter in slot.parameters() if not parameter.requires_grad] == parameters
    assert not slot.newest(real_h).any()
    assert len(slot.newest.records) == 0
    assert {parameter.dtype for parameter in slot.parameters()} == {torch.float64}
    limit = 1 / math.sqrt(D)  # torch's default for Linear(D, 1)
    assert 0.8 * limit < slot.new_router.weight.abs().max() <= limit


def test_joining_puts_the_new_column_last_and_freezes(make_slot):
    slot = make_slot(2)
    weight, bias = router_columns(slot)
    slot.end_of_cycle()
    assert slot.new_router is None
    np.testing.assert_array_equal(slot.router.weight.detach().numpy(), weight)
    np.testing.assert_array_equal(slot.router.bias.detach().numpy(), bias)
    assert slot.router.out_features == 2
    assert not any(parameter.requires_grad for parameter in slot.parameters())


def test_old_router_columns_stay_while_the_new_one_learns(make_slot, real_h):
    slot = make_slot(2)
    before = values(slot)
    optimizer = torch.optim.SGD([p for p in slot.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        slot(real_h).square().mean().backward()
        optimizer.step()
    now = moved(slot, before)
    assert {name for name in now if "router" in name} == {"new_router.weight", "new_router.bias"}
    assert {name for name in now if name.startswith("adapters.0")} == set()
    assert {name for name in now if name.startswith("adapters.1.functional")} != set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("adapters", "joined"), [(1, False), (3, False), (3, True)])
def test_roles_name_every_parameter_once(make_slot, kind, adapters, joined):
    slot = make_slot(adapters, ffn_adapter_type=kind)
    if joined:
        slot.end_of_cycle()
    by_id = {id(parameter): name for name, parameter in slot.named_parameters()}
    roles = [(by_id[id(parameter)], role) for role, parameter in slot.roles()]
    assert len(roles) == len(by_id)
    for name, role in roles:
        path = name.split(".")
        if "router" in path[0]:
            expected = "router"
        elif path[2] == "rd":
            expected = "descriptor"
        else:
            expected = path[3] if kind == "nested_lora" else "adapter"
        assert role == expected, name
    assert dict(roles).keys() == set(by_id.values())


# ---- who learns when


def learning(slot: SEMAModules) -> list[bool]:
    """For each adapter whether its functional part learns; parts of one adapter learn together."""
    found = []
    for adapter in slot.adapters:
        states = {parameter.requires_grad for parameter in adapter.functional.parameters()}
        assert len(states) == 1
        found.append(states.pop())
    return found


@pytest.mark.parametrize(
    ("keys", "after_cycle", "next_task"),
    [
        ({"ffn_adapter_type": "adaptmlp"}, [False, False], [False, False]),
        ({"ffn_adapter_type": "adaptmlp", "adapter_lifetime": "continual"}, [True, True], [True, True]),
        ({"ffn_adapter_type": "nested_lora"}, [False, False], [False, False]),
        ({"ffn_adapter_type": "nested_lora", "adapter_lifetime": "continual"}, [True, True], [True, True]),
    ],
)
def test_what_each_lifetime_lets_learn(make_slot, keys, after_cycle, next_task):
    slot = make_slot(2, **keys)
    assert learning(slot)[1]
    slot.end_of_cycle()
    assert learning(slot) == after_cycle
    assert not any(parameter.requires_grad for role, parameter in slot.roles() if role in ("router", "descriptor"))
    slot.end_of_task_training()
    assert not any(parameter.requires_grad for parameter in slot.parameters())
    slot.begin_task()
    assert learning(slot) == next_task
    assert not any(parameter.requires_grad for role, parameter in slot.roles() if role in ("router", "descriptor"))


@pytest.mark.parametrize("layer", [INSIDE, OUTSIDE])
@pytest.mark.parametrize(("lifetime", "revived"), [("continual", [0]), ("expansion", [])])
def test_a_zeroed_fast_is_reinitialised_where_it_learns_again(make_slot, layer, lifetime, revived):
    slot = make_slot(layer=layer, ffn_adapter_type="nested_lora", adapter_lifetime=lifetime)
    slot.adapters[0].functional.fast.zero()
    before = values(slot)
    assert slot.begin_task() == revived
    expected = {"adapters.0.functional.fast.down_proj.weight"} if revived else set()
    assert moved(slot, before) == expected
    assert slot.begin_task() == []


# ---- consolidation

COMBINATIONS = [*itertools.product(("weights", "function"), ("zero", "reinit", "keep"), (0.0, 0.1, 1.0))]


@pytest.mark.parametrize(("mode", "reset", "alpha"), COMBINATIONS)
def test_only_the_adapter_that_trained_is_consolidated(make_slot, mode, reset, alpha):
    keys = {"nested_lora_consolidation_mode": mode, "nested_lora_fast_reset": reset}
    slot = make_slot(3, ffn_adapter_type="nested_lora", **keys)
    slot.begin_func_phase()
    old, fast = [values(slot.adapters[index]) for index in (0, 1)], values(slot.newest.functional.fast)
    slow = values(slot.newest.functional.slow)
    descriptor = values(slot.newest.rd)
    receipts = slot.consolidate_nested_lora(alpha)
    assert [(receipt["layer"], receipt["adapter"]) for receipt in receipts] == [(INSIDE, 2)]
    assert not moved(slot.adapters[0], old[0]) | moved(slot.adapters[1], old[1])
    assert not moved(slot.newest.rd, descriptor)
    assert bool(moved(slot.newest.functional.slow, slow)) == (alpha > 0 or mode == "function")
    assert bool(moved(slot.newest.functional.fast, fast)) == (reset != "keep")


def test_every_adapter_that_trained_is_consolidated_in_order(make_slot):
    slot = make_slot(3, ffn_adapter_type="nested_lora", adapter_lifetime="continual")
    slot.begin_task()
    slot.begin_func_phase()
    before = [norm(adapter.functional.slow) for adapter in slot.adapters]
    receipts = slot.consolidate_nested_lora(0.5)
    assert [receipt["adapter"] for receipt in receipts] == [0, 1, 2]
    assert all(slow != norm(adapter.functional.slow) for slow, adapter in zip(before, slot.adapters, strict=True))


@pytest.mark.parametrize(("mode", "reset", "alpha"), COMBINATIONS)
def test_receipts_against_numpy(make_slot, real_h, mode, reset, alpha):
    keys = {"nested_lora_consolidation_mode": mode, "nested_lora_fast_reset": reset}
    slot = make_slot(ffn_adapter_type="nested_lora", **keys)
    slot.begin_func_phase()
    nested, x = slot.newest.functional, real_h.numpy()
    slow, fast = ([p.detach().numpy().copy() for p in part.parameters()] for part in (nested.slow, nested.fast))

    def output(down: np.ndarray, bias: np.ndarray, up: np.ndarray, shift: np.ndarray) -> np.ndarray:
        return np.maximum(x @ down.T + bias, 0) @ up.T + shift

    def norm(tensors: list[np.ndarray]) -> float:
        return math.sqrt(sum((tensor**2).sum() for tensor in tensors))

    before = output(*slow) + output(*fast)
    if mode == "weights":
        new = [s + alpha * f for s, f in zip(slow, fast, strict=True)]
        after, slow_norm = output(*new), norm(new)
    else:
        after = output(*slow) + alpha * output(*fast)
        parts = [slow[0], slow[1], slow[2], fast[0], fast[1], alpha * fast[2], slow[3] + alpha * fast[3]]
        slow_norm = norm(parts)
    if reset == "keep":
        after = after + output(*fast)
    (receipt,) = slot.consolidate_nested_lora(alpha, real_h)
    fast_after = {"zero": 0.0, "keep": norm(fast), "reinit": norm([nested.fast.down_proj.weight.detach().numpy()])}
    expected = {
        "layer": INSIDE,
        "adapter": 0,
        "alpha": alpha,
        "mode": mode,
        "reset": reset,
        "slow_norm_before": pytest.approx(norm(slow)),
        "slow_norm_after": pytest.approx(slow_norm),
        "fast_norm_before": pytest.approx(norm(fast)),
        "fast_norm_after": pytest.approx(fast_after[reset]),
        "slow_rank_before": 3,
        "slow_rank_after": 3 if mode == "weights" else 6,
        "drift": pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-9, abs=1e-12),
    }
    assert receipt == expected


@pytest.mark.parametrize("mode", ["weights", "function"])
def test_a_receipt_of_three_branches(own_types, make_slot, real_h, mode):
    slot = make_slot(ffn_adapter_type="three_branches", nested_lora_consolidation_mode=mode)
    slot.begin_func_phase()
    adapter = slot.newest.functional
    before = sum(adapter_in_numpy(branch, real_h) for branch in (adapter.slow, adapter.mid, adapter.fast))
    (receipt,) = slot.consolidate_nested_lora(0.5, real_h)
    after = sum(adapter_in_numpy(branch, real_h) for branch in (adapter.slow, adapter.mid))
    assert receipt["drift"] == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-9)
    assert receipt["fast_norm_after"] == 0
    assert [receipt[f"{name}_rank_after"] for name in ("slow", "mid")] == ([6, 6] if mode == "function" else [3, 3])
    measured = {f"{name}_{when}" for name in ("slow_norm", "mid_norm", "fast_norm") for when in ("before", "after")}
    assert measured <= receipt.keys()


def test_receipts_say_no_drift_without_a_batch(make_slot):
    slot = make_slot(ffn_adapter_type="nested_lora")
    slot.begin_func_phase()
    assert slot.consolidate_nested_lora(0.1)[0]["drift"] is None


@pytest.mark.parametrize(
    ("before", "after", "change"), [([0, 0], [0, 0], 0), ([0, 0], [0, 1], math.inf), ([3, 4], [3, 5], 0.2)]
)
def test_relative_change(before, after, change):
    assert relative_change(torch.tensor(before) * 1.0, torch.tensor(after) * 1.0) == pytest.approx(change)


@pytest.mark.parametrize("layer", [INSIDE, OUTSIDE])
def test_function_mode_with_alpha_one_leaves_the_slots_output(make_slot, real_h, layer):
    keys = {"nested_lora_consolidation_mode": "function", "nested_lora_consolidation_alpha": 1.0}
    slot = make_slot(layer=layer, ffn_adapter_type="nested_lora", nested_lora_use_consolidation=True, **keys)
    slot.begin_func_phase()
    before = slot(real_h)
    slot.end_of_task_training(real_h)
    assert slot.newest.functional.fast.is_zero()
    torch.testing.assert_close(slot.eval()(real_h), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "keys",
    [
        {"ffn_adapter_type": "nested_lora", "nested_lora_use_consolidation": False},
        {"ffn_adapter_type": "adaptmlp", "nested_lora_use_consolidation": True},
    ],
)
def test_the_end_of_a_task_without_consolidation_only_freezes(make_slot, real_h, keys):
    slot = make_slot(**keys)
    slot.begin_func_phase()
    before = values(slot)
    assert slot.end_of_task_training(real_h) == []
    assert moved(slot, before) == set()
    assert not any(parameter.requires_grad for parameter in slot.parameters())


def test_the_end_of_a_task_consolidates_by_the_configured_alpha_and_freezes(make_slot, real_h):
    keys = {"nested_lora_use_consolidation": True, "nested_lora_consolidation_alpha": 0.25}
    slot = make_slot(ffn_adapter_type="nested_lora", **keys)
    slot.begin_func_phase()
    nested = slot.newest.functional
    slow, fast = (part.up_proj.bias.detach().clone() for part in (nested.slow, nested.fast))
    (receipt,) = slot.end_of_task_training(real_h)
    assert receipt["alpha"] == 0.25
    torch.testing.assert_close(nested.slow.up_proj.bias.detach(), slow + 0.25 * fast)
    assert not any(parameter.requires_grad for parameter in slot.parameters())


def test_consolidating_other_adapters_is_an_error_that_names_layer_and_adapter(make_slot):
    slot = make_slot()
    slot.begin_func_phase()
    with pytest.raises(TypeError, match=r"adapter 1\.0 is of type adaptmlp, which has no consolidation"):
        slot.consolidate_nested_lora(0.1)


# ---- structure of a checkpoint


@pytest.mark.parametrize("kind", [*KINDS, "gain", "three_branches"])
def test_a_restored_structure_takes_the_other_slots_values(own_types, make_slot, real_h, kind):
    keys = {"ffn_adapter_type": kind, "nested_lora_consolidation_mode": "function"}
    source, target = make_slot(3, **keys), make_slot(1, **keys)
    branches = source.functional[0].branches
    source.rd_loss(real_h.mean(dim=1))
    if branches:
        source.begin_func_phase()
        source.consolidate_nested_lora(0.5)
    source.end_of_cycle()
    shapes = [
        {name: tuple(value.shape) for name, value in adapter.state_dict().items()} for adapter in source.functional
    ]
    target.restore_structure(shapes, [0, 0, len(real_h)])
    for name in branches[:-1]:
        assert [adapter.get_submodule(name).rank for adapter in target.functional] == [3, 3, 6]
    target.double().load_state_dict(source.state_dict())
    torch.testing.assert_close(target.eval()(real_h), source.eval()(real_h), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in target.parameters())


# ---- the block


@pytest.mark.parametrize("kwargs", [{}, {"init_values": 0.3}, {"qk_norm": True, "qkv_bias": False}])
def test_a_block_is_timms_plus_the_slot(config, make_slot, randomize, kwargs):
    shape = config().backbone_kwargs
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape, **kwargs).double().eval()
    block, slot = randomize(vit.blocks[0], 0.2), make_slot(2).eval()
    x, seen = torch.randn(3, 7, D, dtype=torch.float64), []
    handle = block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    expected = block(x)
    handle.remove()
    ours = SEMABlock(block, slot)
    torch.testing.assert_close(ours.attend(x), seen[0], rtol=0, atol=0)
    torch.testing.assert_close(ours(x), expected + slot(seen[0]), rtol=1e-12, atol=1e-12)
    names = {name for name, _ in block.named_parameters()} | {f"adapter_module.{n}" for n, _ in slot.named_parameters()}
    assert {name for name, _ in ours.named_parameters()} == names


# ---- the class token alone


@pytest.fixture
def block_of(config, randomize):
    def make(slot: SEMAModules, **kwargs: object) -> SEMABlock:
        shape = config().backbone_kwargs
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape, **kwargs).double().eval()
        return SEMABlock(randomize(vit.blocks[0], 0.2), slot)

    return make


def graded(block: SEMABlock, x: Tensor, first: bool) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Output at the class token, gradients, and recorded losses of a copy of the block."""
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    out = block.first(x) if first else block(x)[:, :1]
    out.square().sum().backward()
    gradients = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    records = [module.records.losses for module in block.adapter_module.modules_in_order if module.described]
    return out.detach(), {"x": x.grad, **gradients}, records


@pytest.mark.parametrize("kwargs", [{}, {"init_values": 0.3}, {"qk_norm": True, "qkv_bias": False}])
@pytest.mark.parametrize("kind", [*KINDS, "gain"])
@pytest.mark.parametrize(("adapters", "layer", "ended"), [(1, 1, False), (3, 1, False), (3, 1, True), (1, 0, False)])
@pytest.mark.parametrize("training", [True, False])
def test_the_class_token_alone_is_that_of_the_whole_block(
    own_types, make_slot, block_of, kwargs, kind, adapters, layer, ended, training
):
    slot = make_slot(adapters, layer, ffn_adapter_type=kind).train(training)
    if ended:
        slot.end_of_cycle()
    block, x = block_of(slot, **kwargs), torch.randn(3, 7, D, dtype=torch.float64)
    alone, whole = graded(block, x, first=True), graded(block, x, first=False)
    torch.testing.assert_close(alone, whole, rtol=1e-9, atol=1e-11)
    assert alone[0].shape == (3, 1, D)
    assert any(len(losses) for losses in alone[2]) == (training and layer == INSIDE and not ended)


@pytest.mark.parametrize("adapters", [1, 2])
def test_nothing_is_computed_of_other_tokens_but_what_a_router_reads(make_slot, block_of, adapters):
    block, seen = block_of(make_slot(adapters).eval()), {}
    for name in ("mlp", "attn.proj"):
        block.get_submodule(name).register_forward_hook(
            lambda _, inputs, __, name=name: seen.setdefault(name, []).append(tuple(inputs[0].shape))
        )
    block.first(torch.randn(3, 7, D, dtype=torch.float64))
    assert seen == {"mlp": [(3, 1, D)], "attn.proj": [(3, 1, D), (3, D)][:adapters]}


def test_off_a_slot_takes_no_part_in_the_class_token(make_slot, block_of):
    block, x = block_of(make_slot(2)), torch.randn(3, 7, D, dtype=torch.float64)
    block.adapters_off = True
    torch.testing.assert_close(block.first(x), block(x)[:, :1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_a_hook_gets_the_input_of_all_tokens_and_changes_nothing(make_slot, block_of, first):
    block, x, seen = block_of(make_slot(2)), torch.randn(3, 7, D, dtype=torch.float64), []
    run = block.first if first else block
    before = run(x)
    block.adapter_module.tokens.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert torch.equal(run(x), before)
    assert torch.equal(seen[0], block.attend(x))
    assert len(seen) == 1
