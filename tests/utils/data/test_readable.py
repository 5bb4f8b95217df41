"""Reading many files by threads."""

import threading
import time
from pathlib import Path

import pytest

from utils.data.readable import READERS, read_all, unreadable
from utils.errors import DataError

FILES = [Path(f"{number}.png") for number in range(40)]


def read(file: Path) -> str:
    if int(file.stem) % 13 == 3:
        time.sleep(0.01)  # others overtake it
    return file.stem


def test_results_come_in_the_order_of_the_files():
    assert read_all(read, FILES, "reading") == [str(number) for number in range(40)]
    assert read_all(read, [], "reading") == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DataError])
def test_an_error_ends_it_without_the_rest_of_the_files(kind: type[BaseException]):
    looked_at, before = [], threading.active_count()

    def interrupted(file: Path) -> None:
        looked_at.append(file)
        time.sleep(0.01)
        raise kind

    with pytest.raises(kind):
        read_all(interrupted, FILES * 50, "reading")
    assert len(looked_at) < 20 * READERS
    assert threading.active_count() == before


def test_bad_files_come_in_order_with_their_messages():
    def broken(file: Path) -> None:
        if int(file.stem) % 13 == 3:
            time.sleep(0.01)
            raise DataError(f"{file}: broken")

    assert list(unreadable(FILES, broken).items()) == [(Path(f"{n}.png"), f"{n}.png: broken") for n in (3, 16, 29)]
