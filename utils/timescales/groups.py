"""Which parameter learns how fast: the optimizer's groups, one for each time scale, and one for all the rest."""

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
    """The groups of a func phase: every time scale, then the rest, of what is trainable now; empty ones included.

    Raises:
        KeyError: A module declares a role that has no group.
    """
    members = _members(roles)
    groups = [{"name": scale.name, "params": members[scale.name], "lr": scale.rate(config)} for scale in SCALES]
    return [*groups, {"name": OTHER, "params": members[OTHER], "lr": config.init_lr}]


def rd_groups(roles: Iterable[Role], config: Any) -> list[Group]:
    """The one group of an rd phase: the descriptors in training."""
    return [{"name": DESCRIPTOR, "params": _members(roles)[DESCRIPTOR], "lr": config.rd_lr}]


def _members(roles: Iterable[Role]) -> dict[str, list[nn.Parameter]]:
    members: dict[str, list[nn.Parameter]] = defaultdict(list)
    for role, parameter in roles:
        group = GROUP_OF[role]
        if parameter.requires_grad:
            members[group].append(parameter)
    return members


def make_optimizer(groups: list[Group], config: Any) -> optim.Optimizer:
    """SGD with momentum 0.9, or AdamW for "adam"; groups without parameters are logged and left out.

    Fused, one kernel for a group: on a CPU too a step takes a quarter to a half of the time that torch's default there
    takes, a loop over tensors. Fused SGD needs the first gradients of a group in one step; the slow gate keeps to that.
    """
    for group in groups:
        logger.info("group %(name)s: lr %(lr)g, %(tensors)d tensors, %(parameters)d parameters", describe(group))
    filled = [group for group in groups if group["params"]]
    shared = {"lr": config.init_lr, "weight_decay": config.weight_decay, "fused": True}
    return optim.SGD(filled, momentum=0.9, **shared) if config.optimizer == "sgd" else optim.AdamW(filled, **shared)


def describe(group: Group) -> dict[str, Any]:
    """Name, rate and size of a group as it is held."""
    sizes = [parameter.numel() for parameter in group["params"]]
    return {"name": group["name"], "lr": group["lr"], "tensors": len(sizes), "parameters": sum(sizes)}


def count_parameters(roles: Iterable[Role]) -> dict[str, int]:
    """Exact numbers of parameters by role, frozen ones included."""
    counts: Counter[str] = Counter()
    for role, parameter in roles:
        counts[role] += parameter.numel()
    return dict(counts)


def verify_scales(groups: Iterable[Group], branches: Iterable[str]) -> None:
    """Refuse a func phase in which some branches of the adapters train and others do not.

    Args:
        groups: As `func_groups` gives them.
        branches: Those that the adapter type declares.

    Raises:
        RuntimeError: Names the branches and the groups that have parameters.
    """
    declared, filled = set(branches), {group["name"] for group in groups if group["params"]} & set(NAMES)
    if filled and filled != declared:
        raise RuntimeError(
            f"the adapters declare the branches {', '.join(sorted(declared)) or 'none'}, but the optimizer's groups "
            f"hold parameters of {', '.join(sorted(filled))}"
        )
