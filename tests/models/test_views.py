"""The rd phase on kept views: the same numbers as on their images, and nothing loaded for them."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import LAYERS
from test_trainer import events, images, run  # noqa: F401

from models.losses import RdLoss
from utils.data.loader import Batch, StreamLoader
from utils.streams import derive


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which pass every batch of images belongs to."""
    seen: list[str] = []
    on_device = StreamLoader._on_device
    epoch = StreamLoader.epoch
    stream: list[str] = []

    def begin(loader: StreamLoader, *names: Any, **options: Any) -> Any:
        stream[:] = [str(names[0])]
        return epoch(loader, *names, **options)

    def noted(loader: StreamLoader, batch: Any) -> Any:
        seen.append(stream[0])
        return on_device(loader, batch)

    monkeypatch.setattr(StreamLoader, "epoch", begin)
    monkeypatch.setattr(StreamLoader, "_on_device", noted)
    return seen


def test_every_epoch_takes_a_view_and_each_is_loaded_once(
    run: Callable[..., Path],  # noqa: F811
    loaded: list[str],
) -> None:
    run("plain", max_tasks=1, rd_epoch=4, eval_batch_size=8)
    assert (loaded.count("rd"), loaded.count("view")) == (4 * 3, 0)
    loaded.clear()
    path = run("views", max_tasks=1, rd_epoch=4, rd_views=2, eval_batch_size=8)
    assert (loaded.count("rd"), loaded.count("view")) == (0, 2 * 3)
    losses = [event["loss"] for event in events(path, "epoch") if event["phase"] == "rd"]
    assert len(set(losses)) == 4


def test_kept_views_come_in_an_order_of_the_epoch_s_own(make, tasks, monkeypatch):
    seen: list[list[int]] = []
    rd_loss = RdLoss.__call__

    def noted(self: RdLoss, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(batch[0].tolist())
        return rd_loss(self, batch)

    monkeypatch.setattr(RdLoss, "__call__", noted)
    make(rd_epoch=3, rd_views=1).incremental_train(tasks([2]))
    for epoch in range(3):
        named = torch.Generator().manual_seed(derive(0, "order", "rd", 0, 0, epoch))
        assert [*chain(*seen[3 * epoch : 3 * epoch + 3])] == torch.randperm(12, generator=named).tolist()


def test_an_epoch_on_kept_views_is_the_epoch_on_their_images(make, tasks, monkeypatch):
    """Every loss of the third epoch, by hand from the images of the first one's view."""
    learner = make(rd_epoch=3, rd_views=2)
    data = tasks([2, 2, 2])
    batches: list[tuple[float, float]] = []
    rd_loss = RdLoss.__call__

    def noted(self: RdLoss, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        by_hand = 0.0
        if len(batches) >= 6:  # of the third epoch; TinyTasks' images are the same in every view
            everything = learner.train_loader.epoch("any", batch_size=12, shuffle=False)
            _, images, _ = next(iter(everything))
            means = learner.network.token_means(images[batch[0]], LAYERS)
            by_hand = sum(learner.network.slots[i].newest.rd.loss(means[i]).detach().mean().item() for i in LAYERS)
        loss, hits = rd_loss(self, batch)
        batches.append((float(loss.detach()), by_hand))
        return loss, hits

    monkeypatch.setattr(RdLoss, "__call__", noted)
    learner.incremental_train(data)
    assert len(batches) == 9
    assert [loss for loss, _ in batches[6:]] == pytest.approx([by_hand for _, by_hand in batches[6:]], rel=1e-4)
