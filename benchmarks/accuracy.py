"""What the keys of speed cost in accuracy: their paired differences to the exact mode, into docs/performance.md.

    python -m benchmarks.accuracy [--output_dir logs/sweeps]

Runs whatever is missing of exps/sweeps/quickstart_speed.json, as `python -m tools.sweep` does.
"""

import argparse
import math
import sys
from pathlib import Path

from benchmarks.sweeps import finished
from tools.compare.comparison import Comparison, Group
from tools.compare.measures import MEASURES, Measure
from tools.compare.paired import Difference
from tools.generated import markdown_table, replace_part
from tools.sweep import __main__ as sweep
from utils.errors import UserError

SWEEP = Path("exps/sweeps/quickstart_speed.json")
DOCUMENT = Path("docs/performance.md")
SHOWN = ("last_acc", "avg_inc_acc")


def main() -> int:
    """Run what is missing and write the table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--output_dir", default=sweep.FOLDER)
    folder = parser.parse_args().output_dir
    if code := sweep.main([str(SWEEP), "--output_dir", folder]):
        return code
    try:
        text = table(finished(SWEEP, folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    replace_part(DOCUMENT, "accuracy", text)
    print(text)
    return 0


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
    sys.exit(main())
