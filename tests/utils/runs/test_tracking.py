"""What TensorBoard reads back is what metrics.jsonl says, by the numbers of its lines; W&B begins before the writer."""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch.utils.tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import configuration, events, images, results, run  # noqa: F401

import trainer
from utils.errors import UserError
from utils.runs.events import KINDS, Branches, Cadence, Consolidation, Epoch, Event, Phase, Router, Scan, Telemetry
from utils.runs.log import RunLog
from utils.runs.tracking import FOLDER, scalars, tracked

EVERYTHING: dict[str, Any] = {
    "nested_lora_use_consolidation": True,
    "adapter_lifetime": "continual",
    "exp_threshold": 0.0,
    "eval_every": 1,
    "max_tasks": 2,
    "readouts": ["ncm"],
}
Curves = dict[str, list[tuple[int, float]]]


def read_back(folder: Path) -> Curves:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def numbered(path: Path, kind: str, **where: Any) -> list[tuple[int, dict[str, Any]]]:
    """The events of a kind with the numbers of their lines."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(n, line) for n, line in enumerate(lines, 1) if line["kind"] == kind and where.items() <= line.items()]


def expected(path: Path) -> Curves:
    """Curves of every kind of event, looked up by hand."""
    curves: Curves = defaultdict(list)
    for n, event in numbered(path, "phase", phase="func"):
        curves["phase/func/task"].append((n, event["task"]))
        curves["phase/func/groups/other/lr"] += [(n, g["lr"]) for g in event["groups"] if g["name"] == "other"]
    for n, event in numbered(path, "epoch", phase="func"):
        curves["epoch/func/loss"].append((n, event["loss"]))
        curves["epoch/func/train_accuracy"].append((n, event["train_accuracy"]))
        curves["epoch/func/lr/fast"].append((n, event["lr"]["fast"]))
        curves["epoch/func/moved/slow"].append((n, len(event["moved"]["slow"])))
    for n, event in numbered(path, "epoch", phase="rd"):
        curves["epoch/rd/loss"].append((n, event["loss"]))
    for n, event in numbered(path, "eval"):
        curves["eval/func/accuracy/top5"].append((n, event["accuracy"]["top5"]))
    for n, event in numbered(path, "telemetry"):
        (entry,) = [entry for entry in event["layers"] if (entry["layer"], entry["adapter"]) == (1, 0)]
        curves["telemetry/norms/slow.up_proj.weight/layer1_adapter0"].append((n, entry["norms"]["slow.up_proj.weight"]))
        curves["telemetry/share/fast/layer1_adapter0"].append((n, entry["share"]["fast"]))
        curves["telemetry/update_cosine/slow_fast/layer1_adapter0"].append((n, entry["update_cosine"]["slow+fast"]))
    for n, event in numbered(path, "cadence"):
        curves["cadence/func/slow/observed"].append((n, len(event["observed"])))
        curves["cadence/func/slow/passed"].append((n, 1))
    for n, event in numbered(path, "scan"):
        curves["scan/z/layer1_adapter0"].append((n, event["z"]["1"][0]))
        curves["scan/expands"] += [(n, event["expands"])] if event["expands"] is not None else []
    for n, event in numbered(path, "mean_z", when="before"):
        curves["mean_z/before/z/layer2_adapter0"].append((n, event["z"]["2"][0]))
    for n, event in numbered(path, "consolidation"):
        curves["consolidation/accuracy_before/top1"].append((n, event["accuracy_before"]["top1"]))
        curves["consolidation/drift/layer2_adapter0"].append(
            (n, event["receipts"][2 if event["task"] == 0 else 3]["drift"])
        )
        z = [r["z_mean_after"] for r in event["receipts"] if (r["layer"], r["adapter"]) == (1, 0)]
        curves["consolidation/z_mean_after/layer1_adapter0"] += [(n, value) for value in z if value is not None]
    for n, event in numbered(path, "branches", when="after_task"):
        curves["branches/after_task/correct/slow_fast/0"].append((n, event["correct"]["slow+fast"][0]))
    for n, event in numbered(path, "router"):
        curves["router/weights/task0/layer2_adapter0"].append((n, event["weights"]["2"][0][0]))
    for n, event in numbered(path, "task"):
        curves["task/last_acc"].append((n, event["last_acc"]))
        curves["task/task_accuracy/0"].append((n, event["task_accuracy"][0]))
        curves["task/parameters/slow"].append((n, event["parameters"]["slow"]))
        curves["task/trained/head"].append((n, event["trained"]["head"]))
        curves["task/adapters/1"].append((n, event["adapters"][1]))
        curves["task/multiply_adds"].append((n, event["multiply_adds"]))
    return curves


def test_the_curves_are_the_events_and_tracking_changes_none_of_them(run: Callable[..., Path]) -> None:  # noqa: F811
    path, untracked = run("a", tensorboard=True, **EVERYTHING), run("b", **EVERYTHING)
    assert events(path) == events(untracked)
    assert results(path) == results(untracked)
    assert not (untracked / FOLDER).exists()
    lines = events(path)
    assert {line["kind"] for line in lines} == {kind.kind for kind in KINDS}
    found = read_back(path / FOLDER)
    for tag, points in expected(path).items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in points], rel=1e-6), tag
    assert {step for points in found.values() for step, _ in points} == {*range(1, len(lines) + 1)}


def rd_epoch(loss: float) -> Epoch:
    return Epoch(task=0, cycle=0, phase="rd", epoch=0, loss=loss, lr={"descriptor": 0.5})


ENTRY = {
    "layer": 2, "adapter": 1, "norms": {"slow.up_proj.weight": 3.0}, "update_norms": {"slow": None},
    "share": {"slow": 0.25, "fast": 0.75}, "effective_rank": {}, "output_cosine": 0.5, "update_cosine": None,
}  # fmt: skip
PLACE = "layer2_adapter1"
POINTS: dict[str, tuple[Event, dict[str, float]]] = {
    "a phase": (
        Phase(task=3, cycle=1, phase="func", groups=[{"name": "slow", "lr": 0.5, "tensors": 4}]),
        {
            "phase/func/task": 3, "phase/func/cycle": 1, "phase/func/groups/slow/lr": 0.5,
            "phase/func/groups/slow/tensors": 4,
        },
    ),
    "what is not finite": (
        rd_epoch(float("nan")),
        {"epoch/rd/task": 0, "epoch/rd/cycle": 0, "epoch/rd/epoch": 0, "epoch/rd/lr/descriptor": 0.5},
    ),
    "the steps of every time scale": (
        Epoch(
            task=0, cycle=0, phase="func", epoch=1, loss=0.5, lr={}, train_accuracy=75.0,
            moved={"slow": [4, 8], "mid": [2, 4, 6, 8]},
        ),
        {
            "epoch/func/task": 0, "epoch/func/cycle": 0, "epoch/func/epoch": 1, "epoch/func/loss": 0.5,
            "epoch/func/train_accuracy": 75, "epoch/func/moved/slow": 2, "epoch/func/moved/mid": 4,
        },
    ),
    "one cosine": (
        Telemetry(task=0, cycle=0, epoch=0, step=4, layers=[ENTRY]),
        {
            "telemetry/task": 0, "telemetry/cycle": 0, "telemetry/epoch": 0, "telemetry/step": 4,
            f"telemetry/norms/slow.up_proj.weight/{PLACE}": 3, f"telemetry/share/slow/{PLACE}": 0.25,
            f"telemetry/share/fast/{PLACE}": 0.75, f"telemetry/output_cosine/{PLACE}": 0.5,
        },
    ),
    "cosines by pair": (
        Telemetry(
            task=0, cycle=0, epoch=0, step=4,
            layers=[{**ENTRY, "norms": {}, "share": {}, "update_cosine": {"slow+mid": 0.1, "mid_fast": None}}],
        ),
        {
            "telemetry/task": 0, "telemetry/cycle": 0, "telemetry/epoch": 0, "telemetry/step": 4,
            f"telemetry/output_cosine/{PLACE}": 0.5, f"telemetry/update_cosine/slow_mid/{PLACE}": 0.1,
        },
    ),
    "a cadence": (
        Cadence(
            task=0, cycle=0, phase="func", steps=4, tensors=2, observed=[2], scale="slow", expected=[2, 4], passed=False
        ),
        {
            "cadence/func/slow/task": 0, "cadence/func/slow/cycle": 0, "cadence/func/slow/steps": 4,
            "cadence/func/slow/tensors": 2, "cadence/func/slow/observed": 1, "cadence/func/slow/expected": 2,
            "cadence/func/slow/passed": 0,
        },
    ),
    "tensors and null": (
        Scan(task=0, scan=0, batch=1, z={"1": [None, torch.tensor(2.0)]}, threshold=1.5, expands=None),
        {"scan/task": 0, "scan/scan": 0, "scan/batch": 1, "scan/z/layer1_adapter1": 2, "scan/threshold": 1.5},
    ),
    "a receipt with texts": (
        Consolidation(
            task=0, accuracy_before={"top1": 60.0, "grouped": {"00-01": 50.0}}, accuracy_after={"top1": 61.0},
            receipts=[{"layer": 2, "adapter": 1, "mode": "weights", "alpha": 0.5, "drift": None}],
        ),
        {
            "consolidation/task": 0, "consolidation/accuracy_before/top1": 60,
            "consolidation/accuracy_before/grouped/00-01": 50, "consolidation/accuracy_after/top1": 61,
            f"consolidation/alpha/{PLACE}": 0.5,
        },
    ),
    "the branches": (
        Branches(task=1, when="after_task", correct={"slow+fast": [4, 3]}, run={"seconds": 0.5}),
        {
            "branches/after_task/task": 1, "branches/after_task/correct/slow_fast/0": 4,
            "branches/after_task/correct/slow_fast/1": 3, "branches/after_task/run/seconds": 0.5,
        },
    ),
    "a router": (
        Router(task=1, weights={"2": [[1.0], [0.25, 0.75]]}),
        {
            "router/task": 1, "router/weights/task0/layer2_adapter0": 1, "router/weights/task1/layer2_adapter0": 0.25,
            "router/weights/task1/layer2_adapter1": 0.75,
        },
    ),
}  # fmt: skip


def test_a_run_with_plain_adapters_is_tracked_too(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run("plain", tensorboard=True, ffn_adapter_type="adaptmlp", max_tasks=1)
    ((line, task),) = numbered(path, "task")
    assert read_back(path / FOLDER)["task/parameters/adapter"] == [(line, task["parameters"]["adapter"])]


@pytest.mark.parametrize("what", POINTS)
def test_the_points_of_an_event(what: str) -> None:
    event, points = POINTS[what]
    assert scalars(event) == points


def test_a_run_that_goes_on_takes_back_what_was_cut_off(images: Path, tmp_path: Path) -> None:  # noqa: F811
    config = configuration(images, tmp_path, tensorboard=True)

    def go(losses: list[float]) -> None:
        with tracked(RunLog(tmp_path), config) as record:
            for loss in losses:
                record(rd_epoch(loss))

    go([0.1, 0.2, 0.3, 0.4])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]))  # as far as the saved state goes
    go([0.5, 0.6])
    assert read_back(tmp_path / FOLDER)["epoch/rd/loss"] == [
        (step, pytest.approx(loss)) for step, loss in enumerate([0.1, 0.2, 0.5, 0.6], 1)
    ]


@pytest.mark.parametrize(("missing", "keys"), [("tensorboard", {"tensorboard": True}), ("wandb", {"wandb": "p"})])
def test_a_missing_package_is_said_before_anything_is_written(
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    keys: dict[str, Any],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{missing} is not installed: pip install '{missing}>="):
        trainer.train(configuration(images, tmp_path / "logs", **keys), "tiny")
    assert not (tmp_path / "logs").exists()


def test_adapters_without_branches_have_curves_too(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run(ffn_adapter_type="adaptmlp", tensorboard=True)
    counts = [(line, event["parameters"]["adapter"]) for line, event in numbered(path, "task")]
    assert read_back(path / FOLDER)["task/parameters/adapter"] == counts


# ---- W&B


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What is asked of W&B and of the one writer, in order."""
    made: list[tuple[str, dict[str, Any]]] = []
    wandb = ModuleType("wandb")
    wandb.Error = type("Error", (Exception,), {})

    def init(**keys: Any) -> SimpleNamespace:
        made.append(("init", keys))
        if keys["project"] == "forbidden":
            raise wandb.Error("no key")
        return SimpleNamespace(finish=lambda **ends: made.append(("finish", ends)))

    class Writer(torch.utils.tensorboard.SummaryWriter):
        def __init__(self, *args: Any, **keys: Any) -> None:
            made.append(("writer", {}))
            super().__init__(*args, **keys)

        def close(self) -> None:
            made.append(("close", {}))
            super().close()

    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", Writer)
    return made


def test_w_and_b_follows_the_one_writer(run: Callable[..., Path], calls: list[tuple[str, Any]]) -> None:  # noqa: F811
    path = run(wandb="mine", max_tasks=1)
    assert [name for name, _ in calls] == ["init", "writer", "close", "finish"]
    told = calls[0][1]
    config, identity = told.pop("config"), told.pop("id")
    expected = {"project": "mine", "dir": str(path), "sync_tensorboard": True, "name": path.name, "resume": "allow"}
    assert told == expected
    assert re.fullmatch("[0-9a-f]{16}", identity)
    assert config == json.loads((path / "config.json").read_text())
    assert calls[-1][1] == {"exit_code": 0}
    assert read_back(path / FOLDER)["task/last_acc"]


def test_a_resumed_run_is_the_same_one_at_w_and_b_and_one_begun_again_is_not(
    run: Callable[..., Path],  # noqa: F811
    calls: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter(f"2026-01-01T00:00:{second:02d}+00:00" for second in range(60))
    monkeypatch.setattr("utils.runs.log._now", lambda: next(times))

    def stopped(*_: object) -> None:
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "results", stopped)
        with pytest.raises(OSError, match="stopped"):
            run(wandb="mine", max_tasks=1)
    run(wandb="mine", max_tasks=1, auto_resume=True)
    run(wandb="mine", max_tasks=1, overwrite=True)
    first, resumed, again = [told["id"] for name, told in calls if name == "init"]
    assert first == resumed != again


def test_a_run_that_stops_ends_as_failed(
    run: Callable[..., Path],  # noqa: F811
    calls: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(trainer, "refuse_failed", full)
    with pytest.raises(OSError, match="No space"):
        run(wandb="mine", max_tasks=1)
    assert [name for name, _ in calls] == ["init", "writer", "close", "finish"]
    assert calls[-1][1] == {"exit_code": 1}


def test_a_refusal_by_w_and_b_is_one_sentence(run: Callable[..., Path], calls: list[tuple[str, Any]]) -> None:  # noqa: F811
    with pytest.raises(UserError, match="W&B cannot be started: no key"):
        run(wandb="forbidden", max_tasks=1)
    assert [name for name, _ in calls] == ["init"]
