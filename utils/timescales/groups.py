"""Which parameter learns how fast: the groups of a func phase, and the gate that holds slow still between its steps."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import nn, optim

logger = logging.getLogger(__name__)

Role = tuple[str, nn.Parameter]
Group = dict[str, Any]

GROUPS = ("slow", "fast", "other")
FUNC_ROLES = {"slow": "slow", "fast": "fast", "adapter": "other", "router": "other", "head": "other"}
RD_ROLES = {"descriptor": "descriptor"}


def func_groups(roles: Iterable[Role], args: Any) -> list[Group]:
    """The func phase's groups slow, fast and other, of what is trainable now; empty ones included.

    Raises:
        KeyError: A module declares a role this file does not know.
    """
    rates = {"slow": args.nested_lora_lr_slow, "fast": args.nested_lora_lr_fast, "other": args.init_lr}
    members = _by_group(roles, FUNC_ROLES, ignored=RD_ROLES)
    return [{"name": name, "params": members[name], "lr": rates[name]} for name in GROUPS]


def rd_groups(roles: Iterable[Role], args: Any) -> list[Group]:
    """The rd phase's one group: the descriptors in training."""
    return [{"name": "descriptor", "params": _by_group(roles, RD_ROLES, FUNC_ROLES)["descriptor"], "lr": args.rd_lr}]


def _by_group(
    roles: Iterable[Role], group_of: dict[str, str], ignored: dict[str, str]
) -> dict[str, list[nn.Parameter]]:
    members: dict[str, list[nn.Parameter]] = defaultdict(list)
    for role, parameter in roles:
        if parameter.requires_grad and role not in ignored:
            members[group_of[role]].append(parameter)
    return members


def make_optimizer(groups: list[Group], args: Any) -> optim.Optimizer:
    """SGD with momentum 0.9, or AdamW for "adam"; groups without parameters are logged and left out.

    Fused, one kernel for a group: on a CPU too a step takes a quarter to a half of the time that torch's default there
    takes, a loop over tensors. Fused SGD needs the first gradients of a group in one step; the slow gate keeps to that.
    """
    for group in groups:
        logger.info("group %(name)s: lr %(lr)g, %(tensors)d tensors, %(parameters)d parameters", describe(group))
    filled = [group for group in groups if group["params"]]
    shared = {"lr": args.init_lr, "weight_decay": args.weight_decay, "fused": True}
    return optim.SGD(filled, momentum=0.9, **shared) if args.optimizer == "sgd" else optim.AdamW(filled, **shared)


def describe(group: Group) -> dict[str, Any]:
    """Name, rate and size of a group as it is held."""
    sizes = [parameter.numel() for parameter in group["params"]]
    return {"name": group["name"], "lr": group["lr"], "tensors": len(sizes), "parameters": sum(sizes)}


def count_parameters(roles: Iterable[Role]) -> dict[str, int]:
    """Exact numbers of parameters by role, frozen ones included."""
    counts: dict[str, int] = defaultdict(int)
    for role, parameter in roles:
        counts[role] += parameter.numel()
    return dict(counts)


def verify_groups(optimizer: optim.Optimizer, roles: Iterable[Role], args: Any) -> None:
    """Hold the optimizer of a func phase against what configuration and modules declare.

    Raises:
        RuntimeError: A trainable parameter is in no group or in the wrong one, or a rate is not the declared one.
    """
    held = {group["name"]: group for group in optimizer.param_groups}
    for declared in func_groups(roles, args):
        group = held.get(declared["name"], {"params": [], "initial_lr": declared["lr"]})
        mine, theirs = ({id(p) for p in some["params"]} for some in (declared, group))
        if mine != theirs:
            raise RuntimeError(
                f"group {declared['name']}: the modules declare {len(mine)} trainable tensors, the optimizer holds "
                f"{len(theirs)}, {len(mine & theirs)} of them the same"
            )
        if group["initial_lr"] != declared["lr"]:
            raise RuntimeError(f"group {declared['name']}: declared rate {declared['lr']}, held {group['initial_lr']}")


def verify_kind(roles: Iterable[Role], args: Any) -> None:
    """Hold the adapters themselves against `ffn_adapter_type`.

    Raises:
        RuntimeError: The network has adapters of another kind, or none.
    """
    declared = {"adaptmlp": {"adapter"}, "nested_lora": {"slow", "fast"}}[args.ffn_adapter_type]
    found = {role for role, _ in roles} & {"adapter", "slow", "fast"}
    if found != declared:
        raise RuntimeError(
            f"ffn_adapter_type {args.ffn_adapter_type} has parameters {', '.join(sorted(declared))}; "
            f"the network's are {', '.join(sorted(found)) or 'none'}"
        )
