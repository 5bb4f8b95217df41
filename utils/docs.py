"""The tables of keys in the READMEs, written from the configuration itself: `python -m utils.docs`."""

from pathlib import Path

from utils.config import schemas
from utils.config_text import describe, shown
from utils.generated import markdown_table, replace_part

READMES = ("README.md", "README.ja.md")


def key_table(group: str) -> str:
    """Key, default, what is expected and meaning of every key under one heading of `--help`."""
    rows = [
        [f"`{key}`", f"`{shown(schema['default'])}`", describe(schema), schema["description"].replace("|", "\\|")]
        for key, schema in schemas().items()
        if schema["group"] == group
    ]
    return markdown_table(["key", "default", "expected", "meaning"], rows)


def write(folder: Path) -> None:
    """Bring the READMEs in `folder` up to date."""
    for name in READMES:
        replace_part(folder / name, "nested keys", key_table("Nested LoRA"))


if __name__ == "__main__":
    write(Path.cwd())
