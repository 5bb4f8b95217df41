"""Test images kept half way: the same numbers, fewer blocks, within bounds, never of a network that has changed."""

import errno
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from conftest import TinyTasks
from learners import CONTINUAL, NESTED, SMALL
from test_trainer import configuration, events, images, results, run  # noqa: F401
from torch.utils.data import Dataset

from backbone.vit_sema import sema_blocks
from eval import evaluate
from models import Setup, get_model
from models.base import BaseLearner
from models.evaluation import ActivationCache, allocate, on_disk
from models.sema import Learner
from utils.inc_net import SEMAVitNet
from utils.memory import GIB

BOTH = ("slow", "fast")
X, LABELS = torch.arange(24.0).view(2, 3, 4), torch.tensor([1, 2])
SIZE = X.nbytes / GIB


# ---- the cache itself


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_batches_come_back_as_they_were(where):
    cache = ActivationCache(1, where)
    cache.offer(BOTH, 0, X, LABELS)
    (kept,) = cache.batches(BOTH)
    assert torch.equal(kept.x, X)
    assert torch.equal(kept.labels, LABELS)
    assert cache.batches(("slow",)) == []


def test_a_batch_that_is_kept_is_a_copy():
    cache, x = ActivationCache(1), X.clone()
    cache.offer(BOTH, 0, x, LABELS)
    x.zero_()
    assert torch.equal(cache.batches(BOTH)[0].x, X)


def test_only_the_first_batches_without_a_gap_are_kept():
    cache = ActivationCache(1)
    for number in (0, 2, 1, 1):
        cache.offer(BOTH, number, X + number, LABELS)
    assert [int(kept.x[0, 0, 0]) for kept in cache.batches(BOTH)] == [0, 1]


def test_the_bound_is_one_for_all_branches_and_a_smaller_batch_fills_no_gap():
    cache = ActivationCache(2.5 * SIZE)
    cache.offer(BOTH, 0, X, LABELS)
    cache.offer(("slow",), 0, X, LABELS)
    cache.offer(BOTH, 1, X, LABELS)
    cache.offer(BOTH, 1, X[:1], LABELS[:1])
    assert [len(cache.batches(branches)) for branches in (BOTH, ("slow",))] == [1, 1]
    cache.clear()
    cache.offer(BOTH, 0, X, LABELS)
    cache.offer(BOTH, 1, X, LABELS)
    assert len(cache.batches(BOTH)) == 2


def test_the_room_that_bfloat16_takes_is_half():
    cache = ActivationCache(SIZE)
    for number in range(3):
        cache.offer(BOTH, number, X.bfloat16(), LABELS)
    assert [kept.x.dtype for kept in cache.batches(BOTH)] == [torch.bfloat16] * 2


def test_a_full_disk_ends_the_keeping_and_nothing_else(monkeypatch, caplog):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    cache = ActivationCache(1, "disk")
    cache.offer(BOTH, 0, X, LABELS)
    monkeypatch.setattr("models.evaluation.os.posix_fallocate", full)
    with caplog.at_level(logging.WARNING):
        cache.offer(BOTH, 1, X, LABELS)
    monkeypatch.undo()
    cache.offer(BOTH, 1, X, LABELS)
    assert len(cache.batches(BOTH)) == 1
    assert "No space left on device" in caplog.text


def test_a_file_on_disk_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x = on_disk(X)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(x, X)


LIMITED = """
import os, resource, sys, tempfile, torch
from models.evaluation import on_disk
lacks, tempfile.tempdir, room = sys.argv[1:]
lacks and delattr(os, lacks)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
try:
    print(on_disk(torch.arange(24.0).view(2, 3, 4)).sum().item())
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("lacks", ["", "posix_fallocate"])
@pytest.mark.parametrize("room", [X.nbytes, X.nbytes - 1])
def test_a_disk_without_room_is_an_error_with_and_without_a_way_to_reserve_it(tmp_path, tmp_path_factory, lacks, room):
    """In a process of its own, whose files have a limit: at a later write it would be ended by the system."""
    arguments = ("-c", LIMITED, lacks, str(tmp_path), str(room))
    done = forked.python(arguments, Path(__file__).parents[2], os.environ, tmp_path_factory.mktemp("consoles"))
    fits = room == X.nbytes
    assert (done.returncode, done.stdout) == ((0, "276.0\n") if fits else (1, ""))
    assert fits or "OSError: [Errno 27] File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_reserve_room_is_written(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", refuse, raising=False)
    monkeypatch.setattr("models.evaluation.BLOCK", 10)
    with (tmp_path / "file").open("wb") as file:
        allocate(file, 25)
    assert (tmp_path / "file").read_bytes() == bytes(25)


# ---- in runs


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(task, images) of every test batch that goes through the first half of the network."""
    seen: list[tuple[int, int]] = []
    forward_to = SEMAVitNet.forward_to
    predict = BaseLearner.predict
    learners: list[Any] = []

    def noted(network: SEMAVitNet, x: torch.Tensor, layer: int) -> torch.Tensor:
        if learners:
            seen.append((learners[-1].cur_task, len(x)))
        return forward_to(network, x, layer)

    def predicting(learner: BaseLearner) -> Any:
        learners.append(learner)
        found = predict(learner)
        learners.clear()
        return found

    monkeypatch.setattr(SEMAVitNet, "forward_to", noted)
    monkeypatch.setattr(BaseLearner, "predict", predicting)
    return seen


KINDS: dict[str, dict[str, Any]] = {
    "adaptmlp": {"ffn_adapter_type": "adaptmlp", "eval_every": 1},
    "nested": {},
    "weights": {"nested_lora_use_consolidation": True},
    "continual": {"adapter_lifetime": "continual", "nested_lora_use_consolidation": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_runs_with_and_without_are_bitwise_equal(run: Callable[..., Path], kind: str, where: str) -> None:  # noqa: F811
    keys = {**KINDS[kind], "eval_batch_size": 5}
    plain, kept = run("plain", eval_cache_gib=0.0, **keys), run("kept", eval_cache_on=where, **keys)
    assert results(kept) == results(plain)
    assert events(kept) == events(plain)


def test_after_task_0_only_new_images_go_through_the_first_half(
    run: Callable[..., Path],  # noqa: F811
    through: list[tuple[int, int]],
) -> None:
    run(ffn_adapter_type="adaptmlp", eval_batch_size=4)  # 8 test images a task
    assert through == [(task, 4) for task in range(3) for _ in range(2)]


def test_branches_are_kept_apart_and_adapters_that_learn_again_are_never_kept(
    run: Callable[..., Path],  # noqa: F811
    through: list[tuple[int, int]],
) -> None:
    run("a", eval_batch_size=4)
    assert through == [(task, 4) for task in range(3) for _ in range(3 * 2)]  # of `neither` features are kept
    through.clear()
    run("b", eval_batch_size=4, adapter_lifetime="continual", branch_eval=False)
    assert through == [(task, 4) for task in range(3) for _ in range(2 * (task + 1))]


@pytest.mark.parametrize("keys", [{"ffn_adapter_type": "adaptmlp"}, {}, {"eval_cache_gib": 0.0, "branch_eval": False}])
def test_with_all_adapters_off_an_image_goes_through_the_network_once_in_a_run(
    run: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
) -> None:
    whole: list[bool] = []
    forward_to, blocks = SEMAVitNet.forward_to, []

    def noted(network: SEMAVitNet, x: torch.Tensor, layer: int) -> torch.Tensor:
        blocks[:] = sema_blocks(network.backbone)
        if blocks[0].adapters_off:
            assert all(block.adapters_off for block in blocks)
            whole.append(len(x) == 4)
        return forward_to(network, x, layer)

    monkeypatch.setattr(SEMAVitNet, "forward_to", noted)
    run(**keys, eval_batch_size=4, readouts=[])  # 8 test images a task
    assert whole == [True] * 6
    assert not any(block.adapters_off for block in blocks)


@pytest.fixture
def entering(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What enters the second half of the network in evaluations that begin behind settled layers."""
    seen: list[torch.Tensor] = []
    forward_from = SEMAVitNet.forward_from

    def noted(network: SEMAVitNet, x: torch.Tensor, layer: int) -> dict[str, torch.Tensor]:
        if layer:
            seen.append(x)
        return forward_from(network, x, layer)

    monkeypatch.setattr(SEMAVitNet, "forward_from", noted)
    return seen


BFLOAT16: dict[str, dict[str, Any]] = {
    "plain": {},
    "no cache": {"eval_cache_gib": 0.0},
    "a small cache": {"eval_cache_gib": 2e-6},  # 2,147 bytes, where a batch takes 5 x 5 x 32 x 2
    "on disk": {"eval_cache_on": "disk"},
    "every epoch": {"eval_every": 1},
    "no branches": {"branch_eval": False},
}


@pytest.mark.parametrize("way", [*BFLOAT16, "products in bfloat16"])
def test_every_evaluation_behind_settled_layers_is_of_rounded_activations(
    run: Callable[..., Path],  # noqa: F811
    entering: list[torch.Tensor],
    way: str,
) -> None:
    keys = {"max_tasks": 2, "eval_batch_size": 5, **BFLOAT16.get(way, {"precision": "bf16"})}
    run("rounded", eval_cache_bf16=True, **keys)
    assert all(x.dtype == torch.float32 and torch.equal(x, x.bfloat16().float()) for x in entering)
    assert len(entering) > 5


def test_without_the_key_activations_are_not_rounded(
    run: Callable[..., Path],  # noqa: F811
    entering: list[torch.Tensor],
) -> None:
    run(max_tasks=1, eval_batch_size=5)
    assert not any(torch.equal(x, x.bfloat16().float()) for x in entering)


def test_rounded_runs_have_the_same_accuracies_however_they_are_evaluated(
    run: Callable[..., Path],  # noqa: F811
    images: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    keys = {"eval_batch_size": 5, "eval_cache_bf16": True}
    found = {way: run(way, **keys, **more) for way, more in BFLOAT16.items()}
    accuracies = [results(path)["tasks"] for path in found.values()]
    assert accuracies == accuracies[:1] * len(BFLOAT16)
    for task, expected in enumerate(accuracies[0]):
        file = found["plain"] / "checkpoints" / f"task_{task}.safetensors"
        again = evaluate(configuration(images, tmp_path, **keys, eval=True, checkpt_path=str(file)))
        assert again["accuracy"] == expected["accuracy"]


def test_another_state_forgets_what_was_kept(run: Callable[..., Path], images: Path, tmp_path: Path) -> None:  # noqa: F811
    from models import Setup, get_model
    from trainer import make_tasks
    from utils.data.sources import load_dataset

    config = configuration(images, tmp_path, ffn_adapter_type="adaptmlp", eval_batch_size=4)
    tasks = make_tasks(config, load_dataset("npz", images))
    learner = get_model(Setup(config, 4, torch.device("cpu"), tasks.nb_classes))
    learner.incremental_train(tasks)
    learner.eval_task()
    branches, cache = learner.network.active_branches, learner.evaluator.cache
    learner.predict_off()
    assert len(cache.batches(branches)) == len(learner.evaluator.features.batches(("0",))) == 2
    learner.restore(learner.state())
    assert cache.batches(branches) == learner.evaluator.features.batches(("0",)) == []


class WithValidation(TinyTasks):
    """Its validation images are its test images in reverse order."""

    def get_dataset(self, indices: Iterable[int], source: str, mode: str, **how: object) -> Dataset[Any]:
        if source == "val":
            self.images |= {("val", label): self.images["test", label][::-1].copy() for label in range(sum(self.sizes))}
        return super().get_dataset(indices, source, mode, **how)


LEARNERS: dict[str, dict[str, Any]] = {
    "nested": NESTED,
    "expandable": {**CONTINUAL, "nested_lora_continual_layers": "expandable"},
    "views": {"views": 2},
    "linear": {"model_name": "linear"},
    "ranpac": {"model_name": "ranpac"},
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_what_an_image_is_answered_does_not_depend_on_when_it_was_seen_first(config, kind) -> None:
    """Each task's answers of a learner that has kept test images since task 0, and of one that is resumed and has none.

    With and without adapters, of validation images, and of readouts.
    """
    keys = {**SMALL, "eval_cache_bf16": True, "val_fraction": 0.5, "readouts": ["ncm"], "eval_batch_size": 3}
    data = WithValidation([2, 2, 2])

    def make() -> Learner:
        return get_model(Setup.of(config(**{**keys, **LEARNERS[kind]})))

    def answers(learner: Learner) -> dict[str, np.ndarray]:
        report = learner.report_task()
        parts = {"": report.predictions, "off": report.off, "val": report.val, **report.branches}
        found = {f"{part} {name}": array for part, seen in parts.items() for name, array in seen._asdict().items()}
        return found | learner.read_out(report)

    learner = make()
    for task in range(3):
        learner.incremental_train(data)
        resumed = make()
        resumed.restore(learner.state())
        resumed.readouts.load_state_dict(learner.readouts.state_dict())  # of the checkpoint before, as the trainer does
        resumed.open_data(data)
        kept = len(learner.evaluator.cache.batches(learner.network.active_branches))
        assert bool(kept) == bool(task)
        first, later = answers(learner), answers(resumed)
        assert first.keys() == later.keys() > {" confidence", "off confidence", "val features", "ncm"}
        for name, array in first.items():
            np.testing.assert_array_equal(array, later[name], name)
        learner.after_task()
