"""What `benchmarks.growth` measured, as tables."""

from typing import Any

from benchmarks.timing import Report, described
from tools.generated import markdown_table

NOTE = (
    "Times are ratios to those of the first line. What stays in memory is all tensors there are, the network's own "
    "among them."
)
MIB = 2**20


def tables(report: Report) -> str:
    """Where it was measured, the growth with tasks, and that with adapters."""
    return "\n".join([f"{described(report)} {NOTE}\n", task_table(report), adapter_table(report)])


def task_table(report: Report) -> str:
    """A line for each number of tasks; the first is the unit of the times."""
    rows, first = report["tasks"], next(iter(report["tasks"].values()))
    header = ["tasks", "training a task", "evaluating an image", "peak MiB of training", "MiB that stay", "kept images"]
    return markdown_table(header, [[number, *_task_cells(row, first)] for number, row in rows.items()])


def _task_cells(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    times = [f"{row[name] / first[name]:.2f}" for name in ("training", "evaluation")]
    return [*times, _mib(row["peak"], 0), _mib(row["tensors"], 3), _mib(row["cache"], 1)]


def adapter_table(report: Report) -> str:
    """A line for each number of adapters at a layer; the first is the unit of the times."""
    rows, first = report["adapters"], next(iter(report["adapters"].values()))
    header = ["adapters at a layer", *first, "peak MiB of a func step"]
    return markdown_table(header, [[number, *_adapter_cells(row, first)] for number, row in rows.items()])


def _adapter_cells(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    times = [f"{cost['seconds'] / first[name]['seconds']:.2f}" for name, cost in row.items()]
    return [*times, _mib(row["func step"]["memory"], 0)]


def _mib(size: int | None, digits: int) -> str:
    return "" if size is None else f"{size / MIB:,.{digits}f}"
