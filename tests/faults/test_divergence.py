"""Losses that are no finite number any more."""

import re

from fault_record import fault
from fault_runs import KEYS, Ended, Observe, Whole
from tiny_runs import Workshop, differences, finish

from utils.runs.directory import STATES
from utils.runs.states import SavedStates

POISONED = """
from models.losses import FuncLoss
loss, calls = FuncLoss.__call__, []
def poisoned(self, *batch):
    calls.append("")
    found, hits = loss(self, *batch)
    return found * (float("nan") if len(calls) == 9 else 1), hits
FuncLoss.__call__ = poisoned
"""


@fault("a learning rate at which training diverges", "rd_lr = 1e30; then the run goes on with --on_nan skip")
def test_divergence_ends_the_run_and_the_state_before_is_kept(shop: Workshop, ended: Ended, observe: Observe) -> None:
    run = shop.make("wild", {**KEYS, "rd_lr": 1e30})
    code, message = ended(run.start())
    assert code == 4
    assert re.match(
        r"task 0 cycle 0 rd phase, epoch 1, batch 2: the loss is (inf|nan) \(rates: descriptor 1e\+30; keys: rd_lr\)",
        message,
    )
    state = SavedStates(run.path / STATES).newest()
    assert state is not None
    assert (state["learner"]["position"]["stage"], state["learner"]["phase"]) == ("rd", None)
    code, message = ended(run.resume("--on_nan", "skip"))
    assert code == 4
    assert message.startswith(
        "task 0 cycle 0 rd phase, epoch 2: no batch has a finite loss; the last saved state is kept"
    )
    observe(
        times=2, seen="exit code 4, with phase, task, epoch, batch and rates; the state of the phase before is kept"
    )


@fault("a single loss that is NaN", "multiplied by NaN in the ninth batch; on_nan = stop")
def test_a_nan_stops_a_run_that_can_go_on(shop: Workshop, ended: Ended, whole: Whole, observe: Observe) -> None:
    run = shop.make("poisoned", KEYS)
    code, message = ended(run.start(before=POISONED))
    assert code == 4
    assert message.startswith("task 0 cycle 0 func phase, epoch 2, batch 3: the loss is nan (rates: slow 0.0005, fast")
    finish(run.start("--auto_resume"))
    assert differences(run.path, whole(**KEYS)) == []
    observe(seen="exit code 4, with phase, task, epoch, batch and rates; goes on to the bit-identical end")


@fault("a single loss that is NaN, to be skipped", "multiplied by NaN in the ninth batch; on_nan = skip")
def test_a_nan_can_be_skipped(shop: Workshop, observe: Observe) -> None:
    run = shop.make("skipping", {**KEYS, "on_nan": "skip", "max_tasks": 1})
    process = run.start(before=POISONED)
    finish(process)
    assert "epoch 2, batch 3: the loss is nan; skipped (on_nan)" in process.errors
    assert '"skipped": [3]' in (run.path / "metrics.jsonl").read_text()
    observe(seen="the batch is left out, with a warning and in the metrics; the run finishes")
