"""The epochs of a phase: their means, the records they fill, and what is refused before the first step."""

import pytest
import torch
from learners import LAYERS, NESTED, STRANGE, learn
from torch import Tensor

from backbone.sema_components import AE
from models.losses import FuncLoss, RdLoss
from utils.data.loader import Batch
from utils.errors import ConfigError


def test_an_epochs_loss_and_accuracy_are_means_over_images(make, tasks, events, monkeypatch):
    """12 images in batches of 5, 5 and 2: the small last batch weighs less."""
    learner, batches = make(), {"func": [], "rd": []}
    func_loss, rd_loss = FuncLoss.__call__, RdLoss.__call__

    def func(self: FuncLoss, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, hits = func_loss(self, batch)
        batches["func"].append((loss.item(), len(batch[0]), hits.item()))
        return loss, hits

    def rd(self: RdLoss, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, hits = rd_loss(self, batch)
        batches["rd"].append((loss.item(), len(batch[0]), 0))
        return loss, hits

    monkeypatch.setattr(FuncLoss, "__call__", func)
    monkeypatch.setattr(RdLoss, "__call__", rd)
    learn(learner, tasks([2, 2, 2]))
    epochs = list(events.of("epoch"))
    assert len(epochs) == 3
    for epoch in epochs:
        mine = batches[epoch["phase"]][3 * epoch["epoch"] : 3 * epoch["epoch"] + 3]
        assert [count for _, count, _ in mine] == [5, 5, 2]
        assert epoch["loss"] == pytest.approx(sum(loss * count for loss, count, _ in mine) / 12, rel=1e-5)
        if epoch["phase"] == "func":
            assert epoch["train_accuracy"] == pytest.approx(100 * sum(hits for *_, hits in mine) / 12)


def test_an_interval_longer_than_the_phase_is_an_error_that_names_both(make, tasks):
    with pytest.raises(ConfigError, match=r"\b7\b.*task 0.*\b6\b"):
        learn(make(**{**NESTED, "nested_lora_update_interval_slow": 7}), tasks([2, 2, 2]))


# ---- records


def test_records_hold_the_losses_of_both_phases_in_order(make, tasks, monkeypatch):
    """Every loss a descriptor sees in training, through a plain list that fills and then slides."""
    learner, seen = make(buffer_size=23), {1: [], 2: []}
    loss = AE.loss
    owner = {id(learner.network.slots[layer].newest.rd): layer for layer in LAYERS}

    def watched(rd: AE, mean: Tensor) -> Tensor:
        losses = loss(rd, mean)
        seen[owner[id(rd)]].append(losses.detach().tolist())
        return losses

    monkeypatch.setattr(AE, "loss", watched)
    learner.incremental_train(tasks([2, 2, 2]))
    for layer in LAYERS:
        assert [len(batch) for batch in seen[layer]] == [5, 5, 2] * 3
        kept: list[float] = []
        for batch in seen[layer]:
            kept = (kept + batch)[-23:] if len(kept) == 23 else (kept + batch)[:23]
        assert learner.network.slots[layer].newest.records.losses.tolist() == kept


def test_records_stand_still_once_the_adapter_is_frozen(make, tasks, script):
    learner, data = make(), tasks([2, 2, 2])
    learn(learner, data)
    before = [learner.network.slots[layer].newest.records.losses.clone() for layer in LAYERS]
    script({1: [STRANGE]})
    learn(learner, data)
    learner.eval_task()
    for layer, losses in zip(LAYERS, before, strict=True):
        assert torch.equal(learner.network.slots[layer].adapters[0].records.losses, losses)
    assert len(learner.network.slots[1].newest.records) == 20
