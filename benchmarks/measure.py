"""What a piece of work costs in time, multiply-adds and memory, and what the machine can do at best."""

import ctypes
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.graphs import unrecorded

Work = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)
Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK_NAMES: dict[Clock, str] = {"wall": "wall-clock time", "cpu": "CPU time of all threads"}
LARGEST = {"cpu": 2048, "cuda": 8192}  # rows of a matrix that fills the device
RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """What one run of a work takes.

    Attributes:
        seconds: The best of all rounds.
        multiply_adds: Of its matrix products and convolutions, forwards and backwards.
        memory: Bytes at its peak beyond what was held before it; None where that cannot be asked.
    """

    seconds: float
    multiply_adds: int
    memory: int | None


@dataclass(frozen=True)
class Timer:
    """Times a work on a device.

    Attributes:
        device: What has to be finished before the time is taken.
        clock: "wall", or "cpu": processor time of this process, all threads together. With one thread that is the wall
            time of a machine that does nothing else.
        repeats: Runs between two looks at the clock; several, where a device works on while the host prepares more.
    """

    device: torch.device
    clock: Clock = "wall"
    repeats: int = 1

    def __call__(self, work: Work) -> float:
        """Seconds of one run."""
        finish(self.device)
        started = CLOCKS[self.clock]()
        for _ in range(self.repeats):
            work()
        finish(self.device)
        return (CLOCKS[self.clock]() - started) / self.repeats


def quiet_timer(device: torch.device) -> Timer:
    """A timer by the clock that other processes on the machine disturb least."""
    return Timer(device, "cpu" if device.type == "cpu" else "wall")


def finish(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_of(works: Mapping[Key, Work], rounds: int, timer: Timer) -> dict[Key, float]:
    """Seconds of each work, the best of several rounds.

    In a round all of them run once, one after the other: whatever slows the machine for a while meets them all.
    """
    times = [{key: timer(work) for key, work in works.items()} for _ in range(rounds)]
    return {key: min(taken[key] for taken in times) for key in works}


def costs(works: Mapping[Key, Work], rounds: int, timer: Timer) -> dict[Key, Cost]:
    """What each work costs; counted once, then once for its memory, then timed."""
    counted = {key: multiply_adds(work) for key, work in works.items()}
    memory = {key: peak_memory(work, timer.device) for key, work in works.items()}
    seconds = best_of(works, rounds, timer)
    return {key: Cost(seconds[key], counted[key], memory[key]) for key in works}


def multiply_adds(work: Work) -> int:
    """Multiply-adds of a work's matrix products and convolutions, by torch's own counter."""
    # The counter knows the products of plain attention, not those inside the CPU's fused one.
    with unrecorded(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops()) // 2


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Bytes a work holds at its peak beyond what was held before; None where neither CUDA nor Linux can tell."""
    if device.type == "cuda":
        finish(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    return _resident_peak(work) if RESET_PEAK.exists() else None


def _resident_peak(work: Work) -> int:
    from resource import RUSAGE_SELF, getrusage  # only where there is such a thing

    ctypes.CDLL(None).malloc_trim(0)  # what earlier works freed and the allocator kept would hide what this one needs
    RESET_PEAK.write_text("5")  # proc(5): the peak becomes what is resident now
    before = getrusage(RUSAGE_SELF).ru_maxrss
    work()
    return 1024 * (getrusage(RUSAGE_SELF).ru_maxrss - before)


def products(device: torch.device, dtype: torch.dtype) -> dict[str, Work]:
    """Products of two square matrices, by their rows: the fastest shows what the machine can do."""
    rows = [LARGEST[device.type] // part for part in (1, 2, 4)]
    factors = {str(n): torch.randn(n, n, device=device, dtype=dtype) for n in rows}
    return {n: partial(torch.mm, x, x) for n, x in factors.items()}
