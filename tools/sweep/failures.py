"""The record of the runs that failed: tables name them, and a later call says that it tries them again."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.errors import AFTER_DIVERGENCE, UserError
from utils.files import write_json
from utils.json_file import read_object


@dataclass(frozen=True)
class Failure:
    """A run that failed: how it ended, the last line of its output, and where the whole output is."""

    configuration: str
    seed: int
    ended: str
    error: str
    log: str

    @property
    def diverged(self) -> bool:
        """Return whether its loss or a parameter was not finite, by the end of its output."""
        with suppress(OSError):
            return AFTER_DIVERGENCE in Path(self.log).read_text(errors="replace")
        return False


def read_failures(file: Path) -> dict[str, Failure]:
    """Return the failures of earlier calls, by the name of the run; none if the file is missing or damaged."""
    with suppress(UserError, TypeError):
        return {name: Failure(**entry) for name, entry in read_object(file)[0].items()}  # type: ignore[arg-type]
    return {}


def write_failures(file: Path, failures: Mapping[str, Failure]) -> None:
    """Write what `read_failures` reads. On a full disk the runs matter more than this record of them."""
    with suppress(OSError):
        write_json(file, {name: asdict(failure) for name, failure in failures.items()})
