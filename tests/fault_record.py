"""What a fault test injects: a row of docs/reliability.md."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        what: What goes wrong.
        how: How the test makes it go wrong.
    """

    what: str
    how: str


def fault(what: str, how: str) -> Callable[[Test], Test]:
    """Attach a fault to the test that injects it, as its attribute `fault`."""

    def attach(test: Test) -> Test:
        test.fault = Fault(what, how)  # type: ignore[attr-defined]
        return test

    return attach
