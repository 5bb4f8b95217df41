"""The environment of a run: versions, machine, commit and command line."""

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.errors import UserError

PACKAGES = ("torch", "torchvision", "timm", "numpy")
CPUINFO = Path("/proc/cpuinfo")
PROJECT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, Any]:
    """Return versions, machine, commit and command line of this process. Unknown values are None."""
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        **commit_state(PROJECT),
        "lock": lock_hash(PROJECT),
        "command": shlex.join(sys.orig_argv),
    }


def processor(listing: Path = CPUINFO) -> str | None:
    """Return the model of the processor, or None if the system does not say it."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]  # of macOS
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip() or None
    return platform.processor() or None


def lock_hash(folder: Path) -> str | None:
    """Return the SHA-256 (hex) of requirements.lock, or None if there is none."""
    lock = folder / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None


def reproduce_line(begun: Mapping[str, Any]) -> str:
    """Return the command that repeats a run, from the `environment` in which it was started."""
    changes = ", with uncommitted changes" if begun["dirty"] else ""
    return f"{begun['command']}  # at commit {begun['commit']}{changes}, requirements.lock {begun['lock']}"


def require_package(name: str, requirement: str) -> ModuleType:
    """Import an optional package.

    Raises:
        UserError: It is not installed; with the command that installs it. A file or folder of that name in the project
            or in the working directory is not the package.
    """
    problem = f"{name} is not installed: pip install '{requirement}'"
    loaded = sys.modules.get(name)  # torch imports wandb
    spec = loaded.__spec__ if loaded else importlib.util.find_spec(name)
    if spec is not None and (found := _not_a_package(spec)):
        raise UserError(f"{problem} ({found} is not the package)")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{problem} ({error})") from None


def _not_a_package(spec: ModuleSpec) -> Path | None:
    """Return where a module lies if it is a folder without code, or in the project or the working directory."""
    places = list(spec.submodule_search_locations or []) or [str(spec.origin)]
    place = Path(places[0]).resolve()
    return place if spec.origin is None or place.parent in (PROJECT, Path.cwd()) else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit_state(folder: Path) -> dict[str, str | bool | None]:
    """Return the commit of a folder, and whether tracked files differ from it (`dirty`). None without git or commit."""
    commit = _git(folder, "rev-parse", "HEAD")
    # Untracked files do not count: they may be results of earlier runs.
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
