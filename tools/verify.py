"""Check finished runs: whether their files have changed, and agree with each other.

    python -m tools.verify logs/RUN [logs/RUN ...]

Prints a line for each check of each run, and below it what is wrong. Checksums find accidental changes. A run that was
edited on purpose can have the right checksums, but then the other checks are hard to pass.

Exit codes: 0 all checks passed, 1 a check failed, 2 not a finished run.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.finished.checks import CHECKS
from tools.finished.reader import parse_run, require_files
from utils.console import command
from utils.errors import UserError

READABLE = "files can be read"


def verify(path: Path) -> dict[str, list[str]]:
    """Return what is wrong with a run, by check. If a file cannot be read, no other check is made.

    Raises:
        RunError: The path is not the directory of a finished run.
    """
    require_files(path)
    try:
        run = parse_run(path)
    except UserError as error:
        return {READABLE: [str(error)]}
    return {READABLE: []} | {check.name: check.faults(run) for check in CHECKS}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    return max(_report(path) for path in parser.parse_args(argv).runs)


def _report(path: Path) -> int:
    try:
        found = verify(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(path)
    for name, faults in found.items():
        print(f"  {'FAILED' if faults else 'ok    '}  {name}")
        sys.stdout.writelines(f"            {fault}\n" for fault in faults)
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
