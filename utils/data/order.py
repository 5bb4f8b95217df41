"""The classes that a configuration lists, as stored labels: the keys `class_order` and `tasks`."""

from collections.abc import Iterable, Sequence

from utils.errors import ConfigError
from utils.text import did_you_mean, listed, same_name, shown

LONGEST_LABEL = 9  # digits


def whole_order(entries: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Return the stored labels of `class_order`, which has every class once.

    Raises:
        ConfigError: A class is unknown, listed twice or missing.
    """
    order = stored_labels("class_order", entries, names)
    if missing := [name for label, name in enumerate(names) if label not in set(order)]:
        lacks = f"{len(missing)} of the {len(names)} classes are missing: {listed(missing)}"
        raise ConfigError(f"class_order: {lacks}; expected every class; the key tasks can leave classes out")
    return order


def order_of_tasks(tasks: Sequence[Sequence[int | str]], names: Sequence[str]) -> list[int]:
    """Return the stored labels of `tasks`, task after task, then the classes of no task in their stored order.

    Raises:
        ConfigError: A class is unknown or listed twice.
    """
    order = stored_labels("tasks", [entry for task in tasks for entry in task], names)
    return order + [label for label in range(len(names)) if label not in set(order)]


def stored_labels(key: str, entries: Iterable[int | str], names: Sequence[str]) -> list[int]:
    """Return the stored labels of listed classes. Text is a name or, if no class has that name, a label.

    Raises:
        ConfigError: A class is unknown or listed twice.
    """
    by_name = {same_name(name): label for label, name in enumerate(names)}
    found: dict[int, int | str] = {}
    for entry in entries:
        label = by_name.get(same_name(entry)) if isinstance(entry, str) else entry
        if label is None and str(entry).isdecimal() and len(str(entry)) <= LONGEST_LABEL:
            label = int(entry)
        if label is None or label >= len(names):
            expected = f"expected the name of one of its {len(names)} classes, or a label from 0 to {len(names) - 1}"
            near = did_you_mean(entry, names) if isinstance(entry, str) else ""
            raise ConfigError(f"{key}: {shown(entry)}: the data set has no such class; {expected}{near}")
        if label in found:
            twice = f"{shown(names[label])} (label {label}) is listed twice"
            as_both = "" if found[label] == entry else f", as {shown(found[label])} and as {shown(entry)}"
            raise ConfigError(f"{key}: {twice}{as_both}; expected each class once")
        found[label] = entry
    return list(found)
