"""What can be concluded from the differences to the baseline: the rule for every table, page and file.

All differences in measures that have a better direction are tested, and p is corrected for the number of tests. A
difference is better or worse if the corrected p is at most `LEVEL`. Otherwise the seeds cannot tell; then it is said
which true difference they would have shown, and how many seeds a smaller one needs.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import stdev

from tools.compare.comparison import Comparison, Family, Group, families
from tools.compare.measures import MAIN, MEASURES, Measure
from tools.compare.paired import (
    CONFIDENCE,
    LEVEL,
    MOST_SEEDS,
    POWER,
    ROUNDING,
    Difference,
    detectable,
    holm,
    p_text,
    pairs_needed,
)
from tools.compare.streams import order_sentences, transient_pairs, transient_sentences

CORRECTION = "Holm's method (Holm 1979)"
WANTED = (0.01, 0.005, 0.002, 0.001)  # differences for which the seeds needed are said
SAME, UNKNOWN = "the same on every seed", "cannot tell"
LEGEND = (
    f"interval: {100 * CONFIDENCE:.0f} % by Student's t, of the paired differences on equal seeds; it is for a single "
    "comparison, and not corrected for the number of comparisons",
    "p: two-sided paired t test on equal seeds; in brackets, p corrected for the number of comparisons by "
    f"{CORRECTION}. The comparisons are those of all configurations with the baseline, in all measures with better "
    "and worse; differences that are equal on every seed but for the sign, as in forgetting and stability, count once",
    f"better, worse: the corrected p is at most {LEVEL:.2g}; lower forgetting is better. {UNKNOWN}: the seeds show no "
    "difference, but do not show that there is none",
    f"would have been seen: a true difference that this number of seeds, with the spread of the paired differences "
    f"observed, shows with {100 * POWER:.0f} % power at the corrected level. The seeds needed are said for the largest "
    "of 1, 0.5, 0.2 and 0.1 points that is below. Both are rough, as few seeds show the spread only roughly",
)


@dataclass(frozen=True)
class Conclusion:
    """What the difference of a configuration to the baseline says in one measure.

    Attributes:
        corrected: p, corrected for the number of tests; NaN if there was no test.
        level: The level at which tests that are not decided were made.
        off: The mean of the same differences with all adapters off; NaN where it is not known.
        units: What was paired.
    """

    measure: Measure
    difference: Difference
    corrected: float = math.nan
    level: float = math.nan
    off: float = math.nan
    units: str = "seeds"

    @property
    def verdict(self) -> str | None:
        """`better`, `worse`, `SAME` or `UNKNOWN`; None with less than two pairs, and where nothing is better."""
        gap = self.difference
        if self.measure.better is None or math.isnan(gap.low):
            return None
        if self.corrected <= LEVEL:
            return "better" if (gap.mean > 0) == (self.measure.better == "higher") else "worse"
        return SAME if gap.constant and abs(gap.mean) <= ROUNDING else UNKNOWN

    @cached_property
    def detectable(self) -> float:
        """The smallest true difference that would have been seen; NaN if one was, or without a test."""
        if self.verdict != UNKNOWN or self.difference.constant:
            return math.nan
        return detectable(stdev(self.difference.gaps), self.difference.count, self.level)

    @property
    def wanted(self) -> float:
        """The difference for which `seeds` are needed; NaN if it would have been seen."""
        return next((value for value in WANTED if value < self.detectable), math.nan)

    @cached_property
    def seeds(self) -> int | None:
        """The number of seeds that would show a true difference `wanted`; None if that is over `MOST_SEEDS`."""
        if math.isnan(self.wanted):
            return None
        return pairs_needed(self.wanted, stdev(self.difference.gaps), self.level)

    @property
    def sentence(self) -> str:
        """The conclusion in words."""
        gap, title = self.difference, self.measure.title[0].upper() + self.measure.title[1:]
        shown = f"{100 * gap.mean:+.2f} points"
        match self.verdict:
            case None:
                return f"{title}: {shown}."
            case verdict if verdict == SAME:
                return f"{title}: {SAME}."
            case verdict if verdict == UNKNOWN and gap.constant:
                every = f"{shown} on each of {gap.count} {self.units}"
                return f"{title}: {UNKNOWN}; {every}, which says nothing of the spread."
            case verdict if verdict == UNKNOWN:
                chance = f"{shown} can be chance (corrected p {p_text(self.corrected)})"
                return f"{title}: {UNKNOWN} with {gap.count} {self.units}; {chance}. {self._power}."
            case verdict:
                off = "" if math.isnan(self.off) else f"; with all adapters off {100 * self.off:+.2f} points"
                return f"{title}: {verdict} ({shown}, corrected p {p_text(self.corrected)}{off})."

    @property
    def _power(self) -> str:
        seen = f"A difference of {100 * self.detectable:.2f} points would have been seen ({100 * POWER:.0f} % power)"
        if self.detectable >= 1:
            seen = "Hardly any difference would have been seen"
        if math.isnan(self.wanted):
            return seen
        needed = f"about {self.seeds}" if self.seeds else f"more than {MOST_SEEDS}"
        points = f"{100 * self.wanted:g} point{'s' * (self.wanted != 0.01)}"
        return f"{seen}; for {points} you need {needed} {self.units} in all"


@dataclass(frozen=True)
class Conclusions:
    """All differences to a baseline.

    Attributes:
        title: The heading of the sentences.
        by_group: For all that is compared with the baseline, by name, a conclusion for each measure.
        tests: The number of tests for which p was corrected.
        level: The level at which tests that are not decided were made; NaN if there are none.
        sentences: The conclusions in words, one for each configuration, and what holds for all.
    """

    title: str
    by_group: dict[str, list[Conclusion]]
    tests: int
    level: float
    sentences: list[str]

    def of(self, group: Group) -> list[Conclusion]:
        """Return the conclusions of a configuration in the order of the measures; none for the baseline."""
        return self.by_group.get(group.name, [])


def conclude(comparison: Comparison) -> Conclusions:
    """Test the differences to the baseline, and say what transient tasks and class orders did."""
    title, baseline = "What can be concluded", comparison.baseline
    streams = [*transient_sentences(comparison.groups), *order_sentences(comparison.families)]
    if baseline is None:
        return Conclusions(title, {}, 0, math.nan, [*_without_baseline(comparison), *streams])
    gaps = {group.name: [(m, group.minus(other, m)) for m in MEASURES] for group, other in comparison.compared}
    ps = {_test(gap): gap.p for pairs in gaps.values() for m, gap in pairs if m.better and not math.isnan(gap.p)}
    corrected = dict(zip(ps, holm(list(ps.values())), strict=True))
    undecided = sum(p > LEVEL for p in corrected.values())
    level = LEVEL / undecided if undecided else math.nan
    found: dict[str, list[Conclusion]] = {}
    for (group, _), (name, of) in zip(comparison.compared, gaps.items(), strict=True):
        units = "class orders" if isinstance(group, Family) else "seeds"
        off = {m.key.removesuffix("_off"): gap.mean for m, gap in of if m.key.endswith("_off")}
        found[name] = [
            Conclusion(
                m,
                gap,
                corrected.get(_test(gap), math.nan) if m.better else math.nan,
                level,
                off.get(m.key, math.nan),
                units,
            )
            for m, gap in of
        ]
    sentences = [f"{name}: {' '.join(_of_group(each))}" for name, each in found.items()]
    if ps:
        once = "; measures that say the same, as forgetting and stability do, count once"
        sentences.append(f"p is corrected for {len(ps)} comparison{'s' * (len(ps) > 1)} by {CORRECTION}{once}.")
    if sentences and any(group.one_class_order for group in comparison.groups):
        sentences.extend(class_order(comparison.groups))
    names = dict.fromkeys(other.name for _, other in comparison.compared)
    title += f": differences to {' and '.join(names)}" if names else ""
    return Conclusions(title, found, len(ps), level, [*sentences, *streams])


def _test(gap: Difference) -> tuple[float, ...]:
    """Return what differences that are equal but for the sign, and for rounding errors, have in common."""
    rounded = [round(value, 12) for value in gap.gaps]
    return max(tuple(rounded), tuple(-value for value in rounded))


def _without_baseline(comparison: Comparison) -> Iterator[str]:
    if len(comparison.sides) - len(transient_pairs(comparison.sides)) > 1:
        yield (
            "Nothing is tested without a baseline, so differences between the configurations may be chance. To "
            f"compare all others with one of them: --baseline {shlex.quote(comparison.groups[0].name)}"
        )


def _of_group(found: Sequence[Conclusion]) -> Iterator[str]:
    """Yield the sentences on a configuration: its differences as a whole, the main measures, the others."""
    known = [one for one in found if one.measure.better and not math.isnan(one.difference.mean)]
    verdicts = {one.verdict for one in known}
    units = found[0].units
    if not known:
        yield "nothing can be concluded, as it has no seed in common with the baseline."
    elif verdicts == {None}:
        yield "nothing can be concluded from one common seed: without a second one, any difference can be chance."
    elif verdicts == {SAME}:
        yield "the same accuracies as the baseline on every seed."
        return
    elif verdicts & {"better", "worse"}:
        yield f"a difference that chance between {units} does not explain."
    else:
        yield f"cannot tell whether it really differs; what was measured can be chance between {units}."
    yield from (one.sentence for one in known if one.measure.key in MAIN)
    others = [one for one in known if one.measure.key not in MAIN and one.verdict]
    if others:
        yield f"Other measures: {'; '.join(_by_verdict(others))}."


def _by_verdict(found: Sequence[Conclusion]) -> Iterator[str]:
    for verdict in ("better", "worse", SAME, UNKNOWN):
        titles = [
            one.measure.title + (f" ({100 * one.difference.mean:+.2f})" if verdict in ("better", "worse") else "")
            for one in found
            if one.verdict == verdict
        ]
        if titles:
            yield f"{verdict}: {', '.join(titles)}"


def one_class_order(groups: Sequence[Group]) -> bool:
    """Return whether there are several seeds, and one class order for all of them and all configurations."""
    several = [group for group in groups if len(group.runs) > 1]
    return bool(several) and all(group.one_class_order for group in several) and not families(several)


def class_order(groups: Sequence[Group]) -> Iterator[str]:
    """Yield for which class orders the spread over seeds holds; nothing without several seeds."""
    several = [group for group in groups if len(group.runs) > 1 and group.one_class_order is not None]
    one = [group.name for group in several if group.one_class_order]
    whose = "" if len(one) == len(several) else f" of {'; '.join(one)}"
    if one and families(several):
        yield f"The seeds of each configuration{whose} share one class order: the spread is that within this order."
    elif one:
        yield f"All seeds{whose} share one class order: the spread over seeds holds for this order only."
    elif several:
        yield "The class order differs by seed, so that the spread over seeds includes it."
