"""What is declared in one place is spelled in no other."""

import ast
from collections.abc import Iterator
from pathlib import Path

from backbone.registry import ADAPTERS
from utils.timescales.scales import NAMES

ROOT = Path(__file__).resolve().parents[1]
SCALES = "utils/timescales/scales.py"


def texts(file: Path) -> Iterator[str]:
    """The string constants of a file, docstrings left out."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and node.body
                  if isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in (ROOT / folder).rglob("*.py")] + [ROOT / "trainer.py"]


def naming(names: tuple[str, ...], *folders: str) -> list[str]:
    """The files that spell one of the names, alone or joined by a plus sign."""
    found = (file for file in files(*folders) for text in texts(file) if set(text.split("+")) & set(names))
    return sorted({file.relative_to(ROOT).as_posix() for file in found})


def test_time_scales_are_spelled_in_their_declaration_alone():
    assert naming(NAMES, "models", "utils", "tools") == [SCALES]


def test_adapter_types_are_spelled_in_the_registry_where_they_register_and_as_a_default():
    known = ["backbone/adapter.py", "backbone/nested_lora.py", "backbone/registry.py"]
    fallback = ["utils/config/schema.py", "utils/runs/checkpoint.py"]  # the default; public checkpoints name no type
    assert naming(tuple(ADAPTERS.names()), "models", "utils", "tools", "backbone") == [*known, *fallback]
