import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tools.compare.paired import detectable, difference, holm, pairs_needed, spread

VALUES = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 4))
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=8)


def test_mean_and_sample_deviation_of_hand_made_numbers():
    found = spread([0.8, 0.9, 0.7, 0.6])
    assert found.mean == pytest.approx(0.75)
    assert found.std == pytest.approx(math.sqrt((0.0025 + 0.0225 + 0.0025 + 0.0225) / 3))
    assert found.count == 4


def test_one_value_has_no_deviation_and_nothing_has_no_mean():
    assert (spread([0.5]).mean, spread([0.5]).count) == (0.5, 1)
    assert math.isnan(spread([0.5]).std)
    assert math.isnan(spread([]).mean)
    assert math.isnan(spread([0.5, math.nan]).mean)


def test_the_difference_of_three_pairs_by_hand():
    found = difference([0.80, 0.85, 0.90], [0.78, 0.82, 0.89])
    # differences .02, .03, .01: mean .02, deviation .01, standard error .01 / sqrt 3; t(2) at 97.5 % is 4.302653
    assert found.mean == pytest.approx(0.02)
    assert found.low == pytest.approx(0.02 - 4.302653 * 0.01 / math.sqrt(3))
    assert found.high == pytest.approx(0.02 + 4.302653 * 0.01 / math.sqrt(3))
    # with two degrees of freedom p = 1 - t / sqrt(2 + t^2), and t = 2 sqrt 3
    assert found.p == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14))
    assert found.count == 3


@given(PAIRS)
def test_interval_and_p_are_those_of_one_sample_of_differences(pairs):
    ours, theirs = zip(*pairs, strict=True)
    gaps = np.subtract(ours, theirs)
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(gaps.mean(), abs=1e-12)
    if np.ptp(gaps) < 1e-9:
        assert (found.low, found.high) == (found.mean, found.mean)
        assert math.isnan(found.p)
        return
    error = gaps.std(ddof=1) / math.sqrt(len(gaps))
    half = stats.t.ppf(0.975, len(gaps) - 1) * error
    assert (found.low, found.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(gaps.mean()) / error, len(gaps) - 1), rel=1e-6, abs=1e-12)


def test_equal_differences_give_no_p_value_out_of_rounding():
    found = difference([0.3, 0.4, 0.9], [0.2, 0.3, 0.8])
    assert 0.3 - 0.2 != 0.4 - 0.3  # in floats
    assert found.low == found.high == found.mean == pytest.approx(0.1)
    assert math.isnan(found.p)


def test_a_single_pair_has_a_difference_and_no_interval_and_none_has_nothing():
    found = difference([0.5], [0.4])
    assert found.mean == pytest.approx(0.1)
    assert all(map(math.isnan, (found.low, found.high, found.p)))
    assert math.isnan(difference([], []).mean)
    assert math.isnan(difference([0.5, math.nan], [0.4, 0.4]).mean)


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="shorter"):
        difference([0.5, 0.6], [0.4])


def test_holms_correction_by_hand():
    # in order: 4 x .005 = .02, 3 x .01 = .03, 2 x .03 = .06, and .04 is raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2, 0.2, 0.01]) == pytest.approx([0.4, 0.4, 0.03])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_pairs_needed_are_those_of_tables(effect, pairs):
    """Two-sided paired t test at 5 % with 80 % power, as Cohen's tables and G*Power have them."""
    assert pairs_needed(effect, 1.0, 0.05) == pairs
    assert detectable(1.0, pairs, 0.05) <= effect < detectable(1.0, pairs - 1, 0.05)
    assert pairs_needed(effect / 30, 1.0, 0.05) is None


@pytest.mark.parametrize(
    ("count", "level", "critical"), [(5, 0.05, 2.776445), (3, 0.01, 9.924843), (10, 0.002, 4.296806)]
)
def test_what_is_detectable_is_found_in_four_of_five_simulated_experiments(count, level, critical):
    true = detectable(0.02, count, level)
    drawn = np.random.default_rng(7).normal(true, 0.02, (40_000, count))
    t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / math.sqrt(count))
    assert (np.abs(t) > critical).mean() == pytest.approx(0.8, abs=0.008)
