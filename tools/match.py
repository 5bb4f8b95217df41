"""Compare the adapter parameters of two configurations, and find the rank or bottleneck that makes them equal.

    python -m tools.match exps/nested_lora_cifar.json --to exps/sema_cifar.json [--tolerance 3.5] [--format json]

Counts the functional adapters of both networks before any expansion. The weights are random; nothing is downloaded.
A nested_lora adapter of rank r is slightly larger than an adaptmlp adapter with bottleneck 2r: its second branch has
biases of its own. Percentages are relative to the configuration given with --to. Where a nested_lora configuration has
time scales, the flags of a third configuration are named, equal in parameters too, that differs in structure alone.

Exit codes: 0 within the tolerance, 1 outside, 2 an error in a configuration or the command line.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import argparse
import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from utils.choices import load_plugin
from utils.config.identity import trains_adapters
from utils.config.load import load
from utils.config.schema import Config
from utils.console import command
from utils.errors import ConfigError
from utils.files import path_argument
from utils.timescales.scales import SCALES

TOLERANCE = Decimal("3.5")  # per cent


@dataclass(frozen=True)
class Born:
    """The functional adapters of a network before any expansion."""

    config: str
    adapter_type: str
    width_key: str
    width: int
    d_model: int
    adapters: int
    per_layer: list[int]
    total: int
    by_role: dict[str, int]
    beside: dict[str, int]  # routers and descriptors
    grows: bool  # whether consolidation makes the adapters larger
    without_scales: list[str]  # flags that give its branches the rate of an adapter without any; none: they have it


@dataclass(frozen=True)
class Match:
    """A rank or bottleneck, and how far its total is from the total to match."""

    flag: str
    width: int
    total: int
    remainder: int
    remainder_percent: float
    within: bool


def born(name: str, config: Config) -> tuple[Born, Callable[[int], int]]:
    """Build the network of a configuration and count its parameters.

    Returns:
        The counts, and a function from a rank or bottleneck to the total, for which it builds the adapters.

    Raises:
        ConfigError: The network cannot be built.
    """
    import torch  # here, so that --help and errors in a configuration come at once
    from easydict import EasyDict

    from utils.inc_net import SEMAVitNet
    from utils.timescales.groups import count_parameters

    def functional(slots: Sequence[Any]) -> dict[str, int]:
        return count_parameters(role for slot in slots for adapter in slot.functional for role in adapter.roles())

    def total_at(width: int) -> int:
        with torch.device("meta"):
            rebuilt = [type(slot)(EasyDict({**slot.config, key: width}), slot.layer) for slot in slots]
        return sum(functional(rebuilt).values())

    random = config.model_copy(update={"pretrained": False, "backbone_checkpoint": None})
    network = SEMAVitNet(random, nb_classes=1)  # the head is not counted
    slots, key, by_role = network.slots, network.adapter_type.width_key, functional(network.slots)
    all_roles = count_parameters(role for slot in slots for role in slot.roles())
    counts = Born(
        config=name,
        adapter_type=config.ffn_adapter_type,
        width_key=key,
        width=getattr(config, key),
        d_model=slots[0].config.d_model,
        adapters=sum(slot.num_adapters for slot in slots),
        per_layer=[sum(functional([slot]).values()) for slot in slots],
        total=sum(by_role.values()),
        by_role=by_role,
        beside={role: count for role, count in all_roles.items() if role not in by_role},
        grows=slots[0].functional[0].grows,
        without_scales=without_scales(config, network.adapter_type.learning(config)),
    )
    return counts, total_at


def without_scales(config: Config, branches: Sequence[str]) -> list[str]:
    """Return the flags that give every branch the rate `init_lr` and the interval 1, or none if it has both."""
    scales = [scale for scale in SCALES if scale.name in branches]
    if all(scale.rate(config) == config.init_lr and scale.interval(config) == 1 for scale in scales):
        return []
    rates = [f"--{scale.rate_key} {config.init_lr:g}" for scale in scales]
    return [*rates, *(f"--{scale.interval_key} 1" for scale in scales if scale.interval_key)]


def best_width(total_at: Callable[[int], int], target: int) -> int:
    """Return the width >= 1 with the total nearest to `target`, the smaller one if two are equally near.

    Args:
        total_at: Increases with the width.
        target: Parameters to match.
    """
    high = 1
    while total_at(high) < target:
        high *= 2
    above = 1 + bisect_left(range(1, high + 1), target, key=total_at)
    return min((max(1, above - 1), above), key=lambda width: abs(total_at(width) - target))


def compare(counts: Born, width: int, total: int, target: int, tolerance: Decimal) -> Match:
    """Compare the total of a rank or bottleneck with the total to match."""
    remainder = total - target
    return Match(
        flag=f"--{counts.width_key} {width}",
        width=width,
        total=total,
        remainder=remainder,
        remainder_percent=100 * remainder / target,
        within=abs(remainder) * 100 <= tolerance * target,
    )


def notes(first: Born, second: Born) -> list[str]:
    """Return what else differs although the totals match, and what isolates it."""
    growth = "consolidation adds rank to the adapters; results.json of a run has the counts after every task"
    lines = [f"{side.config}: {growth}" for side in (first, second) if side.grows]
    if first.beside != second.beside or first.d_model != second.d_model:
        lines.append("the configurations also differ in their embedding width, routers or descriptors")
    if first.adapter_type != second.adapter_type:
        lines += [
            f"{side.config} differs in its time scales, too; as a third configuration, equal in parameters, it differs "
            f"in structure alone with {' '.join(side.without_scales)}"
            for side in (first, second)
            if side.without_scales
        ]
    return lines


def terminal(first: Born, second: Born, present: Match, best: Match, tolerance: Decimal) -> str:
    """Return the table of counts, how the present pair compares, and the flag that matches best."""
    columns = [list(_rows(first)), *(list(_rows(side).values()) for side in (first, second))]
    widths = [max(map(len, column)) for column in columns]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*columns, strict=True)]
    allowed = f"the tolerance of {tolerance} % ({int(tolerance * second.total / 100):,} parameters)"
    lines = [f"now {present.flag}: {_difference(present, second)} {allowed}", "that is the best match"]
    if best.width != present.width:
        lines[1] = f"best {best.flag}: {best.total:,} in total, {_difference(best, second)} it"
    return "\n".join([*table, "", *lines, *notes(first, second)])


def _rows(counts: Born) -> dict[str, str]:
    def sizes(by_role: Mapping[str, int]) -> str:
        return " + ".join(f"{role} {size:,}" for role, size in by_role.items())

    layers = Counter(counts.per_layer)
    return {
        "": counts.config,
        "adapter type": counts.adapter_type,
        "present flag": f"--{counts.width_key} {counts.width}",
        "embedding width": str(counts.d_model),
        "layers x parameters": " + ".join(f"{number} x {size:,}" for size, number in layers.items()),
        "total before expansion": f"{counts.total:,}",
        "by role": sizes(counts.by_role),
        "not counted": sizes(counts.beside),
    }


def _difference(match: Match, second: Born) -> str:
    """The difference in words: `9,216 more (+3.03 %) than exps/sema_cifar.json, within`."""
    words = "exactly as many (+0.00 %) as"
    if match.remainder:
        more = "more" if match.remainder > 0 else "fewer"
        words = f"{abs(match.remainder):,} {more} ({match.remainder_percent:+.2f} %) than"
    return f"{words} {second.config}, {'within' if match.within else 'outside'}"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.match", description=__doc__, formatter_class=form)
    parser.add_argument("first", type=path_argument, help="configuration whose rank or bottleneck is to change")
    parser.add_argument("--to", type=path_argument, required=True, dest="second", help="configuration to match")
    parser.add_argument("--tolerance", type=_per_cent, default=TOLERANCE, help="in per cent (default: %(default)s)")
    parser.add_argument("--format", choices=("terminal", "json"), default="terminal")
    parser.add_argument("--plugin", type=path_argument, action="append", default=[], help="file of adapter types")
    given = parser.parse_args(arguments)
    for plugin in given.plugin:
        load_plugin(plugin)
    configs = [(str(path), load(path)) for path in (given.first, given.second)]
    for name, config in configs:
        if not trains_adapters(config):
            raise ConfigError(
                f"{name}: model_name {config.model_name} trains no adapters, so there is nothing to match"
            )
    (first, total_at), (second, _) = (born(name, config) for name, config in configs)
    width = best_width(total_at, second.total)
    present = compare(first, first.width, first.total, second.total, given.tolerance)
    best = compare(first, width, total_at(width), second.total, given.tolerance)
    if given.format == "terminal":
        print(terminal(first, second, present, best, given.tolerance))
    else:
        found: dict[str, Born | Match] = {"first": first, "second": second, "present": present, "best": best}
        more = {"tolerance_percent": float(given.tolerance), "notes": notes(first, second)}
        print(json.dumps({key: asdict(value) for key, value in found.items()} | more, indent=2))
    return 0 if present.within else 1


def _per_cent(text: str) -> Decimal:
    try:
        if 0 <= (value := Decimal(text)) <= 100:
            return value
    except InvalidOperation:  # also from a comparison with NaN
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: expected a per cent from 0 to 100, such as {TOLERANCE}")


if __name__ == "__main__":
    sys.exit(main())
