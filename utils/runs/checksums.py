"""The checksums of a run's files, which show later whether a file has changed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.runs.directory import LOCK, RESULTS, STATES

NOT_COUNTED = {RESULTS, LOCK, "log.txt", STATES, "tensorboard", "wandb"}  # files and folders


def checksums(path: Path, results: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file of a run, by its path in the run's directory.

    Args:
        path: The run's directory.
        results: What results.json holds. Its key `run`, which holds the checksums, does not count.
    """
    files = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    own = {key: value for key, value in results.items() if key != "run"}
    canonical = json.dumps(own, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {
        name.as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in files.items()
        if name.parts[0] not in NOT_COUNTED
    } | {RESULTS: hashlib.sha256(canonical.encode()).hexdigest()}
