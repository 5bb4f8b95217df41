import math
import re

import numpy as np
import pytest
from finished_runs import PilotRun, write_run
from scipy import stats

from tools.compare.comparison import Comparison, compare
from tools.compare.conclusions import LEVEL, Conclusion, class_order, conclude
from tools.compare.measures import MEASURES
from tools.compare.paired import difference

BY_KEY = {measure.key: measure for measure in MEASURES}
LAST = BY_KEY["last_acc"]
BASE = {1: [500, 400, 300], 2: [520, 380, 310], 3: [480, 410, 330], 4: [510, 390, 290], 5: [505, 405, 305]}


def runs(folder, label, gains, **options) -> list:
    """Runs with seeds 1, 2, ... and 1,000 images a task: `BASE` plus (a, b), a after task 0, b on both after task 1."""
    paths = []
    for (seed, (first, old, new)), (a, b) in zip(BASE.items(), gains, strict=False):
        rows = [[first + a], [old + b, new + b]]
        paths.append(write_run(folder, label, seed, rows, count=[1000, 1000], **options))
    return paths


def verdicts(comparison: Comparison, name: str) -> dict[str, str | None]:
    return {one.measure.key: one.verdict for one in conclude(comparison).by_group[name]}


def sentence(comparison: Comparison, name: str) -> str:
    (found,) = [line for line in conclude(comparison).sentences if line.startswith(f"{name}: ")]
    return found


@pytest.fixture
def base(tmp_path) -> list:
    return runs(tmp_path, "base", [(0, 0)] * 5)


CLEAR = [(0, 60), (0, 62), (0, 58), (0, 61), (0, 59)]  # +6 points after task 1, which forgets that much less
NOISE = [(0, 9), (0, -11), (0, 4), (0, -6), (0, 8)]


def test_better_and_worse_follow_the_direction_of_the_measure(base, tmp_path):
    other = [(0, -gain) for _, gain in CLEAR]
    found = compare([*base, *runs(tmp_path, "up", CLEAR, rd_dim=9), *runs(tmp_path, "down", other, rd_dim=8)], "base")
    up, down = verdicts(found, "up"), verdicts(found, "down")
    tested = ("last_acc", "avg_inc_acc", "forgetting", "bwt", "learning_accuracy", "plasticity", "stability")
    assert up == {**dict.fromkeys(BY_KEY), **dict.fromkeys(tested, "better")}  # less forgetting is better
    assert down == {**dict.fromkeys(BY_KEY), **dict.fromkeys(tested, "worse")}
    assert sentence(found, "up").startswith(
        "up: a difference that chance between seeds does not explain. Last accuracy: better (+6.00 points, corrected "
        "p < 0.001). Average incremental accuracy: better (+3.00 points, corrected p < 0.001). Other measures: better: "
        "forgetting (-6.00), BWT (+6.00), "
    )


def test_better_stands_beside_the_difference_with_all_adapters_off(tmp_path):
    gained = {"base": [(0, 0)] * 5, "up": CLEAR}
    paths = []
    for name, gains in gained.items():
        for (seed, (first, old, new)), (_, b) in zip(BASE.items(), gains, strict=True):
            rows, off = [[first], [old + b, new + b]], [[first], [old - 9 + b, new - 9 + b]]
            width = {"rd_dim": 9} if name == "up" else {}
            paths.append(write_run(tmp_path, name, seed, rows, count=[1000, 1000], off=off, changed=[0, 40], **width))
    assert sentence(compare(paths, "base"), "up").startswith(
        "up: a difference that chance between seeds does not explain. Last accuracy: better (+6.00 points, corrected "
        "p < 0.001; with all adapters off +6.00 points). Average incremental accuracy: better (+3.00 points, corrected "
        "p < 0.001; with all adapters off +3.00 points). Other measures: "
    )


def test_noise_cannot_be_told_and_says_what_would_have_been_seen(base, tmp_path):
    found = compare([*base, *runs(tmp_path, "noise", NOISE, rd_dim=9)], "base")
    assert {verdict for verdict in verdicts(found, "noise").values() if verdict} == {"cannot tell"}
    last = next(one for one in conclude(found).by_group["noise"] if one.measure is LAST)
    gaps = np.array([gain for _, gain in NOISE]) / 1000
    assert conclude(found).tests == 2  # all measures differ by these numbers, their half or their negative
    assert last.corrected == pytest.approx(min(1, 2 * stats.ttest_1samp(gaps, 0).pvalue))
    power = simulated_power(last.detectable, gaps.std(ddof=1), 5, LEVEL / 2)
    assert power == pytest.approx(0.8, abs=0.01)
    assert last.wanted == 0.01
    needed = [simulated_power(0.01, gaps.std(ddof=1), last.seeds + by, LEVEL / 2) for by in (-1, 1)]
    assert needed[0] < 0.81
    assert needed[1] > 0.79
    shown = f"A difference of {100 * last.detectable:.2f} points would have been seen (80 % power); "
    assert f"{shown}for 1 point you need about {last.seeds} seeds in all." in sentence(found, "noise")
    assert sentence(found, "noise").startswith(
        "noise: cannot tell whether it really differs; what was measured can be chance between seeds. Last accuracy: "
        "cannot tell with 5 seeds; +0.08 points can be chance (corrected p = "
    )


def simulated_power(true: float, std: float, count: int, level: float) -> float:
    """The share of 40,000 drawn experiments in which the t test finds a true difference."""
    drawn = np.random.default_rng(1).normal(true, std, (40_000, count))
    t = drawn.mean(axis=1) / drawn.std(axis=1, ddof=1) * math.sqrt(count)
    return float((np.abs(t) > stats.t.ppf(1 - level / 2, count - 1)).mean())


def test_the_correction_takes_a_verdict_back(base, tmp_path):
    """p is below 0.05 for one comparison and above it for the number of those that were made."""
    gains = [(0, 6), (0, 1), (0, 5), (0, 2), (0, 9)]
    found = compare([*base, *runs(tmp_path, "weak", gains, rd_dim=9)], "base")
    last = next(one for one in conclude(found).by_group["weak"] if one.measure is LAST)
    assert last.difference.p == pytest.approx(stats.ttest_1samp([gain for _, gain in gains], 0).pvalue)
    assert last.difference.p < LEVEL < last.corrected
    assert last.verdict == "cannot tell"


def test_comparisons_that_are_the_same_count_once(base, tmp_path):
    a, b, c = (
        runs(tmp_path, name, gains, rd_dim=rd_dim)
        for name, gains, rd_dim in (("a", NOISE, 9), ("b", NOISE, 8), ("c", CLEAR, 7))
    )
    found = (compare([*base, *others], "base") for others in (a, [*a, *b], [*a, *c]))
    assert [conclude(each).tests for each in found] == [2, 2, 4]


def test_holms_method_uses_all_configurations(base, tmp_path):
    found = compare([*base, *runs(tmp_path, "c", CLEAR, rd_dim=7), *runs(tmp_path, "b", NOISE, rd_dim=8)], "base")
    result = conclude(found)
    clear, noise = ({one.measure.key: one for one in result.by_group[name]} for name in ("c", "b"))
    # two clear ones are decided, so the two others are tested at half of the level
    assert result.level == pytest.approx(LEVEL / 2)
    assert clear["last_acc"].corrected >= 3 * clear["last_acc"].difference.p
    assert noise["last_acc"].corrected == pytest.approx(min(1, 2 * noise["last_acc"].difference.p))
    assert (
        "p is corrected for 4 comparisons by Holm's method (Holm 1979); measures that say the same, as forgetting and "
        "stability do, count once." in result.sentences
    )


def test_what_is_equal_on_every_seed_is_called_the_same(base, tmp_path):
    found = compare([*base, *runs(tmp_path, "twin", [(0, 0)] * 5, rd_dim=9)], "base")
    assert verdicts(found, "twin")["last_acc"] == "the same on every seed"
    assert sentence(found, "twin") == "twin: the same accuracies as the baseline on every seed."
    assert conclude(found).tests == 0


def test_a_difference_without_spread_is_no_proof(base, tmp_path):
    found = compare([*base, *runs(tmp_path, "shifted", [(0, 10)] * 5, rd_dim=9)], "base")
    assert verdicts(found, "shifted")["last_acc"] == "cannot tell"
    assert "Last accuracy: cannot tell; +1.00 points on each of 5 seeds, which says nothing of the" in sentence(
        found, "shifted"
    )


def test_one_seed_gives_no_verdict_and_says_why(base, tmp_path):
    found = compare([*base[:1], *runs(tmp_path, "up", CLEAR[:1], rd_dim=9)], "base")
    assert set(verdicts(found, "up").values()) == {None}
    assert sentence(found, "up") == (
        "up: nothing can be concluded from one common seed: without a second one, any difference can be chance. "
        "Last accuracy: +6.00 points. Average incremental accuracy: +3.00 points."
    )


def test_two_seeds_may_show_hardly_anything():
    gap = difference([0.5, 0.9], [0.4, 0.5])
    assert "Hardly any difference would have been seen; for 1 point you need more than 1000 seeds in all." in (
        Conclusion(LAST, gap, 1.0, LEVEL / 60).sentence
    )


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (1e-2, "for 1 point you need"),
        (2e-3, "for 0.5 points you need"),
        (5e-5, "0.01 points would have been seen (80 % power)."),
    ],
)
def test_the_difference_that_seeds_are_needed_for_is_the_next_smaller_round_one(scale, text):
    gap = difference([scale * gain for gain in (1, -2, 3, -1, 1, -2)], [0.0] * 6)
    assert text in Conclusion(LAST, gap, 1.0, LEVEL).sentence


def test_without_a_common_seed_or_a_baseline_it_is_said_that_nothing_is_tested(base, tmp_path):
    log = tmp_path / "x.log"
    log.write_text(PilotRun([[900], [800, 700]], [10, 10]).text())
    found = compare([*base, log], "base")
    assert sentence(found, "x") == "x: nothing can be concluded, as it has no seed in common with the baseline."
    (line,) = conclude(compare([*base, log])).sentences
    assert line.startswith("Nothing is tested without a baseline, so differences between the configurations may be")
    assert line.endswith("--baseline base")
    assert conclude(compare(base)).sentences == []
    assert conclude(compare(base, "base")).sentences == []


def test_a_measure_without_a_direction_is_not_tested(base, tmp_path):
    slower = [write_run(tmp_path, "slow", seed, [[40]], rd_dim=9, seconds=90.0 + seed) for seed in (1, 2, 3)]
    found = compare([*base, *slower], "base")
    seconds = next(one for one in conclude(found).by_group["slow"] if one.measure.key == "seconds")
    assert (seconds.verdict, math.isnan(seconds.corrected)) == (None, True)


# ---- class order

ONE = "All seeds share one class order: the spread over seeds holds for this order only."
EACH = "The class order differs by seed, so that the spread over seeds includes it."


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [EACH]), ({"shuffle": False}, [ONE]), ({"class_order_seed": 7}, [ONE]), ({"class_order_seed": 0}, [ONE])],
)
def test_it_is_said_whether_the_seeds_share_one_class_order(tmp_path, options, expected):
    found = compare(runs(tmp_path, "a", NOISE, **options))
    assert list(class_order(found.groups)) == expected
    assert list(class_order(compare(runs(tmp_path / "one", "a", NOISE[:1], **options)).groups)) == []


def test_configurations_that_share_an_order_are_named_where_others_do_not(base, tmp_path):
    found = compare(
        [*base, *runs(tmp_path, "a", NOISE, shuffle=False), *runs(tmp_path, "b", CLEAR, shuffle=False, rd_dim=9)],
        "base",
    )
    expected = "All seeds of a; b share one class order: the spread over seeds holds for this order only."
    assert list(class_order(found.groups)) == [expected]
    assert conclude(found).sentences[-1] == expected


def test_the_order_in_a_log_that_does_not_say_is_not_known(tmp_path):
    logs = [tmp_path / "a.log", tmp_path / "b.log", tmp_path / "c.log"]
    for number, log in enumerate(logs):
        said = {"shuffle": True} if number == 2 else {}
        log.write_text(PilotRun([[900], [800, 700 + number]], [10, 10], lr=0.1, **said).text())
    assert list(class_order(compare(logs[:2]).groups)) == []
    assert compare(logs[2:]).groups[0].one_class_order is False


def test_ten_configurations_are_a_line_each_with_the_main_measures_first(base, tmp_path):
    rng = np.random.default_rng(3)
    gains = rng.integers(-9, 10, (10, 5))
    others = [runs(tmp_path, f"c{at}", [(0, int(b)) for b in row], rd_dim=at + 1) for at, row in enumerate(gains)]
    lines = conclude(compare([*base, *(path for each in others for path in each)], "base")).sentences
    assert [line.split(":")[0] for line in lines[:10]] == [f"c{number}" for number in range(10)]
    assert len(lines) == 11
    for line in lines[:10]:
        assert re.search(r"\. Last accuracy: .*\. Average incremental accuracy: .*\. Other measures: ", line)
        assert len(line) < 620
