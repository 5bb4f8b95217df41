"""What a test of a fault says of itself, for the table of all faults."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        what: What goes wrong.
        how: How the test makes it go wrong.
    """

    what: str
    how: str


def fault(what: str, how: str) -> Callable[[T], T]:
    """Attach a fault to its test, as the attribute `fault`."""

    def attach(test: T) -> T:
        test.fault = Fault(what, how)  # type: ignore[attr-defined]
        return test

    return attach
