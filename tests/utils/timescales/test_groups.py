"""The optimizer's groups: which parameter is in which, and at which rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timescale_cases import ARGS, THREE, args, declared, parameter
from torch import nn, optim

from utils.timescales.groups import count_parameters, describe, func_groups, make_optimizer, rd_groups, verify_scales

GROUP_OF = {"slow": "slow", "fast": "fast", "adapter": "other", "router": "other", "head": "other"}
ROLES = [*GROUP_OF, "descriptor"]


def one_of_each() -> dict[str, nn.Parameter]:
    return {role: parameter(size) for size, role in enumerate(ROLES, start=1)}


# ---- groups


@given(st.lists(st.tuples(st.sampled_from(ROLES), st.booleans())))
def test_every_learning_parameter_is_in_the_one_group_of_its_role(drawn):
    roles = [(role, parameter(learns=learns)) for role, learns in drawn]
    expected: dict[str, list[int]] = {"slow": [], "fast": [], "other": [], "descriptor": []}
    for role, member in roles:
        if member.requires_grad:
            expected[GROUP_OF.get(role, role)].append(id(member))
    groups = func_groups(iter(roles), ARGS)
    assert [(group["name"], group["lr"]) for group in groups] == [("slow", 0.001), ("fast", 0.01), ("other", 0.005)]
    (descriptors,) = rd_groups(iter(roles), ARGS)
    assert (descriptors["name"], descriptors["lr"]) == ("descriptor", 0.02)
    for group in (*groups, descriptors):
        assert [id(member) for member in group["params"]] == expected[group["name"]]


@pytest.mark.parametrize("groups", [func_groups, rd_groups])
def test_an_unknown_role_is_an_error(groups):
    with pytest.raises(KeyError, match="gate"):
        groups([("gate", parameter())], ARGS)


@pytest.mark.parametrize(("kind", "optimizer"), [("sgd", optim.SGD), ("adam", optim.AdamW)])
def test_the_optimizer_holds_the_filled_groups_with_their_rates(caplog, kind, optimizer):
    members = one_of_each()
    del members["slow"]
    caplog.set_level("INFO")
    held = make_optimizer(func_groups(members.items(), ARGS), args(optimizer=kind))
    assert type(held) is optimizer
    assert [(group["name"], group["lr"]) for group in held.param_groups] == [("fast", 0.01), ("other", 0.005)]
    assert {group["weight_decay"] for group in held.param_groups} == {0.1}
    assert {group["fused"] for group in held.param_groups} == {True}
    if kind == "sgd":
        assert {group["momentum"] for group in held.param_groups} == {0.9}
    for name, rate, tensors, numbers in (("slow", 0.001, 0, 0), ("fast", 0.01, 1, 2), ("other", 0.005, 3, 12)):
        assert f"group {name}: lr {rate:g}, {tensors} tensors, {numbers} parameters" in caplog.text


def test_describe_counts_tensors_and_parameters():
    group = {"name": "fast", "lr": 0.5, "params": [parameter(3), parameter(4)]}
    assert describe(group) == {"name": "fast", "lr": 0.5, "tensors": 2, "parameters": 7}


def test_parameters_are_counted_by_role_frozen_or_not():
    roles = [("slow", parameter(3, learns=False)), ("head", parameter(5)), ("slow", parameter(4))]
    assert count_parameters(roles) == {"slow": 7, "head": 5}


# ---- a scale more


def test_a_third_scale_has_a_group_of_its_own_in_the_order_of_the_declaration():
    groups = declared(THREE, "groups")
    roles = [(role, parameter()) for role in ("fast", "mid", "slow", "head", "mid")]
    found = groups.func_groups(roles, ARGS)
    assert [(group["name"], group["lr"]) for group in found] == [
        ("slow", 0.001),
        ("mid", 0.004),
        ("fast", 0.01),
        ("other", 0.005),
    ]
    expected = {name: [id(p) for role, p in roles if role == name] for name in ("slow", "mid", "fast")}
    expected["other"] = [id(roles[3][1])]
    assert {group["name"]: [id(p) for p in group["params"]] for group in found} == expected
    with pytest.raises(KeyError, match="mid"):
        func_groups(roles, ARGS)


# ---- branches that train


def groups_of(*names: str) -> list[dict[str, object]]:
    """The groups of a func phase in which these have parameters."""
    return [
        {"name": name, "params": [parameter()] if name in names else [], "lr": 0.1}
        for name in ("slow", "fast", "other")
    ]


@pytest.mark.parametrize(
    ("names", "branches"),
    [
        (("slow", "fast", "other"), ("slow", "fast")),
        (("slow", "fast"), ("fast", "slow")),
        (("other",), ("slow", "fast")),  # a task without expansion has no adapter to train
        ((), ("slow", "fast")),
        (("other",), ()),
        (("fast", "other"), ("fast",)),
    ],
)
def test_all_branches_or_none_may_train(names, branches):
    verify_scales(groups_of(*names), branches)


@pytest.mark.parametrize(
    ("names", "branches", "message"),
    [
        (("fast", "other"), ("slow", "fast"), "declare the branches fast, slow, but .* hold parameters of fast$"),
        (("slow", "other"), ("slow", "fast"), "declare the branches fast, slow, but .* hold parameters of slow$"),
        (("slow", "fast"), ("slow",), "declare the branches slow, but .* hold parameters of fast, slow$"),
        (("fast", "other"), (), "declare the branches none, but .* hold parameters of fast$"),
        (("fast",), ("slow",), "declare the branches slow, but .* hold parameters of fast$"),
    ],
)
def test_a_branch_that_does_not_train_beside_others_is_an_error_that_names_both(names, branches, message):
    with pytest.raises(RuntimeError, match=message):
        verify_scales(groups_of(*names), branches)


def test_a_third_branch_must_train_too():
    groups = declared(THREE, "groups")
    members = [(role, parameter()) for role in ("slow", "mid", "fast")]
    groups.verify_scales(groups.func_groups(members, ARGS), ("slow", "mid", "fast"))
    members[1][1].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"branches fast, mid, slow, but .* hold parameters of fast, slow$"):
        groups.verify_scales(groups.func_groups(members, ARGS), ("slow", "mid", "fast"))
