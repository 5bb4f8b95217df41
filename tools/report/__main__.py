"""Write one page about finished runs that can be sent around: it needs no network, no server and no JavaScript.

    python -m tools.report logs/* -o report.html
    python -m tools.report logs/* -o report.html --baseline sema_cifar --figures figures/

A RUN is what `tools.compare` takes: a run directory, or a log file of a PILOT-family code base. The page has the
comparison's tables, accuracy curves and matrices, and what the runs recorded of themselves: fast and slow over steps
and tasks, cadence, consolidation, expansion. `--figures` writes every figure of the page as PDF and PNG too.

Exit codes: 0 done, 2 something for the user to put right.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.compare.comparison import compare
from tools.report.build import write_report
from utils.errors import UserError


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
        prog="python -m tools.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
