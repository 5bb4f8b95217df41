"""Runs that are asked to stop, politely and less so, and go on."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_runs
import pytest
from fault_record import fault
from fault_runs import Ended, Observe, Whole
from tiny_runs import STEPS, Workshop, differences, epochs_repeated, events_of, finish

SEED = 0
KEYS = {**fault_runs.KEYS, "num_workers": 2}
COUNTED = """
from models.phase import Phase
step = Phase.step
def counted(phase):
    with open({path!r}, "a") as file:
        file.write(".")
    return step(phase)
Phase.step = counted
"""


@fault(
    "SIGTERM, or SIGINT as from Ctrl-C",
    "sent to the process alone, and to its group with the loading workers, each in another stage of a run",
)
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_finishes_its_step_and_repeats_none(
    number: signal.Signals,
    group: bool,
    shop: Workshop,
    ended: Ended,
    whole: Whole,
    tmp_path: Path,
    observe: Observe,
) -> None:
    run, counted = shop.make("stopped", KEYS), COUNTED.format(path=str(tmp_path / "steps"))
    process = run.start(before=counted)
    run.until_saved({(2, False): 1, (2, True): 5, (15, False): 8, (15, True): 9}[number, group], process)
    process.signal(number, group)
    process.wait()
    assert process.workers() == []
    code, message = ended(process)
    assert code == 128 + number
    assert message == f"stopped by {number.name}, the state is saved; continue with: python main.py --resume {run.path}"
    finish(run.resume(before=counted))
    assert differences(run.path, whole(**KEYS)) == []
    assert epochs_repeated(run.path) == 0
    epochs = sum('{"kind": "epoch"' in event for event in events_of(run.path))
    assert len((tmp_path / "steps").read_text()) == epochs * STEPS
    observe(seen=f"exit code {code}, how to go on; no step is trained again, and the end is bit-identical")


@fault(
    "a second Ctrl-C",
    "SIGINT twice to the group of a run that cannot finish its step: it waits in the step, or for a worker that hangs",
)
@pytest.mark.parametrize("place", ["models.phase.Phase.step", "utils.data.tasks.TaskImages.__getitem__"])
def test_the_second_signal_ends_a_run_that_hangs(
    place: str, shop: Workshop, gate: Callable[..., Any], ended: Ended, whole: Whole, observe: Observe
) -> None:
    run, there = shop.make("hanging", KEYS), gate(place, after=30)
    process = run.start(before=there.code)
    there.reached(process)
    process.signal(signal.SIGINT, group=True)
    assert not process.ends_within(0.5)
    assert "SIGINT: stopping at the next step; once more stops at once" in process.errors
    process.signal(signal.SIGINT, group=True)
    begun = time.monotonic()
    assert ended(process) == (130, "SIGINT again: ended at once; what was saved is still there")
    assert time.monotonic() - begun < 5
    finish(run.start("--auto_resume"))
    assert differences(run.path, whole(**KEYS)) == []
    observe(seen="exit code 130 at once; the run goes on to the bit-identical end")


@fault("Ctrl-C held down", "eight SIGINT to the group within a tenth of a second, at moments drawn from a seed")
def test_many_signals_end_a_run_as_two_do(shop: Workshop, ended: Ended, whole: Whole, observe: Observe) -> None:
    rng, run = random.Random(SEED), shop.make("beset", KEYS)
    for stop in range(3):
        process = run.start("--auto_resume")
        run.until_saved(4 * stop, process)
        while "device cpu" not in process.errors:
            assert not process.ends_within(0.005)
        for _ in range(8):
            process.ends_within(rng.uniform(0, 0.025))
            process.signal(signal.SIGINT, group=True)
        code, message = ended(process)
        assert code == 130
        assert "SIGINT" in message
    finish(run.start("--auto_resume"))
    assert differences(run.path, whole(**KEYS)) == []
    observe(times=3, seen="exit code 130, no traceback; the run goes on to the bit-identical end")
