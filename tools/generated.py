"""Parts of a document that a command writes: everything between two markers, and nothing else."""

import re
from pathlib import Path

from utils.files import atomic_write


def replace_part(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- NAME begin -->` and `<!-- NAME end -->` of a Markdown file.

    Raises:
        ValueError: The file has no such markers, or more than one pair.
    """
    content = path.read_text(encoding="utf-8")
    begin, end = (f"<!-- {name} {edge} -->" for edge in ("begin", "end"))
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(content)) != 1:
        raise ValueError(f"{path}: expected the markers {begin} and {end} once")
    atomic_write(path, pattern.sub(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", content).encode())


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
