"""The unit of memory limits, and the memory of this machine."""

import os

GIB = 2**30


def memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
