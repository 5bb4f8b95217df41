"""Our learner, and the plain one of the benchmarks, against recorded runs of the public SEMA implementation."""

from pathlib import Path

import pytest
import torch
from parity_cases import NAMES, Record, RecordedTasks, backbone_weights, kaiming_uniform_, uniform_
from safetensors.torch import save_file

from benchmarks.reference import Reference
from models.sema import Learner


@pytest.fixture(autouse=True)
def recorded_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", kaiming_uniform_)
    monkeypatch.setattr(torch.nn.init, "uniform_", uniform_)


@pytest.fixture(params=[Learner, Reference])
def kind(request: pytest.FixtureRequest) -> type[Learner]:
    return request.param


def learner_for(kind: type[Learner], record: Record, weights: Path) -> Learner:
    save_file(backbone_weights(record.shape), weights)
    ours = {"seed": 0, "device": [torch.device("cpu")], "num_workers": 0}
    return kind({**record.config, **ours, "backbone_kwargs": record.shape, "backbone_checkpoint": str(weights)})


@torch.no_grad()
def logits_of(learner: Learner, images: torch.Tensor) -> torch.Tensor:
    return learner.network.eval()(images)["logits"]


@pytest.mark.parametrize("name", NAMES)
def test_every_task_of_a_recorded_run(kind: type[Learner], name: str, tmp_path: Path) -> None:
    record = Record(name)
    learner, tasks = learner_for(kind, record, tmp_path / "vit.safetensors"), RecordedTasks(record)
    for task, expected in enumerate(record.tasks):
        learner.incremental_train(tasks)
        accuracy, _ = learner.eval_task()
        assert [slot.num_adapters for slot in learner.network.slots] == expected["adapters"]
        assert accuracy["grouped"] == pytest.approx(expected["grouped"], abs=0.011)
        assert accuracy["top1"] == pytest.approx(expected["top1"], abs=0.011)
        assert accuracy["top5"] == pytest.approx(expected["top5"], abs=0.011)
        logits = logits_of(learner, tasks.test_images())
        torch.testing.assert_close(logits, torch.from_numpy(record.logits[task]), rtol=0, atol=record.tolerance)
        learner.after_task()


@pytest.mark.parametrize("name", NAMES)
def test_a_public_checkpoint_gives_the_recorded_logits(kind: type[Learner], name: str, tmp_path: Path) -> None:
    record = Record(name)
    learner = learner_for(kind, record, tmp_path / "vit.safetensors")
    learner.load_checkpoint(record.checkpoint)
    logits = logits_of(learner, RecordedTasks(record).test_images())
    torch.testing.assert_close(logits, torch.from_numpy(record.logits[-1]), rtol=0, atol=record.tolerance)
