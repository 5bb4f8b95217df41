"""The optimizer's parameter groups: one for each time scale, and one for all other parameters."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from utils.timescales.scales import DESCRIPTOR, NAMES, OTHER, SCALES

logger = logging.getLogger(__name__)

Role = tuple[str, nn.Parameter]
Group = dict[str, Any]

GROUP_OF = {**{name: name for name in NAMES}, "adapter": OTHER, "router": OTHER, "head": OTHER, DESCRIPTOR: DESCRIPTOR}


def func_groups(roles: Iterable[Role], config: Any) -> list[Group]:
    """Return the groups of a func phase: a group for each time scale, then the rest; groups may be empty.

    Only trainable parameters are taken. A role without a group raises KeyError.
    """
    members = _members(roles)
    groups = [{"name": scale.name, "params": members[scale.name], "lr": scale.rate(config)} for scale in SCALES]
    return [*groups, {"name": OTHER, "params": members[OTHER], "lr": config.init_lr}]


def rd_groups(roles: Iterable[Role], config: Any) -> list[Group]:
    """Return the only group of an rd phase: the descriptors in training."""
    return [{"name": DESCRIPTOR, "params": _members(roles)[DESCRIPTOR], "lr": config.rd_lr}]


def _members(roles: Iterable[Role]) -> dict[str, list[nn.Parameter]]:
    members: dict[str, list[nn.Parameter]] = defaultdict(list)
    for role, parameter in roles:
        group = GROUP_OF[role]
        if parameter.requires_grad:
            members[group].append(parameter)
    return members


def make_optimizer(groups: list[Group], config: Any) -> optim.Optimizer:
    """Make SGD with momentum 0.9, or AdamW for "adam". Groups without parameters are logged and left out.

    Both are fused: a step takes a quarter to a half of the time of torch's default on a CPU. Fused SGD needs the first
    gradients of a group in one step, which the slow gate provides.
    """
    for group in groups:
        logger.info("group %(name)s: lr %(lr)g, %(tensors)d tensors, %(parameters)d parameters", describe(group))
    filled = [group for group in groups if group["params"]]
    shared = {"lr": config.init_lr, "weight_decay": config.weight_decay, "fused": True}
    return optim.SGD(filled, momentum=0.9, **shared) if config.optimizer == "sgd" else optim.AdamW(filled, **shared)


def describe(group: Group) -> dict[str, Any]:
    """Return name, learning rate and size of a group."""
    sizes = [parameter.numel() for parameter in group["params"]]
    return {"name": group["name"], "lr": group["lr"], "tensors": len(sizes), "parameters": sum(sizes)}


def count_parameters(roles: Iterable[Role]) -> dict[str, int]:
    """Return exact numbers of parameters by role, frozen ones included."""
    counts: Counter[str] = Counter()
    for role, parameter in roles:
        counts[role] += parameter.numel()
    return dict(counts)


def verify_scales(groups: Iterable[Group], branches: Iterable[str]) -> None:
    """Raise RuntimeError if some branches that the adapter type declares have parameters in the groups and some not."""
    declared, filled = set(branches), {group["name"] for group in groups if group["params"]} & set(NAMES)
    if filled and filled != declared:
        raise RuntimeError(
            f"the adapters declare the branches {', '.join(sorted(declared)) or 'none'}, but the optimizer's groups "
            f"hold parameters of {', '.join(sorted(filled))}"
        )
