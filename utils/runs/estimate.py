"""What runs are going to take, as text: images, steps, time, memory and disk (the key `plan`). Imports no torch.

How many adapters are added is decided by the data. What depends on it is given as a range: from no expansion after the
first task to one in every expandable layer in every task.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from utils.memory import SIZES, size_text
from utils.progress import duration, seconds_of

COLUMNS = ("task", "training images", "test images", "func steps", "rd steps", "time")
TIME, MEMORY, GPU, DISK = "time of a run", "memory", "memory of the GPU", "disk of a run"
NOT_TIMED = "start-up, downloads and the writing of checkpoints are not in it; other programs on the machine add to it"


class Span(NamedTuple):
    """A value without any expansion after the first task, and with the most expansions."""

    low: float
    high: float


def total(spans: Iterable[Span]) -> Span:
    """Return the sum of the low and of the high values."""
    lows, highs = zip(*spans, strict=True)
    return Span(sum(lows), sum(highs))


class TaskEstimate(NamedTuple):
    """A task of a run: training images, images that are scored after it, optimizer steps, seconds."""

    train: int
    test: int
    func: Span
    rd: Span
    seconds: Span


class Totals(NamedTuple):
    """A run: seconds, bytes of memory, bytes on disk when it is finished."""

    seconds: Span
    memory: Span
    disk: Span


@dataclass(frozen=True)
class Estimate:
    """What a run and its seeds are going to take.

    Attributes:
        tasks: Of the first seed.
        totals: Of the first seed.
        layers: Number of expandable layers.
        shares: The fraction of the time for training, for evaluations and readouts, and of both for loading images.
        memory: What the memory is needed for, and bytes.
        gpu: Bytes of the GPU's memory; 0 without a GPU.
        on_disk: Bytes of the run directory before the run is finished, at most.
        seeds: Seconds of all seeds together; None: there is one.
        measured: How the time was measured.
    """

    tasks: Sequence[TaskEstimate]
    totals: Totals
    layers: int
    shares: tuple[Span, Span, Span]
    memory: Sequence[tuple[str, float]]
    gpu: float
    on_disk: float
    seeds: tuple[int, Span] | None
    measured: str

    def __str__(self) -> str:
        training, scoring, loading = (span_text(share, "{:.0%}".format) for share in self.shares)
        seconds, memory, disk = self.totals
        parts = ", ".join(f"{what} {size_text(size)}" for what, size in self.memory if size)
        lines = [
            *_table(self.tasks),
            f"{TIME}: about {time_text(seconds)}",
            f"  training {training}, evaluations, readouts and features {scoring}; of both, loading images {loading}",
            f"{MEMORY}: about {sizes_text(memory)}",
            f"  {parts}",
            *([f"{GPU}: about {size_text(self.gpu)}"] if self.gpu else []),
            f"{DISK}: about {sizes_text(disk)} when it is finished, at most {size_text(self.on_disk)} before",
            self.measured,
            NOT_TIMED,
        ]
        if self.layers and len(self.tasks) > 1:
            lines.append(
                "ranges: the data decide how many adapters are added, from none after task 0 to one in each of "
                f"{self.layers} layers in every task"
            )
        if self.seeds:
            number, every = self.seeds
            all_disk = Span(*(number * bytes_ for bytes_ in disk))
            lines.append(f"{number} seeds, one after the other: about {time_text(every)}, disk {sizes_text(all_disk)}")
        return "\n".join(lines)


def _table(tasks: Sequence[TaskEstimate]) -> list[str]:
    rows: list[tuple[str, ...]] = [COLUMNS]
    whole = TaskEstimate(
        sum(task.train for task in tasks),
        sum(task.test for task in tasks),
        *(total(getattr(task, name) for task in tasks) for name in ("func", "rd", "seconds")),
    )
    for name, task in [*((str(number), task) for number, task in enumerate(tasks)), ("all", whole)]:
        steps = (span_text(span, "{:,.0f}".format) for span in (task.func, task.rd))
        rows.append((name, f"{task.train:,}", f"{task.test:,}", *steps, time_text(task.seconds)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def span_text(span: Span, show: Callable[[float], str]) -> str:
    """Return `low to high`, or one of them if they look alike."""
    low, high = map(show, span)
    return low if low == high else f"{low} to {high}"


def time_text(span: Span) -> str:
    """Return a time or a range of times."""
    return span_text(span, duration)


def sizes_text(span: Span) -> str:
    """Return a size or a range of sizes."""
    return span_text(span, size_text)


def read_totals(text: str) -> Totals:
    """Return the totals that the text of an `Estimate` states; raise ValueError if it is of something else."""
    found = [
        re.search(rf"^{name}: about (.+?)(?: to (.+?))?(?: when .*)?$", text, re.M) for name in (TIME, MEMORY, DISK)
    ]
    if None in found:
        raise ValueError("not an estimate of a run")
    seconds, memory, disk = ([m[1], m[2] or m[1]] for m in found if m)
    return Totals(Span(*map(seconds_of, seconds)), Span(*map(_bytes_of, memory)), Span(*map(_bytes_of, disk)))


def _bytes_of(text: str) -> float:
    number, unit = text.split()
    return float(number.replace(",", "")) * SIZES[unit]
