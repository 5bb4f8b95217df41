"""What the commands have in common: their options, how they end, and the documents that take what they measure."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from tools.generated import replace_part
from utils.console import command


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.NAME`, without options of its own; `description` is shown as it is."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description, formatter_class=form)


def run_command(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """End the process with the exit code of a command, which gets the process's arguments."""
    sys.exit(command(lambda: main(sys.argv[1:]) or 0)())


def write_parts(document: Path, parts: Mapping[str, str]) -> None:
    """Put texts into the parts of a document that have their names, and print them."""
    for name, text in parts.items():
        replace_part(document, name, text)
        print(text)
