"""Compare finished runs, those of this project and those in log files of PILOT-family code bases.

    python -m tools.compare logs/*                                        # every configuration, seeds together
    python -m tools.compare logs/* --baseline logs/sema_cifar-a59b1a3e-s1 # and its difference to that one's
    python -m tools.compare logs/nested-* pilot/reproduce_1993.log --format markdown

A RUN is a run directory, or a log file with lines such as `CNN top1 curve: [...]`. Runs that differ in nothing but the
seed, and in keys that cannot change a result, are one configuration. Accuracies of run directories come from their raw
counts; those of a log from its percentages, and what in the log does not fit together is among the warnings. Folders
that are no runs, such as one of sweeps, are left out, and that is said.

Exit codes: 0 done, 2 something for the user to put right.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.compare.comparison import Comparison, compare
from tools.compare.data import as_csv, as_json
from tools.compare.fairness import warnings
from tools.compare.tables import READABLE
from utils.errors import UserError

FORMATS: dict[str, Callable[[Comparison], str]] = {**READABLE, "csv": as_csv, "json": as_json}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    options = _parser().parse_args(argv)
    try:
        comparison = compare(options.runs, options.baseline)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.write(FORMATS[options.format](comparison))
    if options.format == "csv":  # which has no place for them
        for line in warnings(comparison):
            print(f"warning: {line}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory or log file")
    parser.add_argument(
        "--baseline", metavar="RUN", help="a run, or a configuration's name, to compare the others with"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="terminal", help="default: terminal; csv and json: unrounded"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
