"""Write one page about finished runs that can be sent around: it needs no network, no server and no JavaScript.

    python -m utils.report logs/* -o report.html
    python -m utils.report logs/* -o report.html --baseline sema_cifar --figures figures/

A RUN is what `utils.compare` takes: a run directory, or a log file of a PILOT-family code base. The page has the
comparison's tables, accuracy curves and matrices, and what the runs recorded of themselves: fast and slow over steps
and tasks, cadence, consolidation, expansion. `--figures` writes every figure of the page as PDF and PNG too.

Exit codes: 0 done, 2 something for the user to put right.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.comparison import Comparison, compare
from utils.errors import UserError
from utils.files import atomic_write
from utils.page import Section, render
from utils.report_sections import SECTIONS


def write_report(comparison: Comparison, page: Path, figures: Path | None = None) -> None:
    """Write the page, and the figures if a folder for them is given.

    Raises:
        UserError: What a run recorded is damaged, or a file cannot be written.
    """
    sections = [section(comparison) for section in SECTIONS]
    try:
        atomic_write(page, render(*_headline(comparison), sections).encode(errors="replace"))
        if figures:
            _write_figures(sections, figures)
    except OSError as error:
        raise UserError(f"cannot be written: {error}") from None


def _headline(comparison: Comparison) -> tuple[str, str]:
    """Title and first sentence."""
    names = [group.name for group in comparison.groups]
    count = sum(len(group.runs) for group in comparison.groups)
    title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    lead = f"{count} {'run' if count == 1 else 'runs'} of {len(names)} "
    lead += "configuration." if len(names) == 1 else "configurations."
    if comparison.baseline:
        lead += f" The baseline is {comparison.baseline.name}."
    return title if len(names) <= 3 else f"{len(names)} configurations", f"{lead} Tasks are counted from 0."


def _write_figures(sections: Sequence[Section], folder: Path) -> None:
    """Numbered in the order of the page, so that no two have one name."""
    drawings = [drawing for section in sections for drawing in section.drawings]
    for number, drawing in enumerate(drawings, 1):
        drawing.save(folder, f"{number:02d}-{drawing.name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    options = _parser().parse_args(argv)
    try:
        write_report(compare(options.runs, options.baseline), options.output, options.figures)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(options.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utils.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory or log file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="the page, an HTML file")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="folder for the figures as PDF and PNG")
    parser.add_argument(
        "--baseline", metavar="RUN", help="a run, or a configuration's name, to compare the others with"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
