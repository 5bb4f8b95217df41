"""The tables of transient tasks and of class orders, against numbers computed here."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from finished_runs import write_run
from scipy import stats

from tools.compare.comparison import compare, families
from tools.compare.conclusions import conclude
from tools.compare.data import as_json
from tools.compare.fairness import warnings
from tools.compare.streams import order_tables, transient_sentences, transient_tables
from tools.compare.tables import page

SEEDS = range(3)
CORE = [
    [[90], [80, 95], [75, 85, 99]],
    [[92], [85, 90], [70, 88, 95]],
    [[91], [84, 91], [72, 80, 97]],
]  # without task 1
WITH = [
    [[90], [60, 97], [70, 50, 90], [70, 40, 80, 98]],
    [[92], [66, 99], [71, 48, 91], [65, 30, 80, 97]],
    [[91], [70, 90], [79, 47, 95], [72, 35, 79, 99]],
]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    keys = {"transient": [1], "ffn_adapter_type": "nested_lora", "max_tasks": 4}
    with_task = [write_run(tmp_path, "with", seed, WITH[seed], **keys) for seed in SEEDS]
    return with_task + [
        write_run(tmp_path, "without", seed, CORE[seed], leave_out_transient=True, **keys) for seed in SEEDS
    ]


def per_cent(values: list[float]) -> str:
    return f"{100 * fmean(values):.2f} ± {100 * stdev(values):.2f}"


def test_the_harm_of_a_transient_task_is_the_paired_difference_of_the_core(runs):
    table, branches = transient_tables(compare(runs).groups)
    core = [[0], [0], [0, 2], [0, 2, 3]]  # tasks of the core, after each task
    core_with = np.array([[fmean(rows[t][i] for i in core[t]) / 100 for t in range(4)] for rows in WITH])
    places = [0, 0, 1, 2]  # the last core task until then
    core_without = np.array([[sum(r[place]) / (100 * (place + 1)) for place in places] for r in CORE])
    names = ["task 0", "task 1, transient", "task 2", "task 3, the last"]
    assert [row[0] for row in table.rows] == names
    for number, row in enumerate(table.rows):
        ours, theirs = core_with[:, number], core_without[:, number]
        assert row[1:3] == [per_cent(ours.tolist()), per_cent(theirs.tolist())]
        assert float(row[3].split(" ")[0]) == pytest.approx(100 * (ours - theirs).mean(), abs=0.005)
        if number:
            assert float(row[4].split(" ")[0]) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, abs=5e-4)
    assert table.rows[0][3:] == ["+0.00", "-"]
    ps = [float(row[4].split(" ")[0]) for row in table.rows[1:]]
    corrected = [float(row[4].split("(")[1].rstrip(")")) for row in table.rows[1:]]
    assert min(corrected) == pytest.approx(3 * min(ps), abs=2e-3)
    (whole,) = branches.rows
    learned, left = ([r[at][1] / 100 for r in WITH] for at in (1, 3))
    assert whole[:4] == ["1", "whole network", per_cent(learned), per_cent(left)]
    assert whole[4:7] == [per_cent(core_with[:, at].tolist()) for at in (0, 1, 3)]
    assert whole[7:] == [table.rows[1][3], table.rows[3][3]]


def test_a_run_alone_has_what_is_left_of_its_task_but_no_difference(runs):
    (branches,) = transient_tables(compare(runs[:1]).groups)
    assert branches.rows == [["1", "whole network", "97.00", "40.00", "90.00", "60.00", "82.67", "-", "-"]]


def branched(groups, of):
    """Give every run accuracies by branch: `of(name, rows)` of its rows of right answers."""
    found = []
    for group, rows in zip(groups, (WITH, CORE), strict=True):
        names = ("slow", "fast", "neither")
        matrices = [
            {name: replace(run.matrix, correct=of(name, rows[seed])) for name in names}
            for seed, run in enumerate(group.runs)
        ]
        pairs = zip(group.runs, matrices, strict=True)
        runs = [replace(run, branches={"slow+fast": run.matrix, **each}) for run, each in pairs]
        found.append(replace(group, runs=runs))
    return found


def interval(values: list[float]) -> str:
    """Mean and 95 % interval by Student's t, of values in per cent."""
    low, high = stats.t.interval(0.95, len(values) - 1, fmean(values), stats.sem(values))
    return f"{fmean(values):+.2f} [{low:+.2f}, {high:+.2f}]"


def test_harm_recovery_and_remains_are_said_in_words(runs):
    (text,) = transient_sentences(compare(runs).groups)
    after = [w[1][0] - c[0][0] for w, c in zip(WITH, CORE, strict=True)]
    end = [(w[3][0] + w[3][2] + w[3][3] - sum(c[2])) / 3 for w, c in zip(WITH, CORE, strict=True)]
    gone = 100 * (1 - fmean(end) / fmean(after))
    harm = f"core accuracy differs from that without it by {interval(after)} points: it harmed the core (corrected p = "
    assert harm in text
    assert f"2 tasks later, at the end, it is {interval(end)} points; {gone:.0f} % of the difference is gone" in text
    assert "Accuracy on its own classes is 95.33 % when learned, 35.00 % at the end." in text


def test_a_harm_that_turns_into_a_gain_is_all_gone(runs):
    later = [
        replace(run, matrix=replace(run.matrix, correct=[*run.matrix.correct[:3], [100] * 4]))
        for run in compare(runs).groups[0].runs
    ]
    with_task, without = compare(runs).groups
    (text,) = transient_sentences([replace(with_task, runs=later), without])
    assert "points; all of the difference is gone" in text


def test_of_one_seed_no_harm_is_concluded(runs):
    (text,) = transient_sentences(compare([runs[0], runs[3]]).groups)
    assert "by -30.00 points: of one seed, any difference can be chance. 2 tasks later" in text
    assert "harmed" not in text


def test_which_branch_took_the_task_up_is_said_against_neither_branch(runs):
    def of(name, rows):
        slow = [[max(0, hits - 40) for hits in row] for row in rows]
        if name == "fast" and len(rows) == 4:  # learns the transient task, and loses of the core
            slow[1][1] += 10 + rows[0][0] % 3
            slow[3][0] -= 20 + rows[0][0] % 3
        return slow

    _, text = transient_sentences(branched(compare(runs).groups, of))
    assert text.startswith("with, transient task 1, by branch: With neither, ")
    gain = [10 + rows[0][0] % 3 for rows in WITH]
    lost = [-(20 + rows[0][0] % 3) / 3 for rows in WITH]
    own = fmean(rows[1][1] - 40 for rows in WITH)
    at_the_end = [
        (sum(max(0, w[3][i] - 40) for i in (0, 2, 3)) - sum(hits - 40 for hits in c[2])) / 3
        for w, c in zip(WITH, CORE, strict=True)
    ]
    assert f"With neither, accuracy on it is {own:.2f} % when learned, and its harm to the core at the end is " in text
    assert f"at the end is {interval(at_the_end)} points." in text
    assert "slow alone adds +0.00 points to the first and +0.00 points to the second." in text
    assert f"fast alone adds {interval(gain)} points to the first and {interval(lost)} points to the second." in text
    assert text.endswith("slow shows neither uptake nor added harm; fast took the task up and adds to the harm.")


def test_runs_that_differ_in_the_transient_task_are_not_compared_as_treatments(runs):
    comparison = compare(runs, "without")
    assert comparison.compared == []
    found = conclude(comparison)
    assert (found.title, found.by_group, found.tests) == ("What can be concluded", {}, 0)
    assert [line.split(":")[0] for line in found.sentences] == ["with, transient task 1"]
    assert not any(table.title.startswith("Difference") for table in page(comparison).tables)


def test_runs_with_other_transient_tasks_are_unequal(tmp_path, runs):
    other = write_run(tmp_path, "plain", 0, WITH[0], ffn_adapter_type="nested_lora", max_tasks=4)
    (line,) = [line for line in warnings(compare([runs[0], other])) if "transient" in line]
    assert line == "unequal transient tasks: 1 in with; none in plain"


def test_each_branch_has_its_own_core_and_its_own_harm(runs):
    groups = []
    for group, rows in zip(compare(runs).groups, (WITH, CORE), strict=True):
        slow = [
            replace(run.matrix, correct=[[hits // 2 for hits in row] for row in rows[seed]])
            for seed, run in enumerate(group.runs)
        ]
        named = zip(group.runs, slow, strict=True)
        both = [replace(run, branches={"slow+fast": run.matrix, "slow": matrix}) for run, matrix in named]
        groups.append(replace(group, runs=both))
    _, table = transient_tables(groups)
    whole, slow_row = table.rows
    assert slow_row[:3] == ["1", "slow", per_cent([rows[1][1] // 2 / 100 for rows in WITH])]
    after = [rows[1][0] // 2 / 100 for rows in WITH]
    assert slow_row[5] == per_cent(after)
    harm = [100 * (now - rows[0][0] // 2 / 100) for now, rows in zip(after, CORE, strict=True)]
    assert slow_row[7].startswith(f"{fmean(harm):+.2f} [")
    assert whole[7] != slow_row[7]


def test_tasks_that_are_left_out_on_purpose_are_no_reason_for_a_warning(runs):
    assert not [line for line in warnings(compare(runs)) if "tasks" in line or "test images" in line]


def test_configurations_without_transient_tasks_and_of_one_order_have_no_such_tables(tmp_path):
    groups = compare([write_run(tmp_path, "a", 1, CORE[0]), write_run(tmp_path, "b", 1, CORE[1], rd_dim=9)]).groups
    assert [*transient_tables(groups), *order_tables(families(groups))] == []


def test_over_class_orders_mean_deviations_worst_and_best(tmp_path):
    rows = {order: [[[90], [80 - 10 * order - seed, 95]] for seed in SEEDS] for order in (0, 1, 3)}
    runs = [
        write_run(tmp_path, "x", seed, rows[order][seed], class_order_seed=order) for order in rows for seed in SEEDS
    ]
    other = write_run(tmp_path, "y", 0, CORE[0], rd_dim=9)
    (table,) = order_tables(families(compare([*runs, other]).groups))
    last = {row[0]: row[1:] for row in table.rows}["last accuracy"]
    means = [100 * fmean((175 - 10 * order - seed) / 200 for seed in SEEDS) for order in rows]
    assert last[:3] == [f"{fmean(means):.2f}", f"{stdev(means):.2f}", f"{50 * stdev([0, 1, 2]) / 100:.2f}"]
    assert last[3:] == [f"{means[2]:.2f} (class order seed 3)", f"{means[0]:.2f} (class order seed 0)"]
    forgetting = {row[0]: row[1:] for row in table.rows}["forgetting"]
    assert "class order seed 3" in forgetting[3]
    assert table.title.startswith("x over 3 class orders, ")


ORDERS = (1, 2, 4)


def ordered(folder: Path, label: str, lost, **keys) -> list[Path]:
    """Runs over class orders and seeds with names of classes, and `lost(order, seed)` right answers less."""
    made = []
    for order in ORDERS:
        for seed in SEEDS:
            rows = [[90], [80 - 5 * order - lost(order, seed), 95 - seed]]
            run = write_run(folder, label, seed, rows, class_order_seed=order, **keys)
            results = json.loads((run / "results.json").read_text())
            names = [f"c{(number + order) % 20}" for number in range(20)]
            (run / "results.json").write_text(json.dumps({**results, "class_names": names}))
            made.append(run)
    return made


def test_class_orders_are_no_treatments_and_not_unequal(tmp_path):
    comparison = compare(ordered(tmp_path, "x", lambda order, seed: seed), ["x", "class order seed 1"][1])
    found = conclude(comparison)
    assert (found.title, found.tests) == ("What can be concluded", 0)
    means = [fmean((80 - 5 * order - seed + 95 - seed) / 2 for seed in SEEDS) for order in ORDERS]
    assert found.sentences[0].startswith(
        f"x over 3 class orders: Last accuracy: {fmean(means):.2f} % on average, with a standard deviation of "
        f"{stdev(means):.2f} points over orders and 1.00 over the seeds of an order; worst {means[2]:.2f} % "
        f"(class order seed 4), best {means[0]:.2f} % (class order seed 1). Average incremental accuracy: "
    )
    assert not [line for line in warnings(comparison) if "order" in line]
    assert not any(table.title.startswith("Difference") for table in page(comparison).tables)
    assert not any("all with one class order" in table.title for table in page(comparison).tables)


def test_families_are_compared_on_equal_orders_and_seeds_with_an_interval_over_orders(tmp_path):
    first = ordered(tmp_path, "x", lambda order, seed: 0)
    second = ordered(tmp_path, "y", lambda order, seed: 3 * order + seed, rd_dim=9)
    comparison = compare([*first, *second], "x: class order seed 1")
    ((family, base),) = comparison.compared
    gaps = [-fmean(3 * order + seed for seed in SEEDS) / 2 for order in ORDERS]  # in points: half the classes
    (one,) = [one for one in conclude(comparison).of(family) if one.measure.key == "last_acc"]
    assert (family.name, base.name, one.difference.count) == ("y", "x", 3)
    assert 100 * one.difference.mean == pytest.approx(fmean(gaps))
    low, high = stats.t.interval(0.95, 2, fmean(gaps), stats.sem(gaps))
    assert [100 * one.difference.low, 100 * one.difference.high] == pytest.approx([low, high])
    (table,) = [table for table in page(comparison).tables if table.title.startswith("Difference")]
    assert table.title.startswith("Difference to x on equal class orders and seeds: mean over orders")
    assert {row[0]: row[1] for row in table.rows}["last accuracy"].startswith(interval(gaps))
    assert not [line for line in warnings(comparison) if "order" in line]
    of_family = {each["name"]: each for each in json.loads(as_json(comparison))["families"]}
    assert of_family["y"]["groups"] == [f"y: class order seed {order}" for order in ORDERS]
    assert 100 * of_family["y"]["difference"]["last_acc"]["low"] == pytest.approx(low)
    assert "difference" not in of_family["x"]
    lacking = compare([*first, *second[:-2]], "x: class order seed 1")
    expected = "y: its difference to x is over the 7 pairs of equal class order and seed"
    assert [line for line in warnings(lacking) if "pairs" in line] == [expected]


def test_other_classes_or_task_sizes_are_more_than_another_order(tmp_path):
    sizes = [write_run(tmp_path, f"{n}", 1, CORE[0], sizes=n, class_order_seed=n[0]) for n in ([4, 5, 5], [5, 4, 5])]
    assert families(compare(sizes).groups) == []
    random = [write_run(tmp_path, "r", seed, CORE[0]) for seed in SEEDS]  # each seed has another order
    one = write_run(tmp_path, "one", 1, CORE[0], class_order_seed=3)
    assert families(compare([*random, one]).groups) == []
