"""Put the baselines, the controls and the aligned head on the quickstart into docs/baselines.md.

    python -m benchmarks.baselines [--output_dir logs/sweeps]

Runs whatever is missing, as `python -m tools.sweep` does.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import run_command, write_parts
from benchmarks.sweeps import after_sweeps, finished, legend, sweep_folder, tables

DOCUMENT = Path("docs/baselines.md")
SWEEPS = {name: Path(f"exps/sweeps/quickstart_{name}.json") for name in ("baselines", "controls", "alignment")}


def main(arguments: Sequence[str]) -> int:
    """Run what is missing and write the document; the exit code."""
    folder = sweep_folder("baselines", __doc__, arguments)
    return after_sweeps(list(SWEEPS.values()), folder, lambda: write(folder))


def write(folder: str) -> None:
    """Write what the finished runs in a folder say.

    Raises:
        UserError: A run is damaged.
    """
    found = {name: finished(path, folder) for name, path in SWEEPS.items()}
    parts = {name: tables(comparison) for name, comparison in found.items()}
    write_parts(DOCUMENT, {**parts, "legend": legend(found["controls"])})


if __name__ == "__main__":
    run_command(main)
