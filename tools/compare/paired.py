"""Mean and spread over seeds, and the difference of two configurations run with the same seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
ROUNDING = 1e-12  # relative to the values; smaller variations of a difference are rounding errors


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1); the deviation of one value is NaN."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its 95 % interval by Student's t, and the p value of the two-sided paired t test.

    Interval and p are NaN for a single pair; p is NaN, and the interval a point, where all differences are equal.
    """

    mean: float
    low: float
    high: float
    p: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Return mean and deviation; NaN without values, or if one is NaN."""
    if not values or any(map(math.isnan, values)):
        return Spread(math.nan, math.nan, len(values))
    return Spread(fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))


def difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return `values` minus `baseline`, pair by pair; raise ValueError if their lengths differ."""
    gaps = [ours - theirs for ours, theirs in zip(values, baseline, strict=True)]
    mean = spread(gaps).mean
    if math.isnan(mean) or len(gaps) == 1:
        return Difference(mean, math.nan, math.nan, math.nan, len(gaps))
    if max(gaps) - min(gaps) <= ROUNDING * max(map(abs, [*values, *baseline])):
        return Difference(mean, mean, mean, math.nan, len(gaps))
    from scipy import stats  # takes seconds to import, and most calls end before here

    test = stats.ttest_rel(values, baseline)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue), len(gaps))
