"""Write one self-contained HTML page about finished runs: it needs no network and no server, and the runs no data.

    python -m tools.report logs/* -o report.html
    python -m tools.report logs/* -o report.html --baseline sema_cifar --figures figures/

A RUN is what `tools.compare` takes: a run directory, or a log file of a PILOT-family code base. The page has the
comparison's tables, accuracy curves and matrices, accuracy by class, confusions, the most confident mistakes with their
images, and what the runs recorded: their time scales over steps and tasks, cadence, consolidation, expansion.
`--figures` also writes every figure of the page as PDF, PNG and CSV.

Exit codes: 0 success, 2 invalid arguments or runs.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import sys
from collections.abc import Sequence

from tools.compare.__main__ import runs_parser
from tools.compare.comparison import compare
from tools.report.build import write_report
from utils.console import command
from utils.files import path_argument


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    parser = runs_parser("tools.report", __doc__)
    parser.add_argument(
        "-o", "--output", type=path_argument, metavar="FILE", required=True, help="the page, an HTML file"
    )
    parser.add_argument("--figures", type=path_argument, metavar="DIR", help="folder for the figures, PDF, PNG and CSV")
    options = parser.parse_args(argv)
    write_report(compare(options.runs, options.baseline), options.output, options.figures)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
