"""What the keys of speed cost in accuracy: their paired differences to the exact mode, into docs/performance.md.

    python -m benchmarks.accuracy [--output_dir logs/sweeps]

Runs whatever is missing of exps/sweeps/quickstart_speed.json and of the two sweeps of kept views, as `python -m
tools.sweep` does.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import run_command, write_parts
from benchmarks.sweeps import after_sweeps, finished, sweep_folder
from tools.compare.comparison import Comparison, Group
from tools.compare.measures import MEASURES, Measure
from tools.compare.paired import Difference
from tools.generated import markdown_table

SWEEP = Path("exps/sweeps/quickstart_speed.json")
VIEWS = {kind: Path(f"exps/sweeps/quickstart_views_{kind}.json") for kind in ("adaptmlp", "nested_lora")}
DOCUMENT = Path("docs/performance.md")
SHOWN = ("last_acc", "avg_inc_acc")


def main(arguments: Sequence[str]) -> int:
    """Run what is missing and write the tables; the exit code."""
    folder = sweep_folder("accuracy", __doc__, arguments)
    return after_sweeps([SWEEP, *VIEWS.values()], folder, lambda: write(folder))


def write(folder: str) -> None:
    """Write the tables of the finished runs in a folder."""
    parts = {"accuracy": SWEEP, **{f"views {kind}": path for kind, path in VIEWS.items()}}
    write_parts(DOCUMENT, {part: table(finished(path, folder)) for part, path in parts.items()})


def table(comparison: Comparison) -> str:
    """A row for each configuration: its accuracies, and their differences to the exact mode's on equal seeds."""
    baseline = comparison.baseline
    assert baseline is not None
    measures = [measure for measure in MEASURES if measure.key in SHOWN]
    images = sum(baseline.runs[0].matrix.count)
    header = [f"{len(baseline.runs)} seeds, {images:,} test images"]
    for measure in measures:
        header += [f"{measure.title}, %", "difference in points, 95 % interval"]
    return markdown_table(header, [_row(group, baseline, measures) for group in comparison.groups])


def _row(group: Group, baseline: Group, measures: list[Measure]) -> list[str]:
    cells = [group.name]
    for measure in measures:
        spread = group.spread(measure)
        cells.append(f"{100 * spread.mean:.2f} ± {100 * spread.std:.2f}")
        cells.append("" if group is baseline else _shown(group.minus(baseline, measure)))
    return cells


def _shown(found: Difference) -> str:
    if math.isnan(found.p):  # all differences are equal
        return f"{100 * found.mean:+.2f} in every seed"
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


if __name__ == "__main__":
    run_command(main)
