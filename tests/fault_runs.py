"""What the fault tests have in common: the run most of them end, and how they speak of runs that ended."""

from collections.abc import Callable
from pathlib import Path

from preloaded import Started
from tiny_runs import KINDS

KEYS = {**KINDS["weights"], "max_tasks": 2, "func_epoch": 2, "rd_epoch": 2}
IN_A_FILE = {"views": 2, "views_gib": 0.0, "views_disk_gib": 1.0}
NO_HEADROOM = "import models.views; models.views.HEADROOM = 0\n"  # on a small disk
Ended = Callable[[Started], tuple[int, str]]
Whole = Callable[..., Path]
Observe = Callable[..., None]


def contents(path: Path) -> dict[str, bytes]:
    """What a run directory holds, but for what every process that comes writes or sweeps."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name not in ("log.txt", ".lock")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.suffix != ".tmp"}
