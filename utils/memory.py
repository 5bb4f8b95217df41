"""Sizes of memory: the unit of bounds, and how much a file may claim before it is believed."""

import os

GIB = 2**30


def memory() -> int:
    """The machine's memory, bytes: what needs more cannot be meant."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
