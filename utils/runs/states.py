"""The states of an unfinished run: files with a checksum, of which the newest two are kept.

A file is a line that names the format, a line with the SHA-256 of what follows, and what torch.save makes of the state.
It is written under another name, flushed and renamed, and the one before goes only after that: whatever happens, a
complete one is there.
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
    """No saved state can be used."""


def accept(state: dict[str, Any]) -> None:
    """The check that every state passes."""


class SavedStates:
    """The states of one run.

    Args:
        folder: Theirs alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._passed_over: list[Path] = []

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state, and remove those before the one before, and those that `newest` passed over.

        Raises:
            OSError: It cannot be written; the states that were there are as they were.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        files = self._files()
        number = int(files[0].stem) + 1 if files else 0
        digest = hashlib.sha256(payload).hexdigest().encode()
        atomic_write(self.folder / f"{number:06d}.state", b"".join((FORMAT, digest, b"\n", payload)))
        useful = [file for file in files if file not in self._passed_over]
        for old in [*self._passed_over, *useful[KEPT - 1 :]]:
            old.unlink(missing_ok=True)
        self._passed_over = []

    def newest(self, check: Callable[[dict[str, Any]], None] = accept) -> dict[str, Any] | None:
        """The newest state that is whole and passes the check; of each that does not a warning is logged.

        Args:
            check: Raises StateError, and says why, for a state that is whole and yet of no use.
        """
        for file in self._files():
            try:
                state = read_state(file)
                check(state)
                return state
            except StateError as error:
                logger.warning("%s: %s; going back to the state before", file, error)
                self._passed_over.append(file)
        return None

    def __bool__(self) -> bool:
        """Whether there are any files, whole or not."""
        return bool(self._files())

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted((file for file in self.folder.glob("*.state") if file.stem.isdigit()), reverse=True)


def read_state(file: Path) -> dict[str, Any]:
    """Read one state, without running any code that is in the file.

    Raises:
        StateError: It is cut off, altered, or no state; the file is for the caller to name.
    """
    try:
        content = file.read_bytes()
        digest, _, payload = content.removeprefix(FORMAT).partition(b"\n")
        if not content.startswith(FORMAT) or hashlib.sha256(payload).hexdigest().encode() != digest:
            raise StateError("damaged, it does not have the checksum it was written with")
        state = torch.load(io.BytesIO(payload), "cpu", weights_only=True)
    except StateError:
        raise
    except Exception as error:  # whoever forges a checksum can have torch.load fail in any way
        raise StateError(f"cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise StateError(f"holds no state but a {type(state).__name__}")
    return state
