"""Names that a configuration can choose from, and plug-ins that add names. This module imports no torch."""

import hashlib
import importlib.util
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from backbone.registry import ADAPTERS as ADAPTERS
from backbone.registry import Registry
from utils.errors import UserError
from utils.files import seen_from
from utils.text import shown

logger = logging.getLogger(__name__)

LEARNERS = Registry(
    "model_name",
    {
        "sema": "models.sema",
        **dict.fromkeys(("finetune", "linear", "joint", "simplecil", "ranpac"), "models.baselines"),
    },
)
REGISTRIES = {registry.key: registry for registry in (ADAPTERS, LEARNERS)}


@dataclass(frozen=True)
class Plugin:
    """A Python file of the user.

    Attributes:
        path: Absolute path, which is not recorded.
        file: File name without folder.
        sha256: Hash of the content, hex.
        adds: Registered names by configuration key.
    """

    path: Path
    file: str
    sha256: str
    adds: dict[str, list[str]]

    def record(self) -> dict[str, object]:
        """Return the entry for the files of a run."""
        return {"file": self.file, "sha256": self.sha256, "adds": self.adds}


PLUGINS: list[Plugin] = []  # loaded in this process


def load_plugin(path: Path) -> Plugin:
    """Execute a Python file of the user that registers adapter types or learners.

    Raises:
        UserError: The file is missing, fails, or registers nothing.
    """
    if not path.is_file():
        raise UserError(f"--plugin {path}: no such file{seen_from(path)}")
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
    plugin = Plugin(file, path.name, hashlib.sha256(path.read_bytes()).hexdigest(), adds)
    if plugin not in PLUGINS:
        PLUGINS.append(plugin)
    return plugin


def require_plugins(recorded: object, source: str, *, unchanged: bool) -> None:
    """Check that the plug-ins of a run or checkpoint are loaded.

    Args:
        recorded: `plugins` in the run's environment.json or in a checkpoint; None: no plug-ins.
        source: Name of the run or checkpoint in messages.
        unchanged: Whether a plug-in with another content is an error; otherwise it is a warning.

    Raises:
        UserError: A file is not loaded, or has changed.
    """
    loaded = {plugin.file: plugin.sha256 for plugin in PLUGINS}
    for entry in recorded if isinstance(recorded, list) else []:
        file, sha256 = (str(entry.get(key)) for key in ("file", "sha256")) if isinstance(entry, dict) else ("?", "?")
        if file not in loaded:
            made = f"{source} was made with the plug-in {shown(file)} (SHA-256 {sha256[:16]})"
            raise UserError(f"{made}; name that file with --plugin {file}")
        if loaded[file] != sha256:
            problem = f"--plugin {file}: its content has changed since {source} was made with it"
            if unchanged:
                raise UserError(f"{problem}; expected SHA-256 {sha256[:16]}, found {loaded[file][:16]}")
            logger.warning("%s", problem)
