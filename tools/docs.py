"""The tables of keys in the READMEs, written from the configuration itself: `python -m tools.docs`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.generated import markdown_table, replace_part
from utils.config.schema import schemas
from utils.config.wording import describe
from utils.text import shown

READMES = ("README.md", "README.ja.md")
CELLS: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "key": lambda key, _: f"`{key}`",
    "default": lambda _, schema: f"`{shown(schema['default'])}`",
    "expected": lambda _, schema: describe(schema),
    "can change a result": lambda _, schema: "yes" if schema["changes_results"] else "no",
    "meaning": lambda _, schema: schema["description"].replace("|", "\\|"),
}
# what each part of a README lists: the keys under a heading of `--help`, and these columns
TABLES = {
    "nested keys": ("Nested LoRA", ("key", "default", "expected", "meaning")),
    "speed keys": ("Speed", ("key", "default", "expected", "can change a result", "meaning")),
}


def key_table(part: str) -> str:
    """The table of a part of the READMEs."""
    group, columns = TABLES[part]
    keys = [(key, schema) for key, schema in schemas().items() if schema["group"] == group]
    return markdown_table(list(columns), [[CELLS[column](*key) for column in columns] for key in keys])


def write(folder: Path) -> None:
    """Bring the READMEs in `folder` up to date."""
    for name in READMES:
        for part in TABLES:
            replace_part(folder / name, part, key_table(part))


if __name__ == "__main__":
    write(Path.cwd())
