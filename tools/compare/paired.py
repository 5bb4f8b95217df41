"""Mean and spread over seeds, the difference of two configurations run with the same seeds, and the tests' power."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
POWER = 0.8
MOST_SEEDS = 1000
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
    gaps: tuple[float, ...] = ()  # the paired differences

    @property
    def constant(self) -> bool:
        """Return whether there are several pairs, and all differences are equal."""
        return self.count > 1 and self.low == self.high


def spread(values: Sequence[float]) -> Spread:
    """Return mean and deviation; NaN without values, or if one is NaN."""
    if not values or any(map(math.isnan, values)):
        return Spread(math.nan, math.nan, len(values))
    return Spread(fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))


def difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return `values` minus `baseline`, pair by pair; raise ValueError if their lengths differ."""
    gaps = tuple(ours - theirs for ours, theirs in zip(values, baseline, strict=True))
    mean = spread(gaps).mean
    if math.isnan(mean) or len(gaps) == 1:
        return Difference(mean, math.nan, math.nan, math.nan, len(gaps), gaps)
    if max(gaps) - min(gaps) <= ROUNDING * max(map(abs, [*values, *baseline])):
        return Difference(mean, mean, mean, math.nan, len(gaps), gaps)
    from scipy import stats  # takes seconds to import, and most calls end before here

    test = stats.ttest_rel(values, baseline)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue), len(gaps), gaps)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, in the order given.

    Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 65-70.
    """
    corrected, largest = [math.nan] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


def p_text(p: float) -> str:
    """Return p with its relation sign."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def detectable(std: float, count: int, level: float) -> float:
    """Return the smallest true difference that a two-sided paired t test at a level finds with probability `POWER`.

    Args:
        std: Standard deviation of the paired differences.
        count: Number of pairs, at least 2.
        level: Probability of finding a difference where there is none.
    """
    from scipy import special, stats

    critical = stats.t.isf(level / 2, count - 1)
    return float(special.nctdtrinc(count - 1, 1 - POWER, critical)) * std / math.sqrt(count)


def pairs_needed(true: float, std: float, level: float) -> int | None:
    """Return the number of pairs from which on a true difference is `detectable`; None if that is over `MOST_SEEDS`."""
    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(counts, True, key=lambda count: detectable(std, count, level) <= true)
    return counts[place] if place < len(counts) else None
