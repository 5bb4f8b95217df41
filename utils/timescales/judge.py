"""The judging half of the cadence audit: whether a time scale moved when the run's configuration says.

What was observed comes from `utils.timescales.watch`. Never imports torch, so that a finished run can be judged again.
"""

from dataclasses import replace
from typing import Any

from utils.errors import AuditError
from utils.runs.events import Cadence
from utils.timescales.scales import SCALES


def expected_steps(steps: int, interval: int, mode: str) -> list[int] | None:
    """The steps at which a scale is to move: k, 2k, ...; None for "zero_grad", which promises no stillness.

    Args:
        steps: Optimizer steps of the func phase.
        interval: Its update interval; 0 counts as 1.
        mode: What happens between its updates.
    """
    every = max(1, interval)
    return None if mode == "zero_grad" else list(range(every, steps + 1, every))


def judge(event: Cadence, config: Any) -> Cadence:
    """A cadence event with what was expected and the verdict.

    Args:
        event: What was observed in a func phase.
        config: What the run was started with.
    """
    scale = next(scale for scale in SCALES if scale.name == (event.scale or SCALES[0].name))
    expected = expected_steps(event.steps, scale.interval(config), scale.update(config))
    return replace(event, expected=expected, passed=expected is None or event.observed == expected)


def refuse_failed(event: Cadence) -> None:
    """Stop a run whose cadence is not the configured one.

    Raises:
        AuditError: Names phase, numbers of updates, and the first step at which they part.
    """
    if event.passed:
        return
    expected, observed = event.expected or [], event.observed
    first = min(set(expected) ^ set(observed))
    raise AuditError(
        f"cadence audit: in the func phase of task {event.task} cycle {event.cycle} {event.scale} moved at "
        f"{len(observed)} of {event.steps} steps, the configuration says {len(expected)}; step {first} is the first "
        f"at which it {'moved and should not have' if first in observed else 'did not move and should have'}"
    )
