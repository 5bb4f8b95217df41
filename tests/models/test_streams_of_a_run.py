"""Draws, caches and records that must not be shared: tests that each notice one likely mistake."""

from functools import partial

import pytest
import torch
from learners import LAYERS, STRANGE, learn
from torch import Tensor
from torch.utils.data import Dataset

from models.losses import FuncLoss, RdLoss
from utils.data.loader import Batch, StreamLoader


class Noise(Dataset[tuple[int, Tensor, int]]):
    """Images that are noise, another for each view."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        return index, torch.rand(3, 32, 32), 0


def test_adapters_of_a_layer_are_drawn_from_streams_of_their_own(make, tasks, script, monkeypatch):
    learner, born = make(), []
    script({1: [STRANGE] * 50})
    expand = type(learner)._expand

    def noted(self, slot):
        expand(self, slot)
        born.append(slot.newest.functional.down_proj.weight.detach().clone())

    monkeypatch.setattr(type(learner), "_expand", noted)
    first = learner.network.slots[1].newest.functional.down_proj.weight.detach().clone()
    learn(learner, tasks([2, 2, 2]), tasks=3)
    assert len(born) == 2
    draws = [first, *born]
    assert not [1 for i, a in enumerate(draws) for b in draws[:i] if torch.equal(a, b)]


def test_every_cycle_of_a_task_draws_batches_of_its_own(make, tasks, script, monkeypatch):
    learner, orders = make(), []
    script({1: [STRANGE], 2: [STRANGE, STRANGE]})
    order = StreamLoader.order

    def noted(self, *stream, shuffle):
        found = order(self, *stream, shuffle=shuffle)
        if stream[0] == "func" and stream[1] == 1:
            orders.append(found)
        return found

    monkeypatch.setattr(StreamLoader, "order", noted)
    learn(learner, tasks([2, 2, 2]), tasks=2)
    assert len(orders) == 4  # two cycles of two epochs
    assert not [1 for i, a in enumerate(orders) for b in orders[:i] if a == b]


def test_a_loaded_checkpoint_is_evaluated_anew(make, tasks, tmp_path):
    data, learner = tasks([2, 2, 2]), make(eval_batch_size=2)
    learner.incremental_train(data)
    learner.save_checkpoint(tmp_path / "first.safetensors", {})
    learner.after_task()
    other = make(eval_batch_size=2, init_lr=0.3)
    other.incremental_train(data)
    before = other.predict()  # from now on the cache holds what the other network's first layers gave
    kept = other.evaluator.cache.batches(other.network.active_branches)
    assert kept
    other.load_checkpoint(tmp_path / "first.safetensors")
    assert not other.evaluator.cache.batches(other.network.active_branches)
    other.begin_test(data)
    fresh = make(eval_batch_size=2)
    fresh.load_checkpoint(tmp_path / "first.safetensors")
    fresh.begin_test(data)
    found, expected = other.predict(), fresh.predict()
    assert before.labels.tolist() == found.labels.tolist()
    assert found.top1.tolist() == expected.top1.tolist()


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_going_on_in_an_rd_phase_recalls_the_views_that_were_seen(make, epoch):
    """The losses of an epoch, whole and taken up in its middle by a loss that has kept nothing yet."""
    learner = make()
    network = learner.network.eval()

    def losses(loss: RdLoss, epoch: int, start: int) -> list[float]:
        return [float(loss(batch)[0].detach()) for batch in loss.batches(epoch, start)]

    def new() -> RdLoss:
        keep = partial(learner.views.kept, views=2, task=0)
        return RdLoss(network, StreamLoader(Noise(), 0, torch.device("cpu"), 3), ("rd", 0, 0), 5, keep)

    whole = new()
    assert [slot.layer for slot in whole.slots] == list(LAYERS)
    by_epoch = [losses(whole, number, 0) for number in range(epoch + 1)]
    assert by_epoch[0] != by_epoch[1]
    assert losses(new(), epoch, 1) == by_epoch[epoch][1:]


def test_a_skipped_batch_leaves_nothing_in_the_records(make, tasks, monkeypatch):
    """Records of a run in which the second batch of the func phase is skipped: all losses but that batch's."""
    learner, seen = make(on_nan="skip", rd_epoch=0, func_epoch=1), []
    func_loss = FuncLoss.__call__

    def second_is_nan(self: FuncLoss, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, hits = func_loss(self, batch)
        self.network.eval()
        means = self.network.token_means(batch[1], LAYERS)
        self.network.train()
        seen.append({layer: self.network.slots[layer].newest.rd.loss(means[layer]).detach() for layer in LAYERS})
        return (loss * float("nan") if len(seen) == 2 else loss), hits

    monkeypatch.setattr(FuncLoss, "__call__", second_is_nan)
    learn(learner, tasks([2, 2, 2]))
    assert [len(losses[1]) for losses in seen] == [5, 5, 2]
    for layer in LAYERS:
        expected = torch.cat([seen[0][layer], seen[2][layer]])
        torch.testing.assert_close(learner.network.slots[layer].newest.records.losses, expected, rtol=1e-4, atol=1e-6)
