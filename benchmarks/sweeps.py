"""Put the quickstart sweeps into the documents: their tables into docs/sweeps.md, the README's picture beside it.

    python -m benchmarks.sweeps [--output_dir logs/sweeps]

Runs whatever is missing, as `python -m tools.sweep` does.
"""

import argparse
import sys
from pathlib import Path

from tools.compare.comparison import Comparison
from tools.compare.measures import MEASURES
from tools.compare.tables import Page, Table, markdown_page, page
from tools.generated import replace_part
from tools.report.figures import accuracy_curves
from tools.sweep import __main__ as sweep
from tools.sweep.plan import read_plan
from utils.errors import UserError
from utils.files import atomic_write

DOCUMENT = Path("docs/sweeps.md")
INTERVAL, MATCHED = (Path(f"exps/sweeps/quickstart_{name}.json") for name in ("interval", "matched_rank8"))
PICTURE = Path("docs/figures/quickstart_matched_rank8.png")
TIMES = [measure.title for measure in MEASURES if measure.unit == "s"]  # another machine takes others


def main() -> int:
    """Run what is missing, write the document and the picture; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument("--output_dir", default=sweep.FOLDER)
    folder = parser.parse_args().output_dir
    for path in (INTERVAL, MATCHED):
        if code := sweep.main([str(path), "--output_dir", folder]):
            return code
    try:
        write(folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(DOCUMENT.read_text(encoding="utf-8"))
    return 0


def write(folder: str) -> None:
    """Write what the finished runs in a folder say.

    Raises:
        UserError: A run is damaged.
    """
    interval, matched = (finished(path, folder) for path in (INTERVAL, MATCHED))
    for name, comparison in (("interval", interval), ("matched", matched)):
        replace_part(DOCUMENT, name, tables(comparison))
    replace_part(DOCUMENT, "legend", legend(matched))
    atomic_write(PICTURE, accuracy_curves(matched.groups).png())


def finished(path: Path, folder: str) -> Comparison:
    """The comparison of a sweep all of whose runs are finished."""
    plan = read_plan(path, folder)
    runs = {run: planned for planned in plan if (run := planned.finished())}
    return sweep.comparison_of(runs, plan[0].member.name)


def tables(comparison: Comparison) -> str:
    """Its tables without times, and its warnings."""
    whole = page(comparison)
    kept = [
        Table(table.title, table.header, [row for row in table.rows if row[0] not in TIMES]) for table in whole.tables
    ]
    return markdown_page(Page(kept, {"Warnings": whole.lists["Warnings"]} if "Warnings" in whole.lists else {}))


def legend(comparison: Comparison) -> str:
    """What stands in the tables, but for times."""
    lines = [line for line in page(comparison).lists["Legend"] if line.split(":")[0] not in TIMES]
    return markdown_page(Page([], {"Legend": lines}))


if __name__ == "__main__":
    sys.exit(main())
