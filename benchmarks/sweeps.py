"""Put the quickstart sweeps into the documents: their tables into docs/sweeps.md, the README's picture beside it.

    python -m benchmarks.sweeps [--output_dir logs/sweeps]

Runs whatever is missing, as `python -m tools.sweep` does.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.command import make_parser, run_command, write_parts
from tools.compare.comparison import Comparison
from tools.compare.measures import MEASURES
from tools.compare.plot import accuracy_curves
from tools.compare.tables import Page, markdown_page, page
from tools.sweep import __main__ as sweep
from tools.sweep.plan import read_plan
from utils.files import atomic_write

DOCUMENT = Path("docs/sweeps.md")
INTERVAL, MATCHED = (Path(f"exps/sweeps/quickstart_{name}.json") for name in ("interval", "matched_rank8"))
PICTURE = Path("docs/figures/quickstart_matched_rank8.png")
TIMES = [measure.title for measure in MEASURES if measure.unit == "s"]  # another machine takes others


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, write the document and the picture; the exit code."""
    folder = sweep_folder("sweeps", __doc__, arguments)
    return after_sweeps([INTERVAL, MATCHED], folder, lambda: write(folder))


def sweep_folder(name: str, description: str | None, arguments: Sequence[str]) -> str:
    """Where the command line of `python -m benchmarks.NAME` wants the runs."""
    parser = make_parser(name, description)
    parser.add_argument("--output_dir", default=sweep.FOLDER)
    return str(parser.parse_args(arguments).output_dir)


def after_sweeps(paths: Sequence[Path], folder: str, write: Callable[[], None]) -> int:
    """Run what is missing of some sweeps and then `write`; the exit code."""
    for path in paths:
        if code := sweep.main([str(path), "--output_dir", folder]):
            return code
    write()
    return 0


def write(folder: str) -> None:
    """Write what the finished runs in a folder say.

    Raises:
        UserError: A run is damaged.
    """
    interval, matched = (finished(path, folder) for path in (INTERVAL, MATCHED))
    atomic_write(PICTURE, accuracy_curves(matched.groups).file("png"))
    write_parts(DOCUMENT, {"interval": tables(interval), "matched": tables(matched), "legend": legend(matched)})


def finished(path: Path, folder: str) -> Comparison:
    """The comparison of a sweep all of whose runs are finished."""
    plan = read_plan(path, folder)
    runs = {run: planned for planned in plan if (run := planned.finished())}
    return sweep.comparison_of(runs, plan[0].member.name)


def tables(comparison: Comparison) -> str:
    """What can be concluded, its tables without times, and its warnings."""
    whole = page(comparison)
    kept = [replace(table, rows=[row for row in table.rows if row[0] not in TIMES]) for table in whole.tables]
    said = [line for line in whole.lists.get("Warnings", []) if line.split(":")[0] not in TIMES]
    return markdown_page(Page(kept, {"Warnings": said} if said else {}, whole.opening))


def legend(comparison: Comparison) -> str:
    """What stands in the tables, but for times."""
    lines = [line for line in page(comparison).lists["Legend"] if line.split(":")[0] not in TIMES]
    return markdown_page(Page([], {"Legend": lines}))


if __name__ == "__main__":
    run_command(main)
