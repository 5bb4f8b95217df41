"""The cadence audit: when slow moved, read off its values, and whether that is what the run's configuration says.

The observing half (`CadenceWatch`) knows neither the gate nor the configuration; the judging half (`judge`) knows only
the configuration the run was started with. So an error between them, wherever it is, shows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import AuditError


class CadenceWatch:
    """Notes after which optimizer steps the values of some parameters differ, bitwise, from those before.

    Nothing is transferred to the host until `observed` is asked.

    Args:
        parameters: Those that are watched; none of them may grow while they are.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._changes: list[Tensor] = []
        self._last = self._values() if self.parameters else torch.empty(0)

    def after_step(self) -> None:
        """Look at the values after an optimizer step."""
        if not self.parameters:
            return
        now = self._values()
        self._changes.append((now != self._last).any())
        self._last = now

    @property
    def steps(self) -> int:
        """Optimizer steps looked at."""
        return len(self._changes)

    def observed(self) -> list[int]:
        """The steps, counted from 1, at which a value changed."""
        return [step for step, moved in enumerate(self.moved(), start=1) if moved]

    def restore(self, moved: Iterable[bool]) -> None:
        """Go on after the steps that another watch of the same parameters looked at; their values are what it left.

        Args:
            moved: For each of those steps whether a value changed.
        """
        self._changes = [torch.tensor(change, device=self._last.device) for change in moved]

    def moved(self) -> list[bool]:
        """For each step looked at, whether a value changed."""
        return torch.stack(self._changes).tolist() if self._changes else []

    @torch.no_grad()
    def _values(self) -> Tensor:
        return torch.cat([parameter.reshape(-1) for parameter in self.parameters])


def expected_steps(steps: int, interval: int, mode: str) -> list[int] | None:
    """The steps at which slow is to move: k, 2k, ...; None for "zero_grad", which promises no stillness.

    Args:
        steps: Optimizer steps of the func phase.
        interval: `nested_lora_update_interval_slow`; 0 counts as 1.
        mode: `nested_lora_slow_update`.
    """
    every = max(1, interval)
    return None if mode == "zero_grad" else list(range(every, steps + 1, every))


def judge(event: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A "cadence" event with what was expected and the verdict.

    Args:
        event: `steps` and `observed` of a func phase.
        config: What the run was started with.
    """
    expected = expected_steps(event["steps"], config.nested_lora_update_interval_slow, config.nested_lora_slow_update)
    return {**event, "expected": expected, "passed": expected is None or event["observed"] == expected}


def refuse_failed(event: Mapping[str, Any]) -> None:
    """Stop a run whose cadence is not the configured one.

    Raises:
        AuditError: Names phase, numbers of updates, and the first step at which they part.
    """
    if event["passed"]:
        return
    expected, observed = event["expected"], event["observed"]
    first = min(set(expected) ^ set(observed))
    raise AuditError(
        f"cadence audit: in the func phase of task {event['task']} cycle {event['cycle']} slow moved at "
        f"{len(observed)} of {event['steps']} steps, the configuration says {len(expected)}; step {first} is the first "
        f"at which it {'moved and should not have' if first in observed else 'did not move and should have'}"
    )
