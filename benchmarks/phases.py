"""Time the phases of a run, each in the reference's way and in ours, one after the other in the same process.

    python -m benchmarks.phases [--vit vit_base_patch16_224] [--batch 4] [--rounds 4] [--threads 1 --clock cpu]
                                [--json FILE] [--write]
    python -m benchmarks.phases --from FILE --write

All inputs and weights are random: nothing is downloaded. `--write` puts the tables into docs/performance.md, into the
part of the device's kind; `--from` takes what `--json` wrote, on whichever machine, instead of measuring.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.command import run_command
from benchmarks.measure import Cost, Timer, costs, products
from benchmarks.phase_tables import tables
from benchmarks.timing import origin, publish, timing_parser
from benchmarks.workloads import MANY, TIMM, VARIANTS, Setting, Subject, Workshop

PRODUCT = "product"
BOTH = ("reference", "exact")
# What is compared is measured together; a group's learners are in memory at the same time.
GROUPS: tuple[list[Subject], ...] = (
    [
        TIMM,
        *((phase, variant) for phase in ("forward", "evaluation", "scan", "func step", "rd step") for variant in BOTH),
        ("func step", "nested"),
    ],
    [
        *(("evaluation, seen before", variant) for variant in BOTH),
        *((f"{step}, one expansion", variant) for step in ("func step", "rd step") for variant in BOTH),
        *(("func step, no expansion", variant) for variant in BOTH),
        ("func step, 1 adapter a layer", "exact"),
        (f"func step, {MANY} adapters a layer", "exact"),
    ],
)


def measure(
    setting: Setting, subjects: Iterable[Subject], rounds: int, timer: Timer, dtypes: Iterable[torch.dtype] = ()
) -> dict[Subject, Cost]:
    """Costs of works measured together, and of matrix products in `dtypes` among them."""
    shop = Workshop(setting)
    works = {subject: shop.work(subject) for subject in subjects}
    for dtype in dtypes:
        works |= {(_product(dtype), rows): work for rows, work in products(setting.device, dtype).items()}
    return costs(works, rounds, timer)


def _product(dtype: torch.dtype) -> str:
    return f"{PRODUCT} {str(dtype).removeprefix('torch.')}"


def report(setting: Setting, rounds: int, timer: Timer, dtypes: Sequence[torch.dtype]) -> dict[str, Any]:
    """Everything measured, JSON-ready.

    Keys: `setting`, `machine`, `peaks` (multiply-adds a second by number format), `images` (of a batch) and `costs`
    (phase -> variant -> the fields of `Cost`).
    """
    found: dict[Subject, Cost] = {}
    peaks = {_product(dtype).removeprefix(f"{PRODUCT} "): 0.0 for dtype in dtypes}
    for group in GROUPS:
        for (phase, variant), cost in measure(setting, group, rounds, timer, dtypes).items():
            kind, _, dtype = phase.partition(" ")
            if kind == PRODUCT:
                peaks[dtype] = max(peaks[dtype], cost.multiply_adds / cost.seconds)
            else:
                found[phase, variant] = cost
    phases = dict.fromkeys(phase for phase, _ in found)
    by_phase = {phase: {v: asdict(cost) for (p, v), cost in found.items() if p == phase} for phase in phases}
    return {
        **origin(setting, rounds, timer),
        "peaks": peaks,
        "formats": {name: str(variant.dtype).removeprefix("torch.") for name, variant in VARIANTS.items()},
        "costs": by_phase,
    }


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and write what is asked for."""
    parser = timing_parser("phases", __doc__, rounds=4)
    parser.add_argument("--bf16", action="store_true", help="measure the matrix peak of bfloat16 too")
    given = parser.parse_args(arguments)
    dtypes = [torch.float32, *([torch.bfloat16] if given.bf16 else [])]
    publish(given, "phases", lambda setting, timer: report(setting, given.rounds, timer, dtypes), tables)


if __name__ == "__main__":
    run_command(main)
