"""Which files of a data set cannot be read as images, found out before anything is trained on the others."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from utils.config_text import writable
from utils.images import DataError, check_header
from utils.runlog import progress

SHOWN = 8  # files that a message names before it says how many more there are
READERS = 8  # threads; PIL decodes without holding Python's lock


def unreadable(files: Sequence[Path], read: Callable[[Path], object]) -> dict[Path, str]:
    """The files that cannot be read, in their order, with what is wrong with each.

    Args:
        files: What to look at.
        read: `check_header` for a look at the first bytes, `open_image` to decode every pixel.
    """
    pool = ThreadPoolExecutor(READERS)
    try:
        problems = list(progress(pool.map(partial(_problem, read), files), "checking images", len(files)))
    finally:
        pool.shutdown(cancel_futures=True)  # or an interrupt would have to wait for the whole data set
    return {file: problem for file, problem in zip(files, problems, strict=True) if problem}


def refuse_unreadable(files: Sequence[Path]) -> None:
    """Look at the first bytes of all files.

    Raises:
        DataError: Some are no images; the message names them, a line for each.
    """
    if bad := list(unreadable(files, check_header).values()):
        more = [f"and {len(bad) - SHOWN} more files"] if len(bad) > SHOWN else []
        hint = "mend or remove them, or let on_bad_image be skip, which leaves out what cannot be read"
        raise DataError("\n".join([*bad[:SHOWN], *more, hint]))


def _problem(read: Callable[[Path], object], file: Path) -> str:
    """What is wrong with a file, which the text names; empty if nothing is."""
    try:
        read(file)
    except DataError as error:
        return writable(str(error))
    return ""
