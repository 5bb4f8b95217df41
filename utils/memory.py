"""Sizes as text, the unit of memory limits, and the memory and processor cores of this machine."""

import os

GIB = 2**30
SIZES = {"GiB": GIB, "MiB": 2**20, "KiB": 2**10}


def memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def size_text(size: float) -> str:
    """Return bytes as text, such as `1.3 GiB`."""
    unit = next((name for name, factor in SIZES.items() if size >= factor), "KiB")
    number = size / SIZES[unit]
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
