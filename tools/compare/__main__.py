"""Compare finished runs: run directories of this project, and log files of PILOT-family code bases.

    python -m tools.compare logs/*                                        # every configuration, over its seeds
    python -m tools.compare logs/* --baseline logs/sema_cifar-a59b1a3e-s1 # and its difference to that one's
    python -m tools.compare logs/nested-* pilot/reproduce_1993.log --format markdown
    python -m tools.compare logs/* --plot accuracy.pdf                    # and draw the accuracy curves for a paper
    python -m tools.compare logs/* --plot old_new.svg --plot-of old-and-new

A RUN is a run directory, or a log file with lines such as `CNN top1 curve: [...]`. Runs that differ only in the seed,
and in keys that cannot change a result, are one configuration. The accuracies of a run directory are computed from its
counts of correct answers, those of a log from its percentages. Inconsistencies in a log are reported as warnings, and
so are folders that are left out because they hold no run, and unfinished runs.

Exit codes: 0 success, 2 invalid arguments or runs.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.compare.comparison import Comparison, compare
from tools.compare.data import as_csv, as_json
from tools.compare.fairness import warnings
from tools.compare.tables import READABLE
from utils.console import command
from utils.files import path_argument

PLOTS = (".svg", ".pdf", ".png", ".csv")
PLOT_OF = ("accuracy", "forgetting", "learning", "old-and-new")  # see `tools.compare.plot`, which imports matplotlib
PLOT_MEANING = (
    "accuracy: over all classes seen, after every task (default); forgetting: on each task over the stream; "
    "learning: on new and on old classes within each task, of runs with eval_every; "
    "old-and-new: on new tasks against old ones, a point for each seed"
)
FORMATS: dict[str, Callable[[Comparison], str]] = {**READABLE, "csv": as_csv, "json": as_json}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    parser = runs_parser("tools.compare", __doc__)
    add = parser.add_argument
    add("--format", choices=FORMATS, default="terminal", help="default: terminal; csv and json: unrounded")
    add("--plot", type=_plot_file, metavar="FILE", help="write a plot as .svg, .pdf or .png, or its numbers as .csv")
    add("--plot-of", choices=PLOT_OF, default="accuracy", help=PLOT_MEANING)
    add("--width", type=_inches, default=3.4, metavar="INCHES", help="of the plot; default: 3.4, a column of a paper")
    options = parser.parse_args(argv)
    comparison = compare(options.runs, options.baseline)
    if options.plot:
        from tools.compare.plot import write_plot  # imports matplotlib

        write_plot(comparison.groups, options.plot, options.width, options.plot_of)
        print(f"written: {options.plot}", file=sys.stderr)
    sys.stdout.write(FORMATS[options.format](comparison))
    if options.format == "csv":  # the other formats contain them
        for line in warnings(comparison):
            print(f"warning: {line}", file=sys.stderr)
    return 0


def _plot_file(text: str) -> Path:
    if not text.lower().endswith(PLOTS):
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in .svg, .pdf, .png or .csv")
    return path_argument(text)


def _inches(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 1 <= width <= 40:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of inches from 1 to 40")
    return width


def runs_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments of `compare`: runs and a baseline."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help="run directory or log file")
    parser.add_argument("--baseline", metavar="RUN", help="run, or configuration's name, to compare the others with")
    return parser


if __name__ == "__main__":
    sys.exit(main())
