"""Read and write the generated parts of documents, which stand between two markers."""

import re
from pathlib import Path

from utils.files import atomic_write


def read_part(path: Path, name: str) -> str:
    """Return the text between the markers `<!-- NAME begin -->` and `<!-- NAME end -->` of a Markdown file.

    Raises:
        ValueError: The file has no such markers, or more than one pair.
    """
    return _find(path, name)[0]


def replace_part(path: Path, name: str, text: str) -> None:
    """Replace the text between the markers of a part.

    Raises:
        ValueError: As `read_part`.
    """
    found = _find(path, name)
    before, after = found.string[: found.start()], found.string[found.end() :]
    atomic_write(path, f"{before}{text.rstrip()}\n{after}".encode())


def _find(path: Path, name: str) -> re.Match[str]:
    begin, end = (f"<!-- {name} {edge} -->" for edge in ("begin", "end"))
    pattern = f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})"
    found = list(re.finditer(pattern, path.read_text(encoding="utf-8"), re.DOTALL))
    if len(found) != 1:
        raise ValueError(f"{path}: expected the markers {begin} and {end} once")
    return found[0]


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def read_tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a Markdown text as lists of rows of cells. The first row is the header."""
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    rows = ([row for row in table.splitlines() if "| --- |" not in row] for table in tables)
    return [[[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table] for table in rows]
