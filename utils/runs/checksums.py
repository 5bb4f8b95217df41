"""The checksums of a run's files, which tell later whether a file is still as the run wrote it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.runs.directory import LOCK, RESULTS, STATES

NOT_COUNTED = (RESULTS, LOCK, "log.txt")  # written after the checksums, or never read
FOLDERS_NOT_COUNTED = tuple(f"{folder}/" for folder in (STATES, "tensorboard", "wandb"))


def checksums(path: Path, results: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 (hex) of every file of a run, by its path within the run.

    Args:
        path: The run's directory.
        results: What results.json holds. It counts as canonical JSON without its key `run`, which holds the checksums.
    """
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    counted = {
        name: _sha256(file.read_bytes())
        for name, file in files.items()
        if name not in NOT_COUNTED and not name.startswith(FOLDERS_NOT_COUNTED)
    }
    own = {key: value for key, value in results.items() if key != "run"}
    canonical = json.dumps(own, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**counted, RESULTS: _sha256(canonical.encode())}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
