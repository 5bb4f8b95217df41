"""What a configuration chooses by name, and the user's own files that add to it. Imports no torch by itself."""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from backbone.registry import ADAPTERS as ADAPTERS
from backbone.registry import Registry
from utils.errors import UserError

LEARNERS = Registry("model_name", {"sema": "models.sema"})
REGISTRIES = {registry.key: registry for registry in (ADAPTERS, LEARNERS)}


@dataclass(frozen=True)
class Plugin:
    """A user's own file, as it stands on record.

    Attributes:
        file: Its name without the folder.
        sha256: Of its content, hex.
        adds: What it has registered: by configuration key, the names.
    """

    file: str
    sha256: str
    adds: dict[str, list[str]]


PLUGINS: list[Plugin] = []  # those of this process


def load_plugin(path: Path) -> Plugin:
    """Run a user's own Python file, which registers adapter types or learners.

    Raises:
        UserError: It is not there, fails, or registers nothing.
    """
    if not path.is_file():
        raise UserError(f"--plugin {path}: no such file")
    name, file = f"plugin_{path.stem}", path.resolve()
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: expected a Python file, its name ending in .py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's code can raise anything
        raise UserError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    adds = {key: names for key, registry in REGISTRIES.items() if (names := registry.names_of(file))}
    if not adds:
        raise UserError(f"--plugin {path}: registers nothing; see docs/extending.md")
    plugin = Plugin(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), adds)
    if plugin not in PLUGINS:
        PLUGINS.append(plugin)
    return plugin
