import math

import numpy as np
import pytest
from finished_runs import PilotRun, random_hits
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.pilot.log import parse
from tools.pilot.runs import Tasks

STAMP = "2024-01-18 10:00:30,251 [trainer.py] => "
SIZES = st.lists(st.integers(2, 30), min_size=1, max_size=12)


def tasks(text: str) -> Tasks:
    (log,) = parse(text)
    return Tasks(log)


def brute_force_forgetting(run: PilotRun) -> float:
    last = len(run.sizes) - 1
    drops = [max(run.per_cent(t, [i]) for t in range(i, last)) - run.per_cent(last, [i]) for i in range(last)]
    return sum(drops) / len(drops) / 100


@given(SIZES, st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_matrix_is_the_printed_percentages_whatever_the_sizes_and_the_sorting(sizes, seed, as_text, stated):
    equal_steps = len(set(sizes[1:])) <= 1
    keys = {"init_cls": sizes[0], "increment": sizes[-1]} if stated and equal_steps else {}
    run = PilotRun(random_hits(seed, sizes), sizes, sort_as_text=as_text, **keys)
    found = tasks(run.text())
    expected = np.full((len(sizes), len(sizes)), np.nan)
    for t in range(len(sizes)):
        expected[t, : t + 1] = [run.per_cent(t, [i]) / 100 for i in range(t + 1)]
    np.testing.assert_allclose(found.matrix.matrix, expected, rtol=0, atol=1e-12)
    assert found.curve == pytest.approx([run.per_cent(t, range(t + 1)) / 100 for t in range(len(sizes))])
    assert found.matrix.task_sizes == sizes
    if len(sizes) > 1:
        assert found.matrix.forgetting == pytest.approx(brute_force_forgetting(run))


def test_a_large_first_task_cut_into_groups_is_one_task():
    run = PilotRun([[4000], [3700, 900], [3300, 850, 800]], [50, 10, 10])
    parts = {90: {"00-09": 850, "10-19": 750, "20-29": 800, "30-39": 900, "40-49": 700}}[90]  # of 1,000 images each

    def cut(t: int) -> str:
        hits = {label: round(value * run.hits[t][0] / 4000) for label, value in parts.items()}
        assert sum(hits.values()) == run.hits[t][0]
        whole = run.grouped(t)
        later = {key: value for key, value in whole.items() if key not in ("total", "00-49")}
        return f"CNN: { {'total': whole['total'], **{key: hits[key] / 10 for key in parts}, **later} }\n"

    found = tasks("".join(cut(t) for t in range(3)))
    assert found.matrix.task_sizes == [50, 10, 10]
    expected = [[0.8, np.nan, np.nan], [0.74, 0.9, np.nan], [0.66, 0.85, 0.8]]
    np.testing.assert_allclose(found.matrix.matrix, expected, atol=1e-9)


def test_a_short_last_group_counts_by_the_classes_that_there_are():
    # of 10, 10 and 5 classes, the first two in the first task: 90, 80 and 60 per cent of all images
    groups = "'00-09': 90.0, '10-19': 80.0, '20-29': 60.0"
    text = f"CNN: {{'total': 80.0, {groups}, 'old': 85.0, 'new': 60.0}}\nCNN top1 curve: [85.0, 80.0]\n"
    head = (
        "2024-01-18 09:00:00,251 [trainer.py] => init_cls: 20\n2024-01-18 09:00:00,251 [trainer.py] => increment: 10\n"
    )
    order = f"2024-01-18 10:00:30,251 [data_manager.py] => {list(range(25))}\n"
    assert tasks(head + order + text).matrix.correct == [None, [8500, 6000]]
    assert tasks(head + text).matrix.correct == [None, None]  # by the groups' names the total would be 76.67


def test_groups_of_one_task_with_unequal_numbers_of_images_are_not_averaged():
    text = "CNN: {'total': 80.0, '00-09': 90.0, '10-19': 40.0, 'old': 0, 'new': 80.0}\nCNN top1 curve: [80.0]\n"
    found = tasks(text)
    assert found.matrix.correct == [None]
    assert math.isnan(found.matrix.learning_accuracy)
    assert found.curve == (0.8,)


def test_a_lost_last_group_is_what_new_says():
    text = PilotRun([[900], [800, 700], [600, 650, 90]], [10, 10, 1]).text().replace(" '20-20': 90.0,", "")
    assert tasks(text).matrix.correct[-1] == [6000, 6500, 9000]
    assert tasks(text).matrix.task_sizes == [10, 10, 1]
    with_keys = (
        "2024-01-18 09:00:00,251 [trainer.py] => init_cls: 10\n2024-01-18 09:00:00,251 [trainer.py] => increment: 10\n"
    )
    assert tasks(with_keys + text).matrix.correct[-1] == [6000, 6500, 9000]


def test_a_short_last_task_has_the_classes_that_there_are():
    order = f"2024-01-18 10:00:30,251 [data_manager.py] => {list(range(25))}\n"
    text = PilotRun([[900], [800, 700], [600, 650, 400]], [10, 10, 5]).text().replace("20-24", "20-29")
    assert tasks(order + text).matrix.task_sizes == [10, 10, 5]
    assert tasks(text).matrix.task_sizes == [10, 10, 10]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_row_leaves_what_needs_it_unknown_and_the_curve_whole(missing):
    run = PilotRun([[900], [800, 700], [600, 650, 750]], [10, 10, 10])
    line = f"CNN: {run.grouped(missing)}"
    found = tasks("".join(line + "\n" for line in run.lines()).replace(line, ""))
    assert [row is None for row in found.matrix.correct] == [task == missing for task in range(3)]
    assert found.curve == pytest.approx((0.9, 0.75, 0.6667))
    assert math.isnan(found.matrix.learning_accuracy)


def test_a_log_of_curves_alone_has_accuracies_and_no_matrix():
    found = tasks("CNN top1 curve: [90.0]\nCNN top1 curve: [90.0, 80.0]\n")
    assert found.curve == (0.9, 0.8)
    assert found.matrix.correct == [None, None]
    assert math.isnan(found.matrix.forgetting)


def test_keys_that_do_not_fit_the_groups_are_not_trusted():
    run = PilotRun(random_hits(0, [20, 20, 20]), [20, 20, 20], init_cls=10, increment=10)
    assert tasks(run.text()).matrix.task_sizes == [20, 20, 20]


@pytest.mark.parametrize("groups", ["'0-999999': 1.0", "'0-0': 1.0, '999998-999999': 2.0"])
def test_more_tasks_than_any_run_has_are_not_believed(groups):
    """One class a task, says the configuration, and a million classes, say the groups."""
    found = tasks(f"{STAMP}init_cls: 1\n{STAMP}increment: 1\n{STAMP}CNN: {{'total': 1.0, {groups}}}\n")
    assert len(found.curve) == 1


def test_a_row_with_too_much_is_no_task():
    found = tasks(
        "CNN: {'total': 1.0, '00-09': 1.0, '05-14': 2.0}\nCNN: {'total': 1.0, '03-04': 1.0}\nCNN top1 curve: [1.0]"
    )
    assert found.curve
    assert all(row is None for row in found.matrix.correct)
