"""The judging half of the cadence audit: whether slow moved when the run's configuration says.

What was observed comes from `utils.timescales.watch`. Never imports torch, so that a finished run can be judged again.
"""

from collections.abc import Mapping
from typing import Any

from utils.errors import AuditError


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
