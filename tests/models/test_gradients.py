"""Recorded steps against steps computed as they come. A stand-in for a CUDA graph runs the function again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import registered
from safetensors.torch import load_file
from test_trainer import events, images, results, run  # noqa: F401
from torch import Tensor

from models import graphs
from models.gradients import Gradients
from models.graphs import CudaGraph, Function, recorder, unrecorded
from utils.inc_net import SEMAVitNet

CASES: dict[str, dict[str, Any]] = {
    "adaptmlp": {"ffn_adapter_type": "adaptmlp"},
    "skip": {},
    "zero_grad": {"nested_lora_slow_update": "zero_grad"},
    "accumulate": {"nested_lora_slow_update": "accumulate"},
    "consolidation": {"nested_lora_use_consolidation": True, "nested_lora_consolidation_mode": "function"},
    "continual": {"adapter_lifetime": "continual", "optimizer": "adam"},
    "views": {"views": 2},
    "telemetry": {"telemetry_every": 2},
    "bf16": {"precision": "bf16"},
    "on_nan": {"on_nan": "skip"},
}


class Rerun:
    """Inputs and outputs have fixed places, as those of a CUDA graph."""

    made: list["Rerun"]
    replays: int

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]
        for _ in range(2):  # as the runs before a recording
            outputs = function(*self.inputs)
        self.outputs = [tensor.clone() for tensor in outputs]
        Rerun.made.append(self)

    def replay(self) -> None:
        Rerun.replays += 1
        for place, value in zip(self.outputs, self.function(*self.inputs), strict=True):
            place.copy_(value)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def switch(on: bool) -> None:
        Rerun.made, Rerun.replays = [], 0
        monkeypatch.setattr(graphs, "recorder", lambda *_: Rerun if on else None)

    return switch


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_recorded_steps_is_the_same_bit_for_bit(recording, run: Callable[..., Path], case: str) -> None:  # noqa: F811
    keys = {"max_tasks": 2, "exp_threshold": 0.0, "batch_size": 5, **CASES[case]}
    recording(False)
    plain = run("plain", **keys)
    recording(True)
    replayed = run("replayed", **keys)
    assert len(Rerun.made) > 2
    assert ("views" in keys) == any(len(graph.outputs) == 1 for graph in Rerun.made)
    assert Rerun.replays > len(Rerun.made)
    assert events(replayed) == events(plain)
    for task in (0, 1):
        one, other = (load_file(sorted(path.glob("checkpoints/*.safetensors"))[task]) for path in (plain, replayed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_that_hooks_watch_and_an_uneven_batch_are_computed_as_they_come(make_gradients):
    gradients, batch = make_gradients(3)
    gradients(batch, seen=True)
    gradients((batch[0][:2], batch[1][:2], batch[2][:2]))
    with unrecorded():
        gradients(batch)
    assert not Rerun.made
    gradients(batch)
    assert len(Rerun.made) == Rerun.replays == 1


def test_what_a_step_returns_outlives_the_next(make_gradients):
    gradients, batch = make_gradients(3)
    loss, _ = gradients(batch)
    before = float(loss)
    other, _ = gradients((batch[0], batch[1] + 1, batch[2]))
    assert float(loss) == before != float(other)


def test_a_step_that_cannot_be_recorded_is_computed_as_it_comes_with_one_warning(make_gradients, caplog):
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    gradients, batch = make_gradients(3)
    expected = gradients(batch)
    gradients, batch = make_gradients(3)
    gradients.record = refuse
    found = [gradients(batch) for _ in range(2)]
    assert all(torch.equal(loss, expected[0]) for loss, _ in found)
    assert caplog.text.count("operation not permitted when stream is capturing") == 1
    assert "more" not in caplog.text


@pytest.fixture
def make_gradients(recording, make, tasks) -> Callable[[int], tuple[Gradients, Any]]:
    def made(size: int) -> tuple[Gradients, Any]:
        recording(True)
        learner = make()
        learner.begin_data(tasks([2, 2, 2]))
        learner.begin_task()
        phase, loss = learner.update_optimizer_and_scheduler("func"), learner.loss("func")
        learner.network.train()
        batch = next(iter(learner.train_loader.epoch("x", batch_size=size, shuffle=False)))
        return Gradients.of(phase.optimizer, loss, learner.config, size), batch

    return made


@pytest.mark.parametrize(
    ("device", "keys", "found"),
    [
        ("cuda", {}, CudaGraph),
        ("cpu", {}, None),
        ("cuda", {"compile": True}, None),
        ("cuda", {"grad_checkpointing": True}, None),
        ("cuda", {"ffn_adapter_type": "gain"}, None),
    ],
)
def test_steps_are_recorded_on_a_gpu_where_nothing_in_them_forbids_it(config, device, keys, found, monkeypatch):
    with registered("gain"):
        network = SEMAVitNet(config(**{**keys, "compile": False}), 6)
        monkeypatch.setattr(torch.Tensor, "device", property(lambda _: torch.device(device)))
        assert recorder(network, config(**keys)) is found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_run_of_cuda_graphs_is_that_of_single_steps(run: Callable[..., Path], case: str, monkeypatch) -> None:  # noqa: F811
    keys = {"max_tasks": 2, "exp_threshold": 0.0, "batch_size": 5, "device": "cuda", "deterministic": True}
    keys |= CASES[case]
    replayed = run("replayed", **keys)
    monkeypatch.setattr(graphs, "recorder", lambda *_: None)
    assert events(run("plain", **keys)) == events(replayed)
