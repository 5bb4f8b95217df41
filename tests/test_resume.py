"""Runs that are ended at every point where they could be, and go on: in the end they are the uninterrupted run."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_trainer import _trained, events, finished, images, results, run  # noqa: F401
from test_trainer import configuration as of_keys

import trainer
from models.losses import FuncLoss, Loss, RdLoss
from models.phase import Phase
from utils.config.schema import Config
from utils.errors import DivergenceError, StoppedError
from utils.runs.checkpoint import CheckpointError, read_checkpoint
from utils.runs.directory import RunDirError
from utils.runs.log import RunLog
from utils.runs.states import StateError
from utils.stopping import StateKeeper

FUNCTION: dict[str, Any] = {
    "nested_lora_use_consolidation": True,
    "nested_lora_consolidation_mode": "function",
    "readouts": ["ncm"],
}
KINDS: dict[str, dict[str, Any]] = {
    "adaptmlp": {"ffn_adapter_type": "adaptmlp", "optimizer": "adam"},
    "skip": {"eval_every": 1, "telemetry_every": 2},
    "accumulate": {"nested_lora_slow_update": "accumulate", "optimizer": "adam"},
    "zero_grad": {"nested_lora_slow_update": "zero_grad"},
    "weights": {"nested_lora_use_consolidation": True, "nested_lora_fast_reset": "reinit"},
    "function": FUNCTION,
    "views": {"rd_views": 1, "rd_epoch": 3, "augment_on": "device"},
    "kept": {"views": 2, "adapter_lifetime": "continual", "nested_lora_continual_layers": "expandable", **FUNCTION},
    "continual": {"adapter_lifetime": "continual", "nested_lora_slow_update": "accumulate", **FUNCTION},
}


LEARNERS: dict[str, dict[str, Any]] = {
    "linear": {"model_name": "linear"},
    "joint": {"model_name": "joint"},
    "ranpac": {"model_name": "ranpac", "first_session_adaptation": True},
    "simplecil": {"model_name": "simplecil"},
    "alignment": {"model_name": "linear", "classifier_alignment": True, "classifier_alignment_epochs": 1},
}


def configuration(images: Path, output_dir: Path, **keys: Any) -> Config:  # noqa: F811
    """One that saves states as often as it can."""
    return of_keys(images, output_dir, **{"checkpoint_every": 1, **keys})


class Killed(BaseException):
    """The process ends here."""


class Killer:
    """Ends a run at its n-th point, before or after the point could be kept.

    Args:
        monkeypatch: Puts the killer into the keeper.
        every: n.
        saved: Whether the point is kept before the end.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every: int, saved: bool) -> None:
        self.points: list[str] = []
        keep = StateKeeper.__call__

        def ending(keeper: StateKeeper, point: str) -> None:
            self.points.append(point)
            if len(self.points) % every:
                return keep(keeper, point)
            if saved:
                keep(keeper, point)
            raise Killed

        monkeypatch.setattr(StateKeeper, "__call__", ending)


def to_the_end(config: Config, attempts: int = 200) -> int:
    """Run a configuration as often as it takes; how often it was ended."""
    for kills in range(attempts):
        try:
            trainer.train(config, "tiny")
            return kills
        except (Killed, StoppedError):
            continue
    raise AssertionError("the run does not get on")


def only_run(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def raw_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", [*KINDS, *LEARNERS])
def test_a_run_ended_again_and_again_is_the_uninterrupted_run(
    finished: Callable[..., Path],  # noqa: F811
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    keys = {**KINDS, **LEARNERS}[kind]
    whole = finished(**keys)
    config = configuration(images, tmp_path / "cut", auto_resume=True, **keys)
    killer = Killer(monkeypatch, every={"simplecil": 8}.get(kind, 17 if kind in KINDS else 11), saved=False)
    assert to_the_end(config) > (4 if kind in KINDS else 1)
    assert {"step", "last step", "epoch", "stage", "wait"} <= set(killer.points) or kind == "simplecil"
    cut = only_run(tmp_path / "cut")
    assert results(cut) == results(whole)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for file in ("task_0", "task_1", "task_2"):
        one, other = (read_checkpoint(path / "checkpoints" / f"{file}.safetensors")[0] for path in (cut, whole))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("task_0.npz", "task_1.npz", "task_2.npz", "mistakes.npz"):
        assert (cut / "predictions" / name).read_bytes() == (whole / "predictions" / name).read_bytes()
    assert len(json.loads((cut / "results.json").read_text())["run"]["resumed"]) >= 1
    assert not (cut / "resume").exists()


@pytest.mark.parametrize("keys", [{"checkpoint_every": 0}, {"checkpoint_every": 2}, {"num_workers": 2}])
def test_how_often_a_state_is_saved_and_by_whom_images_are_loaded_changes_nothing(
    finished: Callable[..., Path],  # noqa: F811
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
) -> None:
    whole = finished(**FUNCTION)
    config = configuration(images, tmp_path / "cut", auto_resume=True, **FUNCTION, **keys)
    Killer(monkeypatch, every=71, saved=True)
    assert to_the_end(config) > 0
    cut = only_run(tmp_path / "cut")
    assert (results(cut), events(cut)) == (results(whole), events(whole))


@pytest.mark.usefixtures("handlers_kept")
def test_a_run_that_is_asked_to_stop_at_every_step_repeats_none(
    finished: Callable[..., Path],  # noqa: F811
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = finished(**KINDS["continual"])
    steps: list[str] = []
    step = Phase.step
    monkeypatch.setattr(Phase, "step", lambda phase: steps.append("") or step(phase))
    trainer.train(of_keys(images, tmp_path / "counted", **KINDS["continual"]), "tiny")
    counted = len(steps)
    steps.clear()
    keep, calls = StateKeeper.__call__, iter(range(10**6))

    def asked(keeper: StateKeeper, point: str) -> None:
        if next(calls) % 5 == 4:
            keeper._request.signal = signal.SIGTERM
        keep(keeper, point)

    monkeypatch.setattr(StateKeeper, "__call__", asked)
    config = configuration(images, tmp_path / "cut", auto_resume=True, **KINDS["continual"])
    assert to_the_end(config) > 20
    cut = only_run(tmp_path / "cut")
    assert (results(cut), events(cut)) == (results(whole), events(whole))
    assert len(steps) == counted


@pytest.mark.usefixtures("handlers_kept")
@pytest.mark.parametrize(("method", "says"), [("event", "the state is saved"), ("results", "seed 4 is finished")])
def test_no_seed_is_begun_after_a_run_was_asked_to_stop(
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    says: str,
) -> None:
    write = getattr(RunLog, method)

    def asked(log: RunLog, *args: Any, **fields: Any) -> None:
        monkeypatch.setattr(RunLog, method, write)
        os.kill(os.getpid(), signal.SIGTERM)
        write(log, *args, **fields)

    monkeypatch.setattr(RunLog, method, asked)
    config = configuration(images, tmp_path / "cut", seed=[4, 5], auto_resume=True, max_tasks=1)
    with pytest.raises(StoppedError, match=rf"(?s){says}.*to train the other seeds, repeat .*--auto_resume"):
        trainer.train(config, "tiny")
    assert [path.name[-2:] for path in (tmp_path / "cut").iterdir()] == ["s4"]
    trainer.train(config, "tiny")
    assert all((path / "results.json").exists() for path in (tmp_path / "cut").iterdir())


@pytest.fixture(scope="module")
def _begun(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, every=60, saved=True)
        with pytest.raises(Killed):
            trainer.train(configuration(images, folder), "tiny")
    return folder


@pytest.fixture
def begun(_begun: Path, tmp_path: Path) -> Path:
    """A run that was ended in the rd phase of task 1 or thereabouts."""
    return only_run(shutil.copytree(_begun, tmp_path / "cut"))


def states(path: Path) -> list[Path]:
    return sorted((path / "resume").iterdir())


def test_two_states_are_kept_and_a_damaged_one_falls_back_to_the_one_before(
    begun: Path,
    finished: Callable[..., Path],  # noqa: F811
    images: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    _, newer = states(begun)
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes(content)
    trainer.train(configuration(images, tmp_path / "cut", resume=str(begun)), "tiny")
    assert f"{newer}: cannot be read: its checksum is wrong" in (begun / "log.txt").read_text()
    assert (results(begun), events(begun)) == (results(whole := finished()), events(whole))


def test_with_no_whole_state_the_run_is_neither_begun_anew_nor_lost(
    begun: Path,
    images: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for state in states(begun):
        state.write_bytes(state.read_bytes()[:-1])
    before = {file: file.read_bytes() for file in begun.rglob("*") if file.is_file() and file.name != "log.txt"}
    with pytest.raises(StateError, match=r"resume: no state can be used; --overwrite starts the run again"):
        trainer.train(configuration(images, tmp_path / "cut", resume=str(begun)), "tiny")
    after = {file: file.read_bytes() for file in begun.rglob("*") if file.is_file() and file.name != "log.txt"}
    assert after.keys() == before.keys()
    assert all(after[file] == before[file] for file in before if file.name != ".lock")


def test_events_that_a_state_has_seen_and_the_file_has_lost_send_it_back_to_the_state_before(
    begun: Path,
    finished: Callable[..., Path],  # noqa: F811
    images: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    metrics = begun / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-1])
    trainer.train(configuration(images, tmp_path / "cut", resume=str(begun)), "tiny")
    assert "its events are missing from the metrics; using the state before it" in (begun / "log.txt").read_text()
    assert events(begun) == events(finished())


def test_a_state_of_another_run_or_network_is_refused_and_nothing_changes(
    begun: Path,
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = (begun / "metrics.jsonl").read_bytes() + b"since the newest state\n"
    (begun / "metrics.jsonl").write_bytes(before)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, "_name", "another-s4")
        with pytest.raises(StateError, match="no state can be used"):
            trainer.train(configuration(images, tmp_path / "cut", resume=str(begun)), "tiny")
        assert "of another run" in (begun / "log.txt").read_text()
    monkeypatch.setattr("backbone.vit_sema.weights_hash", lambda state: "0" * 64)
    with pytest.raises(CheckpointError, match="the checkpoint was made on"):
        trainer.train(configuration(images, tmp_path / "cut", resume=str(begun)), "tiny")
    assert (begun / "metrics.jsonl").read_bytes() == before
    assert len(states(begun)) == 2


def test_a_run_goes_on_only_as_it_was_begun(begun: Path, images: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(RunDirError) as refusal:
        trainer.train(configuration(images, tmp_path, resume=str(begun), batch_size=4, seed=5, func_epoch=9), "tiny")
    assert str(refusal.value).splitlines()[1:] == [
        "  batch_size: started with 8, now 4",
        "  func_epoch: started with 2, now 9",
        "  seed: started with [4], now [5]",
    ]
    trainer.train(configuration(images, tmp_path, resume=str(begun), eval_every=3, checkpoint_every=0), "tiny")
    with pytest.raises(RunDirError, match="the run is finished"):
        trainer.train(configuration(images, tmp_path, resume=str(begun)), "tiny")


def test_a_begun_run_is_not_begun_anew_by_accident(begun: Path, images: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(
        RunDirError, match=r"already started: .*; use --auto_resume to continue it, or --overwrite to start again"
    ):
        trainer.train(configuration(images, tmp_path / "cut"), "tiny")
    trainer.train(configuration(images, tmp_path / "cut", overwrite=True), "tiny")
    assert "replaces an unfinished run" in (begun / "log.txt").read_text()


def test_auto_resume_goes_on_begins_and_leaves_alone_seed_by_seed(
    begun: Path,
    images: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    trainer.train(configuration(images, tmp_path / "cut", seed=7), "other-name")
    done = next((tmp_path / "cut").glob("other-name-*-s7"))
    before = (done / "results.json").read_bytes()
    trainer.train(configuration(images, tmp_path / "cut", auto_resume=True, seed=[4, 6, 7]), "tiny")
    runs = {path.name[-2:]: json.loads((path / "results.json").read_text()) for path in (tmp_path / "cut").iterdir()}
    assert {seed: len(found["run"]["resumed"]) for seed, found in runs.items()} == {"s4": 1, "s6": 0, "s7": 0}
    assert (done / "results.json").read_bytes() == before


def test_no_draw_comes_from_a_global_generator(
    finished: Callable[..., Path],  # noqa: F811
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a state needs none of theirs: they can be in any state at any step."""
    whole = finished(**FUNCTION)
    keep = StateKeeper.__call__

    def stirred(keeper: StateKeeper, point: str) -> None:
        torch.manual_seed(torch.seed() % 1000)
        np.random.seed(None)
        random.seed()
        keep(keeper, point)

    monkeypatch.setattr(StateKeeper, "__call__", stirred)
    other = run("stirred", **FUNCTION)
    assert (results(other), events(other)) == (results(whole), events(whole))


# ---- losses that are no numbers


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Let the n-th loss of the process be a value."""

    def put(place: int, value: float) -> None:
        for kind in (FuncLoss, RdLoss):

            def poisoned(self: Loss, *batch: Any, loss: Any = kind.__call__) -> Any:
                calls.append("")
                found, hits = loss(self, *batch)
                return found * value if len(calls) == place else found, hits

            monkeypatch.setattr(kind, "__call__", poisoned)

    calls: list[str] = []
    return put


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_the_state_before_is_kept(
    poison: Callable[[int, float], None],
    images: Path,  # noqa: F811
    tmp_path: Path,
    finished: Callable[..., Path],  # noqa: F811
    value: float,
) -> None:
    whole = finished()
    poison(5, value)
    with pytest.raises(DivergenceError) as stop:
        trainer.train(configuration(images, tmp_path / "cut"), "tiny")
    place, rates = "task 0 cycle 0 func phase, epoch 2, batch 2", "slow 0.0005, fast 0.005, other 0.0025"
    keys = "nested_lora_lr_slow, nested_lora_lr_fast, init_lr"
    assert str(stop.value) == f"{place}: the loss is {value} (rates: {rates}; keys: {keys})"
    path = only_run(tmp_path / "cut")
    trainer.train(configuration(images, tmp_path / "cut", resume=str(path)), "tiny")  # this time without the poison
    assert (results(path), events(path)) == (results(whole), events(whole))


def test_a_batch_without_a_finite_loss_can_be_left_out(
    poison: Callable[[int, float], None],
    run: Callable[..., Path],  # noqa: F811
) -> None:
    poison(5, float("nan"))
    path = run(on_nan="skip")
    assert [event.get("skipped") for event in events(path, "epoch")][:3] == [None, [2], None]
    assert "epoch 2, batch 2: the loss is nan; skipped (on_nan)" in (path / "log.txt").read_text()
    assert (events(path, "cadence")[0]["steps"], events(path, "cadence")[0]["observed"]) == (5, [2, 4])


def test_skipping_changes_nothing_where_there_is_nothing_to_skip(
    finished: Callable[..., Path],  # noqa: F811
    run: Callable[..., Path],  # noqa: F811
) -> None:
    stop, skip = finished(), run("skip", on_nan="skip")
    assert (results(stop), events(stop)) == (results(skip), events(skip))


def test_a_parameter_that_is_no_number_is_found_before_anything_is_saved(
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Phase.step

    def overflow(phase: Phase) -> dict[str, int]:
        moves = step(phase)
        bias = phase.optimizer.param_groups[-1]["params"][-1]  # of the head
        with torch.no_grad():
            bias[-1] = float("inf")  # a class of a later task: no loss shows it
        return moves

    monkeypatch.setattr(Phase, "step", overflow)
    with pytest.raises(DivergenceError, match="epoch 1, by batch 3: a parameter is not finite"):
        trainer.train(configuration(images, tmp_path / "cut"), "tiny")
    assert not (only_run(tmp_path / "cut") / "resume").exists()
