"""The judging half of the cadence audit: whether each time scale moved when the run's configuration says.

What was observed comes from `utils.timescales.watch`. Imports no torch, so that a finished run can be judged again.
"""

from dataclasses import replace
from typing import Any

from utils.errors import AuditError
from utils.runs.events import Cadence, Phase
from utils.timescales.scales import SCALES, TimeScale, rates


def expected_steps(scale: TimeScale, config: Any, steps: int) -> list[int] | None:
    """The steps at which a scale is to move: k, 2k, ...; None for "zero_grad", which promises no stillness.

    Args:
        scale: The time scale.
        config: What the run was started with.
        steps: Optimizer steps of the func phase.
    """
    if scale.update(config) == "zero_grad":
        return None
    return list(range(scale.interval(config), steps + 1, scale.interval(config)))


def scale_of(name: str | None) -> TimeScale:
    """The scale of a cadence event; runs of earlier versions, which name none, audited the slowest.

    Raises:
        KeyError: There is no such scale.
    """
    return {scale.name: scale for scale in SCALES}[name or SCALES[0].name]


def judge(event: Cadence, config: Any) -> Cadence:
    """A cadence event with what was expected and the verdict.

    Args:
        event: What was observed in a func phase.
        config: What the run was started with; has the keys as attributes.

    Raises:
        KeyError: The event is of a scale that is not declared.
    """
    expected = expected_steps(scale_of(event.scale), config, event.steps)
    return replace(event, expected=expected, passed=expected is None or event.observed == expected)


def refuse_failed(event: Cadence) -> None:
    """Stop a run whose cadence is not the configured one.

    Args:
        event: Judged.

    Raises:
        AuditError: Names phase, numbers of updates, and the first step at which they part.
    """
    expected, observed = event.expected, event.observed
    if event.passed or expected is None:
        return
    first = min(set(expected) ^ set(observed))
    raise AuditError(
        f"cadence audit: in the func phase of task {event.task} cycle {event.cycle} {scale_of(event.scale).name} moved "
        f"at {len(observed)} of {event.steps} steps, the configuration says {len(expected)}; step {first} is the first "
        f"at which it {'moved and should not have' if first in observed else 'did not move and should have'}"
    )


def refuse_other_rates(event: Phase, config: Any) -> None:
    """Stop a run whose phase begins with other learning rates than configured.

    Args:
        event: The phase that begins.
        config: What the run was started with.

    Raises:
        AuditError: Names the phase, the group and both rates.
    """
    declared = rates(config)
    for group in event.groups:
        if group["lr"] != declared[group["name"]]:
            raise AuditError(
                f"{event.phase} phase of task {event.task} cycle {event.cycle}: group {group['name']} has the learning "
                f"rate {group['lr']:g}, the configuration says {declared[group['name']]:g}"
            )
