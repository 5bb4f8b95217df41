"""Where a PILOT-style log contradicts itself, in plain sentences."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import fmean

from tools.pilot.log import Row, Segment
from tools.pilot.matrix import HALF, Label, Reading


def notes(reading: Reading) -> list[str]:
    """Everything in one run of a log that does not fit together, in the order of `CHECKS`."""
    return [*reading.segment.notes, *(note for check in CHECKS for note in check(reading))]


def _missing(reading: Reading) -> Iterator[str]:
    missing = [str(task) for task, row in enumerate(reading.rows) if row is None]
    if missing:
        yield f"no accuracies by group after task {', '.join(missing)}"
    if reading.surplus:
        lines = ", ".join(str(row.line) for row in reading.surplus)
        yield f"more rows than tasks, as when two runs write into one file: line {lines}"
    expected = _expected_tasks(reading.segment)
    if expected and len(reading.rows) < expected:
        yield f"ends after {len(reading.rows)} of {expected} tasks: the run is not finished"


def _expected_tasks(segment: Segment) -> int | None:
    first, step = (segment.config.get(key) for key in ("init_cls", "increment"))
    if not isinstance(first, int) or not isinstance(step, int) or step < 1 or segment.nb_classes is None:
        return None
    return 1 + math.ceil(max(segment.nb_classes - (first if first > 0 else step), 0) / step)


def _unknown_tasks(reading: Reading) -> Iterator[str]:
    if not reading.ends and reading.segment.rows:
        yield "its groups of classes cannot be told apart by task, so nothing that needs the matrix is given"
    for task, row in reading.present:
        split = len({reading.task_of(label) for label in row.groups}) < len(row.groups)
        if reading.ends and split and not reading.is_balanced(row):
            yield (
                f"task {task} (line {row.line}): a task's groups do not add up to the total by their classes, so its "
                "accuracy is not known"
            )


def _groups(reading: Reading) -> Iterator[str]:
    before: set[Label] = set()
    for task, row in reading.present:
        where = f"task {task} (line {row.line})"
        if lost := before - row.groups.keys():
            yield f"{where}: group {_spelled(reading, sorted(lost))} of an earlier task is not there"
        if reading.ends and task not in {reading.task_of(label) for label in row.groups}:
            yield f"{where}: the new classes have no group; their accuracy is taken from `new`"
        before |= row.groups.keys()
    last = reading.segment.nb_classes
    if last and (beyond := [label for label in reading.segment.labels if label[1] >= last]):
        yield f"group {_spelled(reading, beyond)} goes beyond the last class, {last - 1}"


def _spelled(reading: Reading, labels: Sequence[Label]) -> str:
    return ", ".join(reading.segment.names[label] for label in labels)


def _ranges(reading: Reading) -> Iterator[str]:
    """A total lies between its parts, `old` between the old groups, and `new` is the new group."""
    for task, row in reading.present:
        where = f"task {task} (line {row.line})"
        values = [value for value in (*row.groups.values(), row.total, row.old, row.new) if value is not None]
        if not all(0 <= value <= 100 for value in values):
            yield f"{where}: percentages outside 0 to 100"
        for name, value, of in (
            ("total", row.total, _of_tasks(reading, row, range(task + 1))),
            ("old", row.old, _of_tasks(reading, row, range(task))),
            ("new", row.new, _of_tasks(reading, row, range(task, task + 1))),
        ):
            if value is not None and of and not min(of) - HALF <= value <= max(of) + HALF:
                yield f"{where}: {name} {value} lies outside its groups, {min(of)} to {max(of)}"


def _of_tasks(reading: Reading, row: Row, tasks: range) -> list[float]:
    """Accuracies of the groups of some tasks; none if a task has no group, as then they bound nothing."""
    known = {label: value for label, value in row.groups.items() if value is not None}
    covered = {reading.task_of(label) for label in known}
    if not reading.ends or not covered >= set(tasks):
        return []
    return [value for label, value in known.items() if reading.task_of(label) in tasks]


def _curves(reading: Reading) -> Iterator[str]:
    for task, row in reading.present:
        where = f"task {task} (line {row.line})"
        if row.curve and row.total is not None and abs(row.curve[-1] - row.total) > HALF:
            yield f"{where}: the curve ends with {row.curve[-1]}, the groups' total is {row.total}, which counts"
        if row.curve and reading.ends and len(row.curve) != task + 1:
            yield f"{where}: the curve has {len(row.curve)} points instead of {task + 1}"
    for (_, before), (line, now) in pairwise(reading.segment.top1):
        if now[: len(before)] != before:
            yield f"line {line}: the curve does not go on from the one before: a resumed run, or two runs in one file"
    for (line, top1), (_, top5) in zip(reading.segment.top1, reading.segment.top5, strict=False):
        if len(top1) == len(top5) and any(b < a - HALF for a, b in zip(top1, top5, strict=True)):
            yield f"line {line}: top-5 below top-1"


def _average(reading: Reading) -> Iterator[str]:
    printed, curve = reading.segment.average, reading.segment.curve
    if printed is not None and curve and abs(printed - fmean(curve)) > HALF:
        yield f"prints average accuracy {printed:.2f}, but the mean of its curve is {fmean(curve):.2f}"


def _nme(reading: Reading) -> Iterator[str]:
    if reading.segment.has_nme:
        yield "also has accuracies by nearest mean of exemplars (NME), which are not read"


def _printed_matrix(reading: Reading) -> Iterator[str]:
    printed = reading.segment.matrix
    tables = _tables(reading)
    if not printed or tables is None or _is_table(printed, tables[0]):
        return
    if _is_table(printed, tables[1]):
        yield f"prints its accuracy matrix with the groups sorted as text ({_inversion(reading)})"
    else:
        yield "prints an accuracy matrix that is not the one of its `CNN: {...}` lines"


def _printed_forgetting(reading: Reading) -> Iterator[str]:
    """Theirs is the maximum over all rows, the last one too, minus the last; ours leaves the last row out."""
    printed, tables = reading.segment.forgetting, _tables(reading)
    if printed is None or tables is None or len(reading.rows) < 2:
        return
    by_number, as_text = (_their_forgetting(table) for table in tables)
    ours = 100 * reading.matrix.forgetting
    if min(abs(printed - by_number), abs(printed - ours)) <= HALF:
        return
    if abs(printed - as_text) <= HALF:
        yield (
            f"prints forgetting {printed:.2f}, which comes of sorting the groups as text ({_inversion(reading)}); "
            f"sorted by number its formula gives {by_number:.2f}, ours {ours:.2f}"
        )
    else:
        yield (
            f"prints forgetting {printed:.2f}, which does not follow from its groups: its formula gives "
            f"{by_number:.2f}, ours {ours:.2f}"
        )


def _tables(reading: Reading) -> tuple[list[list[float]], list[list[float]]] | None:
    """The table [group][task] as such a code base makes it, groups sorted by number, and sorted as text.

    Every row is put down in the order of its own groups, with zeros behind: sorted as text, 100-109 pushes the later
    groups of its row one place on. None where the log cannot be in that form.
    """
    rows = [row for row in reading.rows if row]
    width = max((len(row.groups) for row in rows), default=0)
    if not width or len(rows) < len(reading.rows) or width > len(rows):
        return None
    if any(value is None for row in rows for value in row.groups.values()):
        return None
    names = reading.segment.names
    orders: tuple[Callable[[Label], tuple[int, int] | str], ...] = (lambda label: label, lambda label: names[label])
    by_number, as_text = (_table(rows, order) for order in orders)
    return by_number, as_text


def _table(rows: Sequence[Row], order: Callable[[Label], tuple[int, int] | str]) -> list[list[float]]:
    size = len(rows)
    columns = [[row.groups[label] or 0.0 for label in sorted(row.groups, key=order)] for row in rows]
    padded = [[*column, *[0.0] * (size - len(column))] for column in columns]
    return [[padded[task][group] for task in range(size)] for group in range(size)]


def _their_forgetting(table: list[list[float]]) -> float:
    return fmean(max(row) - row[-1] for row in table[:-1])


def _is_table(printed: list[list[float]], table: list[list[float]]) -> bool:
    """Whether a printed matrix is the table: as it is, with tasks as rows, or that without its zeros."""
    by_task = [list(row) for row in zip(*table, strict=True)]
    forms = (table, by_task, [row[: t + 1] for t, row in enumerate(by_task)])
    return any(_equal(printed, form) for form in forms)


def _equal(a: list[list[float]], b: list[list[float]]) -> bool:
    if [len(row) for row in a] != [len(row) for row in b]:
        return False
    pairs = (pair for rows in zip(a, b, strict=True) for pair in zip(*rows, strict=True))
    return all(abs(x - y) <= HALF for x, y in pairs)


def _inversion(reading: Reading) -> str:
    """The first two groups that stand the wrong way round when sorted as text."""
    names = reading.segment.names
    ordered = sorted(reading.segment.labels, key=lambda label: names[label])
    first, second = next((a, b) for a, b in pairwise(ordered) if a > b)
    return f"{names[first]} before {names[second]}"


CHECKS: tuple[Callable[[Reading], Iterator[str]], ...] = (
    _missing,
    _unknown_tasks,
    _groups,
    _ranges,
    _curves,
    _average,
    _printed_matrix,
    _printed_forgetting,
    _nme,
)
