"""Write the generated parts of the documents, and the drawing: `python -m tools.docs`."""

if __name__ == "__main__":
    from utils.console import start

    start()

import ast
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from tools.drawing import method
from tools.generated import markdown_table, read_part, read_tables, replace_part
from utils.config.schema import schemas
from utils.config.wording import describe, effect
from utils.console import command
from utils.files import atomic_write
from utils.text import shown

DRAWING = "docs/figures/method.svg"
RESULTS = ("last accuracy", "average incremental accuracy", "answers changed by adapters")  # columns in the README
COMPARED = RESULTS[:2]  # those whose differences are shown, too
PACKAGES = ("models", "backbone", "utils", "tools", "benchmarks")  # of the code map


def results(root: Path) -> str:
    """Return the comparison at equal numbers of parameters, taken from docs/sweeps.md: a row for each configuration."""
    tables = read_tables(read_part(root / "docs/sweeps.md", "matched"))
    means, differences = ({row[0]: row[1:] for row in table} for table in tables if table[0][0] == "measure")
    baseline, *others = means["measure"]
    header = ["configuration", *RESULTS, *(f"{row}: difference" for row in COMPARED)]
    rows = [[baseline, *(means[row][0] for row in RESULTS), *("" for _ in COMPARED)]]
    for place, name in enumerate(others):
        gaps = (differences[row][place].partition(", p")[0] for row in COMPARED)
        rows.append([name, *(means[row][place + 1] for row in RESULTS), *gaps])
    return markdown_table(header, rows)


def all_keys(_: Path) -> str:
    """Return the tables of all configuration keys, one for each group of `--help`."""
    groups = dict.fromkeys(schema["group"] for schema in schemas().values())
    return "\n".join(f"## {group}\n\n{keys_of(group)}" for group in groups)


def keys_of(group: str) -> str:
    """Return the table of one group of keys."""
    rows = [key_row(key, schema) for key, schema in schemas().items() if schema["group"] == group]
    return markdown_table(["key", "default", "expected", "can change a result", "meaning"], rows)


def key_row(key: str, schema: dict[str, Any]) -> list[str]:
    """Return the row of a key."""
    default = f"`{shown(schema['default'])}`" if "default" in schema else "required"
    return [f"`{key}`", default, describe(schema), effect(schema), schema["description"].replace("|", "\\|")]


def modules(root: Path) -> str:
    """Return the tables of all modules with the first lines of their docstrings, one for each folder."""
    packages = [sorted({path.parent for path in (root / name).rglob("*.py")}) for name in PACKAGES]
    return "\n".join(modules_in(folder, root) for folder in [root, *chain.from_iterable(packages)])


def modules_in(folder: Path, root: Path) -> str:
    """Return the heading and the table of a folder, without empty modules."""
    paths = [path.relative_to(root) for path in sorted(folder.glob("*.py")) if path.stat().st_size]
    rows = [[f"[{path.name}](../{path.as_posix()})", first_line(root / path)] for path in paths]
    title = folder.relative_to(root).as_posix() if folder != root else "main.py and what it calls"
    return f"### {title}\n\n{markdown_table(['module', 'what it does'], rows)}"


def first_line(path: Path) -> str:
    """Return the first line of the docstring of a module.

    Raises:
        ValueError: The module has no docstring.
    """
    if text := ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
        return text.partition("\n")[0]
    raise ValueError(f"{path} has no docstring")


PARTS: tuple[tuple[str, str, Callable[[Path], str]], ...] = (
    ("README.md", "results", results),
    ("README.ja.md", "results", results),
    ("docs/keys.md", "keys", all_keys),
    ("docs/speed.md", "speed keys", lambda _: keys_of("Speed")),
    ("docs/code-map.md", "modules", modules),
)


def write(root: Path) -> None:
    """Write all generated parts of the project in `root`, and the drawing."""
    for file, part, content in PARTS:
        replace_part(root / file, part, content(root))
    atomic_write(root / DRAWING, method().encode())


@command
def main() -> int:
    """Write them in the working directory."""
    write(Path.cwd())
    return 0


if __name__ == "__main__":
    sys.exit(main())
