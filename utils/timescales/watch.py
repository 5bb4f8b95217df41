"""The observing half of the cadence audit: when slow moved, read off its values.

It knows neither the gate nor the configuration; the judging half (`utils.timescales.judge`) knows only the
configuration the run was started with. So an error between them, wherever it is, shows.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
