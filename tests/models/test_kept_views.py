"""Kept views: a run with them is, bit by bit, a run that computes the same views anew each time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyTasks
from learners import NESTED, SMALL, learn, values
from torch import Tensor

from models import Setup, evaluation, get_model, views
from models.protocol import Hooks
from models.sema import Learner
from models.views import CPU, KeptViews, named, place, prefetched
from utils.data.loader import Batch, StreamLoader
from utils.errors import ConfigError
from utils.memory import GIB

SIZES = [2, 2, 2]
GROWS = {"exp_threshold": 0.5}  # layers expand in later tasks
STAYS = {"exp_threshold": 1e9}  # only the head learns in later tasks
EXPANDABLE = {"adapter_lifetime": "continual", "nested_lora_continual_layers": "expandable"}
CONSOLIDATES = {**NESTED, "nested_lora_use_consolidation": True}


@pytest.fixture
def make(config, events) -> Callable[..., Learner]:
    return lambda **keys: get_model(Setup.of(config(**{**SMALL, "views": 2, "func_epoch": 3, **keys})), Hooks(events))


class Anew(KeptViews):
    """Forgets a view as soon as a batch of it was taken."""

    def _view(self, view: int) -> Tensor:
        self._known.clear()
        self._values = None
        return super()._view(view).clone()


@pytest.mark.parametrize(
    "keys",
    [
        {**GROWS, "func_epoch": 5},
        {**GROWS, **CONSOLIDATES},
        {**GROWS, **EXPANDABLE, **CONSOLIDATES},
        {**STAYS, **EXPANDABLE, "ffn_adapter_type": "adaptmlp"},
        {**GROWS, "views_bf16": True},
        {**GROWS, "precision": "bf16"},
        {**GROWS, "views_gib": 0.0, "views_disk_gib": 1.0},
        STAYS,
        {"model_name": "linear"},
        {**GROWS, "views": 0, "rd_views": 2, "rd_epoch": 5},
        {**GROWS, "rd_epoch": 5},
    ],
)
def test_a_run_with_kept_views_is_one_that_computes_them_anew(make, monkeypatch, tmp_path, keys) -> None:
    monkeypatch.setattr(views, "HEADROOM", 0)
    kept, data = make(**keys), TinyTasks(SIZES)
    kept.hooks.folder = tmp_path
    learn(kept, data, 3)
    monkeypatch.setattr("models.views.KeptViews", Anew)
    anew = make(**keys)
    anew.hooks.folder = tmp_path
    learn(anew, data, 3)
    expected = values(anew.network)
    assert all(torch.equal(value, expected[name]) for name, value in values(kept.network).items())
    grown = sum(slot.num_adapters for slot in kept.network.slots) > len(kept.network.slots)
    assert grown == (keys.get("exp_threshold") == GROWS["exp_threshold"])
    assert list(tmp_path.iterdir()) == []


def test_an_image_has_so_many_views_in_a_task_whatever_the_epochs(make, monkeypatch) -> None:
    """Every pass over the images after the first task is one of the views."""
    passes, epoch = [], StreamLoader.epoch

    def watched(loader: StreamLoader, *stream: Any, **how: Any) -> Any:
        passes.append(stream)
        return epoch(loader, *stream, **how)

    monkeypatch.setattr(StreamLoader, "epoch", watched)
    learner, data = make(**GROWS, func_epoch=5, rd_epoch=4), TinyTasks(SIZES)
    learn(learner, data)
    first = len(passes)
    learn(learner, data, 2)
    assert {stream[0] for stream in passes[:first]} == {"func", "view"}  # the latter of its rd phase
    assert sorted(passes[first:]) == [("view", task, view) for task in (1, 2) for view in (0, 1)]


def test_where_only_the_head_learns_the_features_of_a_view_are_computed_once(make, monkeypatch) -> None:
    learner, data, computed = make(**STAYS, func_epoch=6), TinyTasks(SIZES), []
    learn(learner, data)
    forward = learner.network.forward_from
    monkeypatch.setattr(learner.network, "forward_from", lambda *x: computed.append(len(x[0])) or forward(*x))
    learn(learner, data)
    assert sum(computed) == 2 * 12  # two views of twelve images, for six epochs


def test_epochs_take_the_views_in_turn(make) -> None:
    learner, data = make(**GROWS), TinyTasks(SIZES)
    learn(learner, data)
    learner.begin_data(data)
    source = learner.train_loader
    assert isinstance(source, KeptViews)

    def content(*stream: Any) -> dict[int, Tensor]:
        batches = source.epoch(*stream, batch_size=5, shuffle=True)
        return {int(i): x for indices, xs, _ in batches for i, x in zip(indices, xs, strict=True)}

    found = [content("func", 1, 0, epoch) for epoch in range(4)]
    assert all(torch.equal(found[0][i], found[2][i]) and torch.equal(found[1][i], found[3][i]) for i in range(12))
    assert learner.network.kept_layer == 1
    labels = torch.cat([y for _, _, y in source.epoch("func", 0, batch_size=5, shuffle=False)])
    assert labels.tolist() == [2] * 6 + [3] * 6
    half = [i.tolist() for i, _, _ in source.epoch("func", 0, batch_size=5, shuffle=True, start=1)]
    whole = [i.tolist() for i, _, _ in source.epoch("func", 0, batch_size=5, shuffle=True)]
    assert half == whole[1:]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({**NESTED, "adapter_lifetime": "continual"}, "nested_lora_continual_layers"),
        ({**EXPANDABLE, "adapt_start_layer": 0}, "adapt_start_layer"),
        ({"adapt_start_layer": 0}, "adapt_start_layer"),
        ({"views": 0}, ""),
    ],
)
def test_no_views_are_kept_where_lower_layers_learn_or_none_are_asked_for(make, keys, named) -> None:
    learner, data = make(**GROWS, **keys), TinyTasks(SIZES)
    learn(learner, data)
    learner.begin_data(data)
    assert isinstance(learner.train_loader, StreamLoader)
    plan = learner.plan_views([12, 12, 12])
    assert ("none are kept" in plan) == bool(named)
    assert named in plan


@pytest.mark.parametrize("keys", [{}, EXPANDABLE, {**EXPANDABLE, **CONSOLIDATES}])
def test_a_learner_that_is_restored_in_mid_epoch_goes_on_bit_by_bit(make, keys) -> None:
    class Stop(Exception):
        pass

    data, states = TinyTasks(SIZES), []
    keys = {**GROWS, **NESTED, **keys}
    whole, cut, resumed = make(**keys), make(**keys), make(**keys)
    learn(whole, data, 3)
    learn(cut, data, 2)

    def keep(point: str) -> None:
        if point == "step" and cut.phase is not None and cut.phase.name == "func" and cut.phase.epoch == 1:
            states.append(cut.state())
            raise Stop

    cut.hooks.keep = keep
    with pytest.raises(Stop):
        cut.incremental_train(data)
    assert not any("view" in name for name in states[0])
    resumed.restore(states[0])
    resumed.continue_training(data)
    expected = values(whole.network)
    assert all(torch.equal(value, expected[name]) for name, value in values(resumed.network).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "device",
    [
        CPU,
        pytest.param(
            torch.device("cuda", 0),
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_batches_are_the_same_wherever_they_are_kept(tmp_path, device, dtype) -> None:
    images = torch.rand(50, 300)
    data = [(number, image, number % 7) for number, image in enumerate(images)]
    for where in {device, CPU, tmp_path}:
        loader = StreamLoader(data, 0, device, seed=0)
        source = KeptViews(loader, lambda x: 2 * x, views=2, task=0, batch_size=16, where=where, dtype=dtype)
        for epoch in range(3):
            found = []
            for indices, x, labels in source.epoch("func", epoch, batch_size=7, shuffle=True):
                if device.type == "cuda":
                    torch.cuda._sleep(10**7)  # a step, during which the next batch is copied
                found.append((indices, x.clone(), labels.clone()))
            indices, x, labels = (torch.cat(column).cpu() for column in zip(*found, strict=True))
            assert indices.tolist() == loader.order("func", epoch, shuffle=True)
            assert torch.equal(x, (2 * images).to(dtype).float()[indices])
            assert torch.equal(labels, indices % 7)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_are_sent_on_one_ahead_as_they_are(count) -> None:
    made: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(count):
            made.append(number)
            x = torch.full((1, 2), number + 0.1, dtype=torch.bfloat16)
            yield torch.tensor([number]), x, torch.tensor([-number])

    found = []
    for number, batch in enumerate(prefetched(batches(), CPU, CPU)):
        assert made == list(range(min(number + 2, count)))
        found.append(batch)
    assert len(found) == count
    for (indices, x, labels), (ours, sent, classes) in zip(batches(), found, strict=True):
        assert (ours.tolist(), classes.tolist()) == (indices.tolist(), labels.tolist())
        assert sent.dtype == torch.float32
        assert torch.equal(sent, x.float())


# ---- room


def test_views_go_to_memory_then_to_the_disk_and_else_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(views, "HEADROOM", 0)
    assert place(GIB, 1.0, 0.0, tmp_path) == CPU
    assert place(GIB, 0.5, 1.0, tmp_path) == tmp_path
    assert place(GIB, 0.5, 1.0, tmp_path / "a" / "run") == tmp_path / "a" / "run"  # not made yet
    with pytest.raises(ConfigError, match=r"keeps 1 GiB, more than views_gib \(0.5, in memory\) and views_disk_gib"):
        place(GIB, 0.5, 0.25, tmp_path)
    monkeypatch.setattr(views, "HEADROOM", 2**60)
    with pytest.raises(ConfigError, match=r"which has .* free"):
        place(GIB, 0.5, 1.0, tmp_path)
    monkeypatch.setattr(views, "memory", lambda: GIB // 2)
    with pytest.raises(ConfigError, match=r"views_gib \(4\), and this machine has 512 MiB of memory; lower views"):
        place(GIB, 4.0, 0.0, tmp_path)


def test_views_go_to_a_gpu_that_has_twice_their_room_within_the_same_limit(tmp_path) -> None:
    gpu = torch.device("cuda", 1)
    assert place(GIB, 1.0, 0.0, tmp_path, gpu, 2 * GIB) == gpu
    assert place(GIB, 1.0, 0.0, tmp_path, gpu, 2 * GIB - 1) == CPU
    with pytest.raises(ConfigError, match="views_gib"):
        place(GIB + 1, 1.0, 0.0, tmp_path, gpu, 70 * GIB)
    assert [named(where) for where in (gpu, CPU, tmp_path)] == ["the memory of cuda:1", "memory", str(tmp_path)]


def test_a_disk_that_fills_up_is_said_and_leaves_no_file(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "allocate", full)
    with pytest.raises(OSError, match=rf"No space .*, where views take 4 KiB .*: '{tmp_path}'"):
        views.on_disk((2, 512), torch.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keys", [{"model_name": "linear"}, STAYS])
def test_features_are_kept_where_the_plan_says(make, tmp_path, monkeypatch, caplog, keys: dict[str, Any]) -> None:
    learner = make(**keys, views_gib=0.0, views_disk_gib=1.0)
    learner.hooks.folder = tmp_path
    monkeypatch.setattr(views, "HEADROOM", 0)
    made: list[tuple[int, ...]] = []
    original = views.on_disk
    monkeypatch.setattr(views, "on_disk", lambda shape, *how: made.append(shape) or original(shape, *how))
    with caplog.at_level("INFO"):
        learn(learner, TinyTasks(SIZES), 2)
    assert learner.plan_views([1, 1]).endswith(f"are kept in {tmp_path}")
    assert [len(shape) for shape in made] == ([4, 3] if learner.network.expandable else [3])  # inputs, features
    assert f"task 1: 2 views of 12 images are kept in {tmp_path}" in caplog.text


def test_the_plan_says_what_the_largest_task_takes(make) -> None:
    learner = make(**GROWS, views=3)
    tokens, width = 4 * 4 + 1, 32
    size = 3 * 50 * (tokens + 1) * width * 4  # and the features
    assert learner.views.bytes(50) == size
    assert size == 345_600
    assert learner.plan_views([900, 20, 50]) == "views: from task 1 on, at most 338 KiB are kept in memory"
    assert make(**GROWS, views=3, views_bf16=True).views.bytes(50) == size // 2
    with pytest.raises(ConfigError, match="views_gib"):
        make(**GROWS, views_gib=0.0).plan_views([900, 20, 50])
