"""What a whole run costs against the plain method, from the times of its phases and how often it goes through each.

    python -m benchmarks.run [--vit vit_base_patch16_224] [--batch 4] [--rounds 3] [--threads 1 --clock cpu]
                             [--compile] [--profile] [--json FILE] [--write]
    python -m benchmarks.run --from FILE --write

All phases of all variants take turns in one process, on random images that are ready in memory. `--profile` asks
instead which operators the time goes to, in float32 and in bfloat16. `--write` puts the tables into
docs/performance.md, into the part of the device's kind.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import profiles
from benchmarks.command import run_command
from benchmarks.measure import Timer, Work, best_of, multiply_adds, products
from benchmarks.run_tables import tables
from benchmarks.timing import origin, publish, timing_parser
from benchmarks.workloads import TIMM, Setting, Subject, Workshop
from models.workload import FEATURES, KEPT, VIEW

PLAIN = (
    "evaluation",
    "scan",
    "func step",
    "rd step",
    "func step, one expansion",
    "rd step, one expansion",
    "func step, no expansion",
)
OURS = (
    *PLAIN,
    "evaluation, seen before",
    f"rd step{KEPT}",
    f"rd step, one expansion{KEPT}",
    "view",
    "features",
    f"scan{VIEW}",
    f"func step, one expansion{VIEW}",
    f"rd step, one expansion{VIEW}",
    f"func step, no expansion{FEATURES}",
)
SUBJECTS: list[Subject] = [
    (phase, variant)
    for phase in OURS
    for variant in ("reference", "exact", "bf16")
    if phase in PLAIN or variant != "reference"
]
PASSES: list[Subject] = [TIMM, ("forward", "exact"), ("forward", "bf16")]
COMPILED: Subject = ("forward", "compile")
FORMATS = (torch.float32, torch.bfloat16)


def report(setting: Setting, rounds: int, timer: Timer, compiled: bool = False) -> dict[str, Any]:
    """Everything measured, JSON-ready.

    Keys: `setting`, `machine`, `peaks` (multiply-adds a second by number format), `cache` (what decides how many test
    images are kept), `passes` (seconds of a forward pass, by variant), `seconds` (of a batch: variant -> phase) and
    `multiply_adds` (of a batch, by phase).
    """
    shop, passes = Workshop(setting), [*PASSES, *([COMPILED] if compiled else [])]
    works: dict[tuple[str, str], Work] = {subject: shop.work(subject) for subject in [*passes, *SUBJECTS]}
    squares = {(_name(f), rows): work for f in FORMATS for rows, work in products(setting.device, f).items()}
    seconds = best_of(works | squares, rounds, timer)
    return {
        **origin(setting, rounds, timer),
        "peaks": {_name(f): max(int(n) ** 3 / seconds[k, n] for k, n in squares if k == _name(f)) for f in FORMATS},
        "cache": _cache(setting),
        "passes": {variant: seconds[phase, variant] for phase, variant in passes},
        "seconds": {v: {p: seconds[p, v] for p, w in SUBJECTS if w == v} for _, v in SUBJECTS},
        "multiply_adds": {phase: multiply_adds(works[phase, "exact"]) for phase in OURS},
    }


def _name(number_format: torch.dtype) -> str:
    return str(number_format).removeprefix("torch.")


def _cache(setting: Setting) -> dict[str, float]:
    """The bound on kept test images, GiB, the size of one, bytes, and how many are a batch."""
    vit, config = setting.sketch, setting.setup({}).config
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    image = tokens * vit.embed_dim * torch.float32.itemsize
    return {"gib": config.eval_cache_gib, "image_bytes": image, "batch": config.eval_batch_size}


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and write what is asked for."""
    parser = timing_parser("run", __doc__, rounds=3)
    parser.add_argument("--compile", action="store_true", help="time a compiled forward pass too; takes a C++ compiler")
    parser.add_argument("--profile", action="store_true", help="by operator instead of by phase")
    given = parser.parse_args(arguments)
    if given.profile:
        publish(given, "profile", lambda setting, timer: profiles.report(setting, given.rounds, timer), profiles.tables)
    else:
        publish(given, "run", lambda setting, timer: report(setting, given.rounds, timer, given.compile), tables)


if __name__ == "__main__":
    run_command(main)
