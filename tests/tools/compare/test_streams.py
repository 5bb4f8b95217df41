"""The tables of transient tasks and of class orders, against numbers computed here."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from finished_runs import write_run
from scipy import stats

from tools.compare.comparison import compare
from tools.compare.fairness import warnings
from tools.compare.streams import order_tables, transient_tables

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
    assert [*transient_tables(groups), *order_tables(groups)] == []


def test_over_class_orders_mean_deviations_worst_and_best(tmp_path):
    rows = {order: [[[90], [80 - 10 * order - seed, 95]] for seed in SEEDS] for order in (0, 1, 3)}
    runs = [
        write_run(tmp_path, "x", seed, rows[order][seed], class_order_seed=order) for order in rows for seed in SEEDS
    ]
    other = write_run(tmp_path, "y", 0, CORE[0], rd_dim=9)
    (table,) = order_tables(compare([*runs, other]).groups)
    last = {row[0]: row[1:] for row in table.rows}["last accuracy"]
    means = [100 * fmean((175 - 10 * order - seed) / 200 for seed in SEEDS) for order in rows]
    assert last[:3] == [f"{fmean(means):.2f}", f"{stdev(means):.2f}", f"{50 * stdev([0, 1, 2]) / 100:.2f}"]
    assert last[3:] == [f"{means[2]:.2f} (x: class order seed 3)", f"{means[0]:.2f} (x: class order seed 0)"]
    forgetting = {row[0]: row[1:] for row in table.rows}["forgetting"]
    assert "class order seed 3" in forgetting[3]
    assert table.title.startswith("Over 3 class orders (")
