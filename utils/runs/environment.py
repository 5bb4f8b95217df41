"""The environment of a run: versions, machine, commit and command line."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "numpy")
PROJECT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, Any]:
    """Return versions, machine, commit and command line of this process. Unknown values are None."""
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        **commit_state(PROJECT),
        "lock": lock_hash(PROJECT),
        "command": shlex.join(sys.orig_argv),
    }


def lock_hash(folder: Path) -> str | None:
    """Return the SHA-256 (hex) of requirements.lock, or None if there is none."""
    lock = folder / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None


def reproduce_line(begun: Mapping[str, Any]) -> str:
    """Return the command that repeats a run, from the `environment` in which it was started."""
    changes = ", with uncommitted changes" if begun["dirty"] else ""
    return f"{begun['command']}  # at commit {begun['commit']}{changes}, requirements.lock {begun['lock']}"


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
