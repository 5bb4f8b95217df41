"""Are two configurations equal in adapter parameters, and which rank or bottleneck would make them so?

    python -m tools.match exps/nested_lora_cifar.json --to exps/sema_cifar.json [--tolerance 3.5] [--format json]

What is compared are the parameters of the functional adapters at birth, counted on the networks themselves (random
weights, nothing is downloaded); expansion adds adapters later, as the data ask for them. Rank r of nested_lora is not
bottleneck 2r: it has two up-projections' biases. Per cents are of the configuration matched to.

Exit codes: 0 within the tolerance, 1 outside, 2 something for the user to put right.
"""

import argparse
import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from utils.choices import load_plugin
from utils.config.load import load
from utils.config.schema import Config
from utils.errors import UserError

TOLERANCE = Decimal("3.5")  # per cent


@dataclass(frozen=True)
class Born:
    """The functional adapters of a configuration's network before any expansion, and what else its slots hold."""

    config: str
    adapter_type: str
    width_key: str
    width: int
    d_model: int
    adapters: int
    per_layer: list[int]
    total: int
    by_role: dict[str, int]
    beside: dict[str, int]
    grows: bool  # whether consolidation makes the adapters larger than they are at birth


@dataclass(frozen=True)
class Match:
    """How far a rank or bottleneck is from the total to be matched."""

    flag: str
    width: int
    total: int
    remainder: int
    remainder_percent: float
    within: bool


def born(name: str, config: Config) -> tuple[Born, Callable[[int], int]]:
    """Build the network of a configuration and count.

    Returns:
        The counts, and the adapters' total as a function of rank or bottleneck, each value from slots built for it.

    Raises:
        ConfigError: The network cannot be built.
    """
    # torch is imported only here: `--help` and errors of the configuration answer at once
    from utils.inc_net import SEMAVitNet
    from utils.timescales.groups import count_parameters

    random = config.model_copy(update={"pretrained": False, "backbone_checkpoint": None})
    network = SEMAVitNet(random, nb_classes=1)  # the head is not counted
    slots, key = network.slots, network.adapter_type.width_key
    by_role = _functional(slots)
    all_roles = count_parameters(role for slot in slots for role in slot.roles())
    counts = Born(
        config=name,
        adapter_type=config.ffn_adapter_type,
        width_key=key,
        width=getattr(config, key),
        d_model=slots[0].config.d_model,
        adapters=sum(slot.num_adapters for slot in slots),
        per_layer=[sum(_functional([slot]).values()) for slot in slots],
        total=sum(by_role.values()),
        by_role=by_role,
        beside={role: count for role, count in all_roles.items() if role not in by_role},
        grows=slots[0].functional[0].grows,
    )
    return counts, lambda width: sum(_functional(_rebuilt(slots, key, width)).values())


def _functional(slots: Sequence[Any]) -> dict[str, int]:
    """Parameters of the adapters proper, by role: neither routers nor descriptors."""
    from utils.timescales.groups import count_parameters

    return count_parameters(role for slot in slots for adapter in slot.functional for role in adapter.roles())


def _rebuilt(slots: Sequence[Any], key: str, width: int) -> list[Any]:
    """The same slots made anew, without values, with another rank or bottleneck."""
    import torch
    from easydict import EasyDict

    with torch.device("meta"):
        return [type(slot)(EasyDict({**slot.config, key: width}), slot.layer) for slot in slots]


def best_width(total_at: Callable[[int], int], target: int) -> int:
    """The width whose total is nearest to `target`, the smaller of two equally near.

    Args:
        total_at: Increases with the width, which is 1 at least.
        target: Parameters to match.
    """
    high = 1
    while total_at(high) < target:
        high *= 2
    widths = range(1, high + 1)
    above = widths[bisect_left(widths, target, key=total_at)]
    return min((max(1, above - 1), above), key=lambda width: abs(total_at(width) - target))


def compare(counts: Born, width: int, total: int, target: int, tolerance: Decimal) -> Match:
    """Compare the total of one rank or bottleneck with the total to be matched."""
    remainder = total - target
    return Match(
        flag=f"--{counts.width_key} {width}",
        width=width,
        total=total,
        remainder=remainder,
        remainder_percent=100 * remainder / target,
        within=abs(remainder) * 100 <= tolerance * target,
    )


def report(first: Born, second: Born, present: Match, best: Match, tolerance: Decimal) -> dict[str, Any]:
    """Everything that was found, for `--format json`."""
    found = {"first": asdict(first), "second": asdict(second), "present": asdict(present), "best": asdict(best)}
    return {**found, "tolerance_percent": float(tolerance), "notes": notes(first, second)}


def notes(first: Born, second: Born) -> list[str]:
    """What makes a match at birth less than a fair comparison."""
    growth = (
        "consolidation adds to the rank of slower branches each time, so adapters do not stay as large as they are at "
        "birth; results.json of a run has the counts after every task"
    )
    lines = [f"{side.config}: {growth}" for side in (first, second) if side.grows]
    if first.beside != second.beside or first.d_model != second.d_model:
        lines.append("the two differ in more than their adapters: compare width, routers and descriptors above")
    return lines


def terminal(first: Born, second: Born, present: Match, best: Match, tolerance: Decimal) -> str:
    """The table of counts, the verdict on the present pair and the flag that matches best."""
    columns = [list(_rows(first)), *(list(_rows(side).values()) for side in (first, second))]
    widths = [max(map(len, column)) for column in columns]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*columns, strict=True)]
    allowed = f"the tolerance of {tolerance} % ({int(tolerance * second.total / 100):,} parameters)"
    now = f"now {present.flag}: {_difference(present, second)} {allowed}"
    to_set = "that is the best match"
    if best.width != present.width:
        to_set = f"best {best.flag}: {best.total:,} in total, {_difference(best, second)} it"
    return "\n".join([*table, "", now, to_set, *notes(first, second)])


def _rows(counts: Born) -> dict[str, str]:
    layers = Counter(counts.per_layer)
    return {
        "": counts.config,
        "adapter type": counts.adapter_type,
        "present flag": f"--{counts.width_key} {counts.width}",
        "embedding width": str(counts.d_model),
        "layers x parameters": " + ".join(f"{number} x {size:,}" for size, number in layers.items()),
        "in total at birth": f"{counts.total:,}",
        "by role": _sizes(counts.by_role),
        "beside them, not matched": _sizes(counts.beside),
    }


def _sizes(by_role: Mapping[str, int]) -> str:
    return " + ".join(f"{role} {size:,}" for role, size in by_role.items())


def _difference(match: Match, second: Born) -> str:
    """The exact remainder in words: `9,216 more (+3.03 %) than exps/sema_cifar.json, within`."""
    words = "exactly as many (+0.00 %) as"
    if match.remainder:
        more = "more" if match.remainder > 0 else "fewer"
        words = f"{abs(match.remainder):,} {more} ({match.remainder_percent:+.2f} %) than"
    return f"{words} {second.config}, {'within' if match.within else 'outside'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Match the adapter parameters of one configuration to those of another; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.match", description=main.__doc__)
    parser.add_argument("first", type=Path, help="configuration whose rank or bottleneck is to be chosen")
    parser.add_argument("--to", type=Path, required=True, dest="second", help="configuration to be matched")
    parser.add_argument("--tolerance", type=_per_cent, default=TOLERANCE, help="in per cent (default: %(default)s)")
    parser.add_argument("--format", choices=("terminal", "json"), default="terminal")
    parser.add_argument("--plugin", type=Path, action="append", default=[], help="file that registers adapter types")
    given = parser.parse_args(arguments)
    try:
        for plugin in given.plugin:
            load_plugin(plugin)
        configs = [(str(path), load(path)) for path in (given.first, given.second)]
        (first, total_at), (second, _) = (born(name, config) for name, config in configs)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    width = best_width(total_at, second.total)
    present = compare(first, first.width, first.total, second.total, given.tolerance)
    best = compare(first, width, total_at(width), second.total, given.tolerance)
    found = (first, second, present, best, given.tolerance)
    print(terminal(*found) if given.format == "terminal" else json.dumps(report(*found), indent=2))
    return 0 if present.within else 1


def _per_cent(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not (value.is_finite() and 0 <= value <= 100):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a per cent from 0 to 100, such as {TOLERANCE}")
    return value


if __name__ == "__main__":
    sys.exit(main())
