"""Which parameter learns how fast: the groups of a func phase, and the gate that holds slow still between its steps."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn, optim

from utils.config import ConfigError

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


def check_interval(interval: int, steps: int, task: int) -> None:
    """Refuse an interval that would never let slow move.

    Raises:
        ConfigError: `interval` is larger than the number of optimizer steps of a func phase.
    """
    if interval > steps:
        raise ConfigError(
            f"nested_lora_update_interval_slow is {interval}, but a func phase of task {task} has {steps} optimizer "
            f"steps (func_epoch x batches): slow would never move; choose {steps} at most"
        )


class SlowGate:
    """Decides, before each optimizer step of a func phase, what happens to slow's gradients.

    Steps count from 1; with interval k slow moves at k, 2k, ... (0 counts as 1). "skip" gives the other steps no
    gradient at all: without one, neither momentum nor weight decay moves a parameter. "accumulate" also keeps those
    gradients, and the update uses the interval's mean. "zero_grad" zeroes the gradient and lets the optimizer step.

    Args:
        parameters: The slow group.
        interval: k.
        mode: "skip", "accumulate" or "zero_grad".
    """

    def __init__(self, parameters: Iterable[nn.Parameter], interval: int, mode: str) -> None:
        self.parameters = list(parameters)
        self.interval = max(1, interval)
        self.mode = mode
        self.steps = 0
        self.sums: list[torch.Tensor] = []

    @property
    def pending(self) -> int:
        """Steps of the interval that is not finished."""
        return self.steps % self.interval

    @property
    def updates(self) -> int:
        """How often slow has moved."""
        return self.steps // self.interval if self.parameters else 0

    def before_step(self) -> bool:
        """Count one step and prepare slow's gradients for it; whether this step is one of slow's."""
        self.steps += 1
        moves = self.pending == 0
        if self.mode == "accumulate":
            self._accumulate(moves)
        elif not moves:
            self._withhold()
        return moves and bool(self.parameters)

    def state(self) -> dict[str, Any]:
        """Steps counted and gradients gathered, for `restore`."""
        return {"steps": self.steps, "sums": self.sums}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from another gate's state."""
        self.steps = state["steps"]
        self.sums = [total.to(parameter) for total, parameter in zip(state["sums"], self.parameters, strict=False)]

    def _withhold(self) -> None:
        for parameter in self.parameters:
            if self.mode == "zero_grad" and parameter.grad is not None:
                parameter.grad.zero_()
            else:
                parameter.grad = None

    def _accumulate(self, moves: bool) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.sums = [total + new for total, new in zip(self.sums, gradients, strict=True)] if self.sums else gradients
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = total / self.interval if moves else None
        if moves:
            self.sums = []


def steps_of(images: int, batch_size: int, epochs: int) -> int:
    """Optimizer steps of a phase."""
    return epochs * math.ceil(images / batch_size)


def verify_gate(gate: SlowGate, roles: Iterable[Role], args: Any) -> None:
    """Hold the slow gate of a func phase against what configuration and modules declare.

    Raises:
        RuntimeError: Interval, mode or the gated parameters are not the declared ones.
    """
    slow = {id(parameter) for role, parameter in roles if role == "slow" and parameter.requires_grad}
    declared = (max(1, args.nested_lora_update_interval_slow), args.nested_lora_slow_update, slow)
    held = (gate.interval, gate.mode, {id(parameter) for parameter in gate.parameters})
    if held != declared:
        raise RuntimeError(
            f"the slow gate has interval {held[0]}, mode {held[1]}, {len(held[2])} tensors; "
            f"declared are {declared[0]}, {declared[1]}, {len(slow)}"
        )
