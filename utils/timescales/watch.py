"""The observing half of the cadence audit: the steps at which the values of a time scale change.

It knows neither gate nor configuration, and `utils.timescales.judge` knows only the run's configuration, so that an
error anywhere between the two is found.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class CadenceWatch:
    """Notes after which optimizer steps the values of some parameters have changed, bitwise.

    It also notes the idle steps: those at which neither the gradients of the loss nor weight decay would change a value
    at the given rate. A parameter without a gradient is not idle, as the loss should depend on it. Momentum is not
    looked at, as it can only add to the steps at which values change.

    Nothing is transferred to the host until the notes are read.

    Args:
        parameters: Must keep their shapes.
        rate: A lower bound of the learning rates of all steps.
        decay: Weight decay.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float = 1.0, decay: float = 0.0) -> None:
        self.parameters = list(parameters)
        self.rate, self.decay = rate, decay
        self._changes: list[Tensor] = []
        self._idle: list[Tensor] = []
        self._last = _joined(self.parameters)

    @torch.no_grad()
    def before_step(self) -> None:
        """Look at the gradients of the loss, before anything else uses them."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if len(gradients) < len(self.parameters):
            self._idle.append(torch.zeros_like(self._last[0], dtype=torch.bool))
        elif gradients:
            after = _joined(gradients).add_(self._last, alpha=self.decay).mul_(-self.rate).add_(self._last)
            self._idle.append((after == self._last).all())

    def after_step(self) -> None:
        """Compare the values with those after the step before."""
        if not self.parameters:
            return
        now = _joined(self.parameters)
        self._changes.append((now != self._last).any())
        self._last = now

    @property
    def steps(self) -> int:
        """Number of optimizer steps watched."""
        return len(self._changes)

    def observed(self) -> list[int]:
        """Return the steps, counted from 1, at which a value changed."""
        return _numbers(self._changes)

    def idle(self) -> list[int]:
        """Return the idle steps, counted from 1."""
        return _numbers(self._idle)

    def state(self) -> dict[str, list[bool]]:
        """Return what was noted of each step, for `restore`."""
        return {"changes": _to_host(self._changes), "idle": _to_host(self._idle)}

    def restore(self, state: Mapping[str, Iterable[bool]]) -> None:
        """Continue after the steps of another watch, whose last values are the parameters' values now."""
        self._changes, self._idle = (
            [torch.tensor(value, device=self._last.device) for value in state[key]] for key in ("changes", "idle")
        )


@torch.no_grad()
def _joined(tensors: list[nn.Parameter] | list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else torch.empty(0)


def _to_host(notes: list[Tensor]) -> list[bool]:
    return torch.stack(notes).tolist() if notes else []


def _numbers(notes: list[Tensor]) -> list[int]:
    return [step for step, noted in enumerate(_to_host(notes), start=1) if noted]
