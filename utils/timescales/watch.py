"""The observing half of the cadence audit: the steps at which the values of a time scale change.

It knows neither gate nor configuration, and `utils.timescales.judge` knows only the run's configuration, so that an
error anywhere between the two is found.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class CadenceWatch:
    """Notes after which optimizer steps the values of some parameters have changed, bitwise.

    Nothing is transferred to the host until `observed` or `moved` is called.

    Args:
        parameters: Must keep their shapes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._changes: list[Tensor] = []
        self._last = self._values() if self.parameters else torch.empty(0)

    def after_step(self) -> None:
        """Compare the values with those after the step before."""
        if not self.parameters:
            return
        now = self._values()
        self._changes.append((now != self._last).any())
        self._last = now

    @property
    def steps(self) -> int:
        """Number of optimizer steps watched."""
        return len(self._changes)

    def moved(self) -> list[bool]:
        """Return for each step watched whether a value changed; for `restore`."""
        return torch.stack(self._changes).tolist() if self._changes else []

    def observed(self) -> list[int]:
        """Return the steps, counted from 1, at which a value changed."""
        return [step for step, moved in enumerate(self.moved(), start=1) if moved]

    def restore(self, moved: Iterable[bool]) -> None:
        """Continue after the steps of another watch, whose last values are the parameters' values now."""
        self._changes = [torch.tensor(change, device=self._last.device) for change in moved]

    @torch.no_grad()
    def _values(self) -> Tensor:
        return torch.cat([parameter.reshape(-1) for parameter in self.parameters])
