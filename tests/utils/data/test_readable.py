"""The look at all files of a data set before anything uses them."""

import threading
import time
from pathlib import Path

import pytest

from utils.data.readable import READERS, unreadable
from utils.errors import DataError

FILES = [Path(f"{number}.png") for number in range(40)]


def read(file: Path) -> None:
    if int(file.stem) % 13 == 3:
        time.sleep(0.01)  # others overtake it
        raise DataError(f"{file}: broken")


def test_bad_files_come_in_order_whoever_is_first():
    assert list(unreadable(FILES, read).items()) == [(Path(f"{n}.png"), f"{n}.png: broken") for n in (3, 16, 29)]


def test_nothing_to_look_at_is_nothing_bad():
    assert unreadable([], read) == {}


def test_an_error_of_another_kind_ends_it_without_the_rest_of_the_files():
    looked_at, before = [], threading.active_count()

    def interrupted(file: Path) -> None:
        looked_at.append(file)
        time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unreadable(FILES * 50, interrupted)
    assert len(looked_at) < 20 * READERS
    assert threading.active_count() == before
