"""A real run, edited by hand in one place of one file: the comparison refuses it or warns, and names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import NESTED
from test_trainer import configuration

import trainer
from tools.compare.comparison import compare
from tools.compare.fairness import warnings
from utils.errors import RunError

Edit = Callable[[Any], None]


@pytest.fixture(scope="module", params=["of an earlier version", "of this version"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nested run of three tasks, as the trainer leaves it."""
    if request.param == "of an earlier version":
        return NESTED
    folder = tmp_path_factory.mktemp("edited")
    rng = np.random.RandomState(0)
    arrays = {
        "x_train": rng.randint(0, 255, size=(60, 20, 20, 3), dtype=np.uint8),
        "x_test": rng.randint(0, 255, size=(24, 20, 20, 3), dtype=np.uint8),
        "y_train": np.repeat(np.arange(6), 10),
        "y_test": np.repeat(np.arange(6), 4),
    }
    np.savez(folder / "images.npz", **arrays)
    keys = {"nested_lora_use_consolidation": True, "exp_threshold": 0.0, "func_epoch": 1, "rd_epoch": 1}
    trainer.train(configuration(folder / "images.npz", folder / "logs", **keys), "tiny")
    (path,) = (folder / "logs").iterdir()
    return path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy, under the same name."""
    return Path(shutil.copytree(original, tmp_path / original.name))


def edit_json(file: Path, edit: Edit) -> None:
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values, indent=2))


def edit_event(run: Path, kind: str, edit: Edit, **where: Any) -> None:
    """Change the first event of a kind and place."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    edit(next(line for line in lines if line["kind"] == kind and where.items() <= line.items()))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_as_it_was_written_nothing_is_said(run: Path) -> None:
    assert [text for text in warnings(compare([run])) if "edited" in text or "cadence" in text] == []


def test_a_key_that_changes_results_no_longer_fits_the_name(run: Path) -> None:
    edit_json(run / "config.json", lambda config: config.update(init_lr=0.5))
    (text,) = [text for text in warnings(compare([run])) if str(run) in text and "hash" in text]
    assert "config.json" in text


def test_an_interval_that_slow_did_not_keep_is_refused(run: Path) -> None:
    edit_json(run / "config.json", lambda config: config.update(nested_lora_update_interval_slow=1))
    with pytest.raises(
        RunError, match=r"metrics\.jsonl: task 0 cycle 0: expected of the cadence audit of slow .*config\.json"
    ):
        compare([run])


def one_more(row: list[int]) -> None:
    row[0] += 1 if row[0] < 8 else -1


RESULTS: dict[str, Edit] = {
    "a count of accuracy": lambda results: one_more(results["accuracy"]["correct"][2]),
    "the number of test images": lambda results: results["accuracy"]["count"].__setitem__(1, 9),
    "a measure": lambda results: results.update(forgetting=results["forgetting"] - 0.1),
    "the curve": lambda results: results["average_accuracy"].__setitem__(0, 0.999),
    "a count of a branch": lambda results: one_more(results["branches"]["slow"]["correct"][1]),
    "a count of the whole as a branch": lambda results: one_more(results["branches"]["slow+fast"]["correct"][1]),
    "the images of a branch": lambda results: results["branches"]["neither"]["count"].__setitem__(0, 80),
    "a branch left out": lambda results: results["branches"].pop("fast"),
    "no branches": lambda results: results.update(branches={}),
    "the accuracy of a task": lambda results: results["tasks"][1]["accuracy"].update(top1=99.0),
    "the adapters of a task": lambda results: results["tasks"][2]["adapters"].__setitem__(1, 1),
    "the parameters of a task": lambda results: results["tasks"][2]["parameters"].update(fast=10),
    "what a task trained": lambda results: results["tasks"][2]["trained"].update(head=1),
}


@pytest.mark.parametrize("what", RESULTS)
def test_results_edited_anywhere_are_refused(run: Path, what: str) -> None:
    edit_json(run / "results.json", RESULTS[what])
    with pytest.raises(RunError, match=r"results\.json.*edited"):
        compare([run])


OFF: dict[str, Edit] = {
    "a count": lambda off: one_more(off["correct"]),
    "the answers that changed": lambda off: off.update(changed=off["images"] + 1),
    "the images": lambda off: off.update(images=off["images"] - 1),
}


@pytest.mark.parametrize("original", ["of this version"], indirect=True, scope="module")  # earlier ones lack it
@pytest.mark.parametrize("what", OFF)
def test_edits_of_what_the_network_answers_with_all_adapters_off_are_refused(run: Path, what: str) -> None:
    edit_json(run / "results.json", lambda results: OFF[what](results["tasks"][2]["adapters_off"]))
    with pytest.raises(RunError, match=r"results\.json.*edited"):
        compare([run])


EVENTS: dict[str, tuple[str, Edit]] = {
    "an accuracy of a task": ("task", lambda event: event["task_accuracy"].__setitem__(0, 0.123)),
    "the curve so far": ("task", lambda event: event.update(average_accuracy=[0.51])),
    "the parameters": ("task", lambda event: event["parameters"].update(total=1)),
    "the number of a task": ("task", lambda event: event.update(task=1)),
    "a task's line": ("task", lambda event: event.update(kind="note")),
    "a branch's line": ("branches", lambda event: event.update(when="never")),
    "a branch's right answers": ("branches", lambda event: one_more(event["correct"]["fast"])),
    "a cadence's verdict": ("cadence", lambda event: event.update(passed=False)),
    "a cadence's observation": ("cadence", lambda event: event["observed"].append(3)),
    "a cadence's line": ("cadence", lambda event: event.update(kind="note")),
}


@pytest.mark.parametrize("what", EVENTS)
def test_events_edited_or_taken_away_are_refused(run: Path, what: str) -> None:
    kind, edit = EVENTS[what]
    where = {"when": "after_task"} if kind == "branches" else {}
    edit_event(run, kind, edit, **where)
    with pytest.raises(RunError, match=r"metrics\.jsonl: .*(edited|removed)"):
        compare([run])


def test_a_cadence_that_failed_after_all_is_warned_of(run: Path) -> None:
    def fail(event: dict[str, Any]) -> None:
        event["observed"].append(3)
        event["passed"] = False

    edit_event(run, "cadence", fail)
    assert [text for text in warnings(compare([run])) if text.startswith(f"{run}: metrics.jsonl: the cadence audit")]
