"""The checking half of the cadence audit: did each time scale move when the configuration says?

`utils.timescales.watch` observes. Imports no torch, so that finished runs can be checked again.
"""

from dataclasses import replace
from typing import Any

from utils.errors import AuditError
from utils.runs.events import Cadence, Phase
from utils.timescales.scales import SCALES, TimeScale, rates


def expected_steps(scale: TimeScale, config: Any, steps: int) -> list[int] | None:
    """Return the steps k, 2k, ... of a func phase at which a scale must move; None for "zero_grad": any."""
    if scale.update(config) == "zero_grad":
        return None
    return list(range(scale.interval(config), steps + 1, scale.interval(config)))


def scale_of(name: str | None) -> TimeScale:
    """Return the scale of a cadence event, or raise KeyError. Runs of earlier versions name none: the slowest."""
    return {scale.name: scale for scale in SCALES}[name or SCALES[0].name]


def judge(event: Cadence, config: Any) -> Cadence:
    """Return a cadence event with the steps expected by the run's configuration, and whether it passed."""
    judged = replace(event, expected=expected_steps(scale_of(event.scale), config, event.steps))
    return replace(judged, passed=not wrong_steps(judged))


def wrong_steps(event: Cadence) -> set[int]:
    """Return the steps at which a scale moved unexpectedly, or did not move as expected though it was not idle."""
    if event.expected is None:
        return set()
    observed = set(event.observed)
    return (set(event.expected) ^ observed) - (set(event.idle or ()) - observed)


def refuse_failed(event: Cadence) -> None:
    """Raise AuditError, with phase, numbers of updates and first wrong step, if a judged event has not passed."""
    expected, observed = event.expected, event.observed
    if event.passed or expected is None:
        return
    first = min(wrong_steps(event))
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
