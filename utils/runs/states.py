"""The saved states of an unfinished run: files with a checksum, of which the newest two are kept.

A file has a line that names the format, a line with the SHA-256 of the rest, and the state as torch.save writes it.
Older files are removed only after a new one is complete.
"""

import hashlib
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files import atomic_write

logger = logging.getLogger(__name__)

FORMAT = b"nested-sema-state-1\n"
KEPT = 2


class StateError(UserError):
    """A saved state cannot be used."""


class SavedStates:
    """The states of one run, in a folder that holds nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unusable: list[Path] = []

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state. Of the older states, keep only the newest that `newest` did not reject.

        Raises:
            OSError: The state cannot be written; the older states are unchanged.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        files = self._files()
        number = int(files[0].stem) + 1 if files else 0
        digest = hashlib.sha256(payload).hexdigest().encode()
        atomic_write(self.folder / f"{number:06d}.state", b"".join((FORMAT, digest, b"\n", payload)))
        useful = [file for file in files if file not in self._unusable]
        for old in [*self._unusable, *useful[KEPT - 1 :]]:
            old.unlink(missing_ok=True)
        self._unusable = []

    def newest(self, check: Callable[[dict[str, Any]], None] = lambda state: None) -> dict[str, Any] | None:
        """Return the newest state that can be read and passes the check, which raises a StateError for an unusable one.

        Log a warning for each state that is skipped.
        """
        for file in self._files():
            try:
                state = read_state(file)
                check(state)
                return state
            except StateError as error:
                logger.warning("%s: %s; using the state before it", file, error)
                self._unusable.append(file)
        return None

    def __bool__(self) -> bool:
        """Return whether there are any files, even damaged ones."""
        return bool(self._files())

    def _files(self) -> list[Path]:
        """Return the files, newest first."""
        return sorted((file for file in self.folder.glob("*.state") if file.stem.isdigit()), reverse=True)


def read_state(file: Path) -> dict[str, Any]:
    """Read one state. No code in the file is run.

    Raises:
        StateError: The file is damaged or not a state. The message does not name it.
    """
    try:
        content = file.read_bytes()
        digest, _, payload = content.removeprefix(FORMAT).partition(b"\n")
        if not content.startswith(FORMAT) or hashlib.sha256(payload).hexdigest().encode() != digest:
            raise ValueError("its checksum is wrong")
        state = torch.load(io.BytesIO(payload), "cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # with a forged checksum, torch.load can fail in any way
        raise StateError(f"cannot be read: {error}") from error
