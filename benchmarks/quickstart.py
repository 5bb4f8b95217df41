"""Measure the quickstart: Nested LoRA, its adaptmlp baseline, random backbone weights, and the frozen backbone alone.

    python -m benchmarks.quickstart [--seed 1 2 3 4 5] [--output_dir logs/quickstart]

Runs that are finished are kept. The table goes into docs/quickstart.md.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from backbone.adapter import ADAPTER
from benchmarks.command import make_parser, run_command, write_parts
from benchmarks.references import references
from tools.generated import markdown_table
from trainer import train
from utils.config.load import load
from utils.config.schema import Config
from utils.runs.directory import RESULTS, run_name
from utils.timescales.scales import NAMES

DOCUMENT = Path("docs/quickstart.md")
RANDOM = {"pretrained": False, "backbone_checkpoint": None}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "nested_lora": ("quickstart", {}),
    "adaptmlp": ("quickstart_adaptmlp", {}),
    "nested_lora, random backbone": ("quickstart", RANDOM),
}


def main(arguments: Sequence[str]) -> None:
    """Train what is missing and write the tables."""
    parser = make_parser("quickstart", __doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--output_dir", default="logs/quickstart")
    given = parser.parse_args(arguments)
    flags = {"seed": given.seed, "output_dir": given.output_dir}
    rows = [row(title, results_of(name, {**flags, **changes})) for title, (name, changes) in RUNS.items()]
    header = [
        "seeds " + ", ".join(map(str, given.seed)),
        "last accuracy",
        "average incremental",
        "forgetting",
        "adapters per block",
        "adapter parameters",
    ]
    write_parts(DOCUMENT, {"runs": markdown_table(header, rows), "references": reference_table(flags)})


def results_of(name: str, flags: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of every seed of a configuration."""
    return [json.loads((path / RESULTS).read_text(encoding="utf-8")) for path in runs_of(name, flags)]


def runs_of(name: str, flags: dict[str, Any]) -> list[Path]:
    """The run directories of every seed of a configuration, trained now where they are missing."""
    config = load(Path("exps") / f"{name}.json", flags)
    paths = {seed: Path(config.output_dir) / run_name(config, name, seed) for seed in config.seed}
    missing = [seed for seed, path in paths.items() if not (path / RESULTS).exists()]
    if missing:
        train(config.model_copy(update={"seed": missing}), name)
    return list(paths.values())


def row(title: str, results: list[dict[str, Any]]) -> list[str]:
    """One line of the table: mean ± standard deviation over seeds."""
    ends = [run["tasks"][-1] for run in results]
    return [
        title,
        *(spread([100 * run[key] for run in results]) for key in ("last_acc", "avg_inc_acc", "forgetting")),
        "; ".join("-".join(map(str, end["adapters"])) for end in ends),
        "; ".join(f"{functional_parameters(end['parameters']):,}" for end in ends),
    ]


def functional_parameters(counts: dict[str, int]) -> int:
    """Parameters of the adapters themselves, without routers, descriptors and head."""
    return sum(counts.get(role, 0) for role in (ADAPTER, *NAMES))


def spread(values: list[float]) -> str:
    """Mean ± standard deviation; the deviation is left out for a single value."""
    mean = f"{fmean(values):.2f}"
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def reference_table(flags: dict[str, Any]) -> str:
    """What classifiers on the frozen class token reach that see all classes at once."""
    config = load("exps/quickstart.json", flags)
    random: Config = load("exps/quickstart.json", {**flags, **RANDOM})
    pretrained, untrained = references(config), references(random)
    return markdown_table(
        ["all classes at once, per cent", "quickstart backbone", "random weights"],
        [[name, f"{value:.2f}", f"{untrained[name]:.2f}"] for name, value in pretrained.items()],
    )


if __name__ == "__main__":
    run_command(main)
