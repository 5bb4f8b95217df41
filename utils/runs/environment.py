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
PROJECT = Path(__file__).resolve().parents[2]
CPUINFO = Path("/proc/cpuinfo")
BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "bf16": "BF16", "sve_bf16": "SVE_BF16"}  # by its flags


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


def processor() -> str:
    """Return the name of the processor and, where the system tells, its units for bfloat16."""
    with suppress(OSError):
        listing = CPUINFO.read_text(errors="replace")
        entries: dict[str, str] = dict(re.findall(r"^(.*\S)\s*: (.*)$", listing, re.MULTILINE))
        flags = entries.get("flags", entries.get("Features", "")).split()  # on x86, on ARM
        units = " and ".join(unit for flag, unit in BF16_UNITS.items() if flag in flags)
        return f"{entries.get('model name', platform.machine())}, {f'with {units}' if units else 'without bf16 units'}"
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]  # of macOS
    with suppress(OSError, subprocess.SubprocessError):
        if name := subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip():
            return name
    return platform.processor() or platform.machine()


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
    """Return the commit of a folder, and whether tracked files differ from it (`dirty`).

    Both are None without git or a commit, and in a folder that is no repository of its own, but lies within another.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    # Untracked files do not count: they may be results of earlier runs.
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", f"--git-dir={folder / '.git'}", f"--work-tree={folder}", *arguments]
    # GIT_DIR, GIT_INDEX_FILE and the like name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
