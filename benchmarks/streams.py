"""Put the transient and the order protocol on the quickstart into docs/streams.md.

    python -m benchmarks.streams [--output_dir logs/sweeps]

Runs whatever is missing, as `python -m tools.sweep` does.
"""

if __name__ == "__main__":
    from utils.console import start

    start()

from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import run_command, write_parts
from benchmarks.sweeps import after_sweeps, finished, sweep_folder, tables

DOCUMENT = Path("docs/streams.md")
TRANSIENT, ORDER = (Path(f"exps/sweeps/quickstart_{name}.json") for name in ("transient", "order"))


def main(arguments: Sequence[str]) -> int:
    """Run what is missing and write the document; the exit code."""
    folder = sweep_folder("streams", __doc__, arguments)
    return after_sweeps([TRANSIENT, ORDER], folder, lambda: write(folder))


def write(folder: str) -> None:
    """Write what the finished runs in a folder say.

    Raises:
        UserError: A run is damaged.
    """
    parts = {"transient": TRANSIENT, "order": ORDER}
    write_parts(DOCUMENT, {name: tables(finished(path, folder)) for name, path in parts.items()})


if __name__ == "__main__":
    run_command(main)
