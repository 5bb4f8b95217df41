"""The checksums of a run's files, by which a later look finds what is not as the run wrote it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.runs.directory import LOCK, RESULTS, STATES

NOT_COUNTED = (RESULTS, LOCK, "log.txt")  # written after the checksums, or never read
FOLDERS_NOT_COUNTED = tuple(f"{folder}/" for folder in (STATES, "tensorboard", "wandb"))


def checksums(path: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file of a run's record, by its path within the run; results.json is not among them."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    named = ((file.relative_to(path).as_posix(), file) for file in files)
    return {
        name: _sha256(file.read_bytes())
        for name, file in named
        if name not in NOT_COUNTED and not name.startswith(FOLDERS_NOT_COUNTED)
    }


def results_checksum(results: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of everything in results.json but its key `run`."""
    own = {key: value for key, value in results.items() if key != "run"}
    return _sha256(json.dumps(own, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
