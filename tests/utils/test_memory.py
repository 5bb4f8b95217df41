"""The processor cores of this machine, on every system, and sizes as text."""

import os

import pytest

from utils.memory import cores, size_text


def test_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5, 7}, raising=False)
    assert cores() == 3


def test_the_cores_where_no_process_is_bound_to_some(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


SIZES = {0: "0 KiB", 1536: "1.5 KiB", 2**20: "1 MiB", 1.256 * 2**30: "1.26 GiB", 2**40: "1,024 GiB"}


@pytest.mark.parametrize(("size", "text"), SIZES.items())
def test_a_size_is_in_the_largest_unit_that_it_fills(size: float, text: str):
    assert size_text(size) == text
