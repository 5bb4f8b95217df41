import math

import pytest
import torch

from models.phase import EpochSums

CPU = torch.device("cpu")


def test_sums_weigh_batches_by_their_images():
    sums = EpochSums.empty(CPU)
    for loss, correct, images, moves in ((1.0, 3, 4, {}), (4.0, 1, 2, {"slow": 2, "mid": 2}), (4.0, 1, 2, {"slow": 3})):
        sums.add(torch.tensor(loss), torch.tensor(correct), images, moves)
    assert (float(sums.loss) / sums.images, float(sums.correct)) == (2.5, 5.0)
    assert (sums.batches, sums.moved, sums.skipped) == (3, {"slow": [2, 3], "mid": [2]}, [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_not_finite_is_found_once(value):
    sums = EpochSums.empty(CPU)
    for loss in (1.0, value, value):
        sums.add(torch.tensor(loss), torch.tensor(0), 1, {})
    assert repr(sums.first_not_finite()) == repr((2, value))
    assert sums.first_not_finite() is None


def test_a_skipped_batch_is_counted_and_nothing_of_it_summed():
    sums = EpochSums.empty(CPU)
    sums.add(torch.tensor(1.0), torch.tensor(1), 2, {"slow": 1})
    sums.skip()
    assert (sums.batches, sums.images, sums.skipped, float(sums.loss)) == (2, 2, [2], 2.0)


def test_restored_sums_go_on():
    sums = EpochSums.empty(CPU)
    sums.add(torch.tensor(0.5), torch.tensor(1), 2, {"slow": 1})
    sums.skip()
    again = EpochSums.restore(sums.state(), CPU)
    for each in (sums, again):
        each.add(torch.tensor(0.1), torch.tensor(2), 3, {"slow": 2})
    assert {key: repr(value) for key, value in sums.state().items()} == {
        key: repr(value) for key, value in again.state().items()
    }
