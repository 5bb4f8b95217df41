"""Check finished runs: whether their files have changed, and agree with each other.

    python -m tools.verify logs/RUN [logs/RUN ...]
    python -m tools.verify logs/*

Prints a line for each check of each run, and below it what is wrong. Folders that hold no file of a run, such as those
of sweeps, and pages are left out. Checksums find accidental changes. A run that was
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
from tools.finished.reader import foreign_path, parse_run, require_files
from utils.console import command
from utils.errors import UserError
from utils.files import path_argument

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
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help="run directory")
    paths = parser.parse_args(argv).runs
    foreign = {path: reason for path in paths if (reason := foreign_path(path))}
    print("\n".join(foreign.values()), end="\n" if foreign else "", file=sys.stderr)
    runs = [path for path in paths if path not in foreign]
    return max((_report(path) for path in runs), default=2)


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
