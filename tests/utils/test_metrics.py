import json
import math
import subprocess
import sys
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.metrics import AccuracyMatrix, class_legend, format_table, group_labels, grouped_accuracy, number_with

# ---- grouped accuracy


def test_grouped_accuracy_of_a_task_in_the_middle():
    labels = np.array([0, 1, 2, 2, 3, 4, 5, 5])  # tasks 0-2, 3-4, 5-5
    predictions = np.array([0, 1, 2, 0, 3, 3, 5, 0])  # right: 3 of 4, 1 of 2, 1 of 2
    grouped = grouped_accuracy(predictions, labels, [3, 2, 1], known=5)
    assert grouped == {"total": 62.5, "00-02": 75.0, "03-04": 50.0, "05-05": 50.0, "old": 66.67, "new": 50.0}
    assert list(grouped) == ["total", "00-02", "03-04", "05-05", "old", "new"]
    assert all(type(value) is float for value in grouped.values())


def test_in_the_first_task_old_is_zero_and_new_is_everything():
    grouped = grouped_accuracy(np.array([0, 1, 0]), np.array([0, 1, 1]), [2], known=0)
    assert grouped == {"total": 66.67, "00-01": 66.67, "old": 0.0, "new": 66.67}


def test_per_cent_is_rounded_half_to_even_as_numpy_does():
    labels = np.zeros(32, int)
    predictions = np.array([0] * 1 + [1] * 31)  # 1 of 32 is 3.125 per cent, exactly between two
    assert grouped_accuracy(predictions, labels, [2], known=0)["total"] == 3.12


def test_a_group_without_images_is_nan_and_not_lost():
    grouped = grouped_accuracy(np.array([0, 3]), np.array([0, 3]), [2, 1, 1], known=3)
    assert math.isnan(grouped["02-02"])
    assert (grouped["00-01"], grouped["03-03"]) == (100.0, 100.0)


def test_labels_of_groups_with_three_digits_and_short_last_groups():
    assert group_labels([10] * 10 + [10, 5]) == [
        "00-09", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70-79", "80-89", "90-99", "100-109", "110-114"
    ]  # fmt: skip
    assert group_labels([20, 1]) == ["00-19", "20-20"]
    assert group_labels([100, 1]) == ["00-99", "100-100"]
    assert group_labels([]) == []


def test_a_short_last_group_and_one_of_a_single_class_are_counted():
    labels = np.arange(8)
    grouped = grouped_accuracy(labels, labels, [3, 3, 2], known=6)
    assert list(grouped)[1:-2] == ["00-02", "03-05", "06-07"]
    assert grouped_accuracy(labels[:7], labels[:7], [3, 3, 1], known=6)["06-06"] == 100.0


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_outside_the_tasks_is_refused(label):
    with pytest.raises(ValueError, match="expected 0 to 3"):
        grouped_accuracy(np.array([0]), np.array([label]), [2, 2], known=2)


def test_predictions_and_labels_of_different_length_are_refused():
    with pytest.raises(ValueError, match="expected one each"):
        grouped_accuracy(np.array([0, 1]), np.array([0]), [2], known=0)


# ---- the accuracy matrix


class Run(NamedTuple):
    """What happened in an imagined run: `hits[t][i]` of `count[i]` test images of task i right after task t."""

    sizes: list[int]
    count: list[int]
    hits: list[list[int]]


HAND_MADE = Run(sizes=[2, 2, 1], count=[4, 4, 2], hits=[[2], [4, 3], [1, 4, 2]])


def answers(run: Run, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels that have `run.hits[t]` right."""
    pairs = []
    for i in range(t + 1):
        first = sum(run.sizes[:i])
        for image in range(run.count[i]):
            label = first + image % run.sizes[i]
            pairs.append((label if image < run.hits[t][i] else label + 1, label))
    predictions, labels = np.array(pairs, int).reshape(-1, 2).T
    return predictions, labels


def matrix_of(run: Run) -> AccuracyMatrix:
    matrix = AccuracyMatrix()
    for t in range(len(run.sizes)):
        matrix.add_row(*answers(run, t), run.sizes[: t + 1])
    return matrix


def test_hand_made_matrix():
    matrix = matrix_of(HAND_MADE)
    nan = math.nan
    np.testing.assert_array_equal(matrix.matrix, [[0.5, nan, nan], [1.0, 0.75, nan], [0.25, 1.0, 1.0]])
    assert matrix.average_accuracies == [2 / 4, 7 / 8, 7 / 10]  # every image weighs the same: not the mean of the row
    assert matrix.avg_inc_acc == pytest.approx((0.5 + 0.875 + 0.7) / 3)
    assert matrix.last_acc == 0.7
    assert matrix.forgetting == 0.25  # (1 - 0.25 + 0.75 - 1) / 2: the best of task 0 was not its first
    assert matrix.bwt == 0.0  # (0.25 - 0.5 + 1 - 0.75) / 2
    assert matrix.learning_accuracy == 0.75  # (0.5 + 0.75 + 1) / 3


def test_forgetting_is_negative_where_tasks_get_better_to_the_end():
    matrix = matrix_of(Run([1, 1], [4, 4], [[2], [3, 4]]))
    assert matrix.forgetting == -0.25
    assert matrix.bwt == 0.25


def test_after_the_first_task_forgetting_and_transfer_are_undefined():
    matrix = matrix_of(Run([2], [4], [[3]]))
    assert math.isnan(matrix.forgetting)
    assert math.isnan(matrix.bwt)
    assert (matrix.avg_inc_acc, matrix.last_acc, matrix.learning_accuracy) == (0.75, 0.75, 0.75)


def test_an_empty_matrix_has_nothing_defined():
    summary = AccuracyMatrix().summary()
    assert (summary.pop("task_accuracy"), summary.pop("average_accuracy")) == ([], [])
    assert all(math.isnan(value) for value in summary.values())


def test_a_task_without_test_images_takes_part_in_no_mean():
    matrix = matrix_of(Run([1, 1, 1], [2, 0, 2], [[2], [2, 0], [1, 0, 2]]))
    assert math.isnan(matrix.matrix[2, 1])
    assert matrix.average_accuracies == [1.0, 1.0, 0.75]
    assert (matrix.forgetting, matrix.bwt, matrix.learning_accuracy) == (0.5, -0.5, 1.0)


def test_rows_never_measured_make_what_needs_them_undefined():
    matrix = AccuracyMatrix()
    matrix.add_row(*answers(HAND_MADE, 2), HAND_MADE.sizes)
    assert matrix.correct == [None, None, [1, 4, 2]]
    assert (matrix.last_acc, matrix.average_accuracy(2)) == (0.7, 0.7)
    assert np.isnan(matrix.matrix[:2]).all()
    for undefined in (matrix.avg_inc_acc, matrix.forgetting, matrix.bwt, matrix.learning_accuracy):
        assert math.isnan(undefined)


def test_summary_holds_every_measure_by_its_name():
    summary = matrix_of(HAND_MADE).summary()
    assert summary == {
        "task_accuracy": [0.25, 1.0, 1.0],
        "average_accuracy": [0.5, 0.875, 0.7],
        "avg_inc_acc": pytest.approx(2.075 / 3),
        "last_acc": 0.7,
        "forgetting": 0.25,
        "bwt": 0.0,
        "learning_accuracy": 0.75,
    }


def test_a_row_is_added_once():
    matrix = matrix_of(HAND_MADE)
    with pytest.raises(ValueError, match="row 2 is there already"):
        matrix.add_row(*answers(HAND_MADE, 2), HAND_MADE.sizes)


def test_other_sizes_or_test_images_than_before_are_refused():
    matrix = AccuracyMatrix()
    matrix.add_row(*answers(HAND_MADE, 0), [2])
    before = matrix.to_json()
    with pytest.raises(ValueError, match="classes of the tasks"):
        matrix.add_row(*answers(HAND_MADE, 1), [3, 1])
    predictions, labels = answers(HAND_MADE, 1)
    with pytest.raises(ValueError, match="test images of the tasks"):
        matrix.add_row(predictions[1:], labels[1:], [2, 2])
    assert matrix.to_json() == before


def test_without_last_is_the_matrix_before_and_leaves_its_origin_alone():
    matrix = matrix_of(HAND_MADE)
    shorter = matrix.without_last()
    assert shorter == matrix_of(Run([2, 2], [4, 4], [[2], [4, 3]]))
    shorter.add_row(*answers(HAND_MADE, 2), HAND_MADE.sizes)
    assert shorter == matrix
    assert matrix.without_last().to_json()["count"] == [4, 4]


# ---- JSON


def test_json_holds_raw_counts():
    assert matrix_of(HAND_MADE).to_json() == {
        "task_sizes": [2, 2, 1],
        "count": [4, 4, 2],
        "correct": [[2], [4, 3], [1, 4, 2]],
    }


GOOD = {"task_sizes": [2, 1], "count": [4, 2], "correct": [[3], [2, 1]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": None}, "correct = null: input should be a valid list"),
        ({"count": [4]}, "as many of each"),
        ({"task_sizes": [2, 0]}, r"task_sizes\.1 = 0: input should be greater than or equal to 1"),
        ({"task_sizes": [2, True]}, r"task_sizes\.1 = true: input should be a valid integer"),
        ({"count": [4, -2]}, r"count\.1 = -2: input should be greater than or equal to 0"),
        ({"count": [4, 2.0]}, r"count\.1 = 2\.0: input should be a valid integer"),
        ({"correct": [[3], [2]]}, "row 1"),
        ({"correct": [[3], [5, 1]]}, "row 1"),
        ({"correct": [[-1], [2, 1]]}, r"correct\.0\.0 = -1: input should be greater than or equal to 0"),
        ({"correct": [["3"], [2, 1]]}, r'correct\.0\.0 = "3": input should be a valid integer'),
        ({"correct": [3, [2, 1]]}, r"correct\.0 = 3: input should be a valid list"),
    ],
)
def test_json_that_is_no_matrix_is_refused(change, message):
    assert AccuracyMatrix.from_json(GOOD).to_json() == GOOD
    with pytest.raises(ValueError, match=message):
        AccuracyMatrix.from_json({**GOOD, **change})


def test_more_tasks_than_a_matrix_has_room_for_are_refused():
    many = {"task_sizes": [1] * 2001, "count": [1] * 2001, "correct": [None] * 2001}
    with pytest.raises(ValueError, match=r"task_sizes = .*: list should have at most 2000 items"):
        AccuracyMatrix.from_json(many)
    assert AccuracyMatrix.from_json({key: values[1:] for key, values in many.items()}).matrix.shape == (2000, 2000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner, max_size=3),
    max_leaves=12,
)


@given(json_values)
def test_whatever_json_holds_is_read_or_refused(values):
    try:
        matrix = AccuracyMatrix.from_json(values)
    except ValueError:
        return
    matrix.summary()
    assert format_table(matrix)


# ---- properties


@st.composite
def runs(draw, least_images=0):
    tasks = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 12), min_size=tasks, max_size=tasks))
    count = draw(st.lists(st.integers(least_images, 7), min_size=tasks, max_size=tasks))
    hits = [[draw(st.integers(0, count[i])) for i in range(t + 1)] for t in range(tasks)]
    return Run(sizes, count, hits)


def exact(run: Run) -> list[list[Fraction]]:
    return [[Fraction(hits, run.count[i]) for i, hits in enumerate(row)] for row in run.hits]


@given(runs(least_images=1))
def test_measures_equal_plain_loops_over_exact_fractions(run):
    r, last = exact(run), len(run.sizes) - 1
    lost = moved = learned = curve = Fraction(0)
    for t in range(last + 1):
        learned += r[t][t] / (last + 1)
        curve += Fraction(sum(run.hits[t]), sum(run.count[: t + 1])) / (last + 1)
    for i in range(last):
        best = r[i][i]
        for t in range(i + 1, last):
            if r[t][i] > best:
                best = r[t][i]
        lost += (best - r[last][i]) / last
        moved += (r[last][i] - r[i][i]) / last
    matrix = matrix_of(run)
    assert matrix.learning_accuracy == pytest.approx(float(learned))
    assert matrix.avg_inc_acc == pytest.approx(float(curve))
    assert matrix.last_acc == pytest.approx(sum(run.hits[last]) / sum(run.count))
    if last:
        assert matrix.forgetting == pytest.approx(float(lost), abs=1e-12)
        assert matrix.bwt == pytest.approx(float(moved), abs=1e-12)
        assert matrix.forgetting >= -matrix.bwt - 1e-12  # the maximum is at least the diagonal
        assert -1 <= matrix.forgetting <= 1


@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(run, random):
    shuffled = AccuracyMatrix()
    for t in range(len(run.sizes)):
        predictions, labels = answers(run, t)
        order = list(range(len(labels)))
        random.shuffle(order)
        shuffled.add_row(predictions[order], labels[order], run.sizes[: t + 1])
    assert shuffled == matrix_of(run)


@given(runs())
def test_counts_survive_predictions_and_json(run):
    matrix = matrix_of(run)
    assert (matrix.task_sizes, matrix.count, matrix.correct) == run
    assert AccuracyMatrix.from_json(json.loads(json.dumps(matrix.to_json()))) == matrix


@given(runs(least_images=1))
def test_groups_agree_with_the_last_row_of_the_matrix(run):
    t = len(run.sizes) - 1
    grouped = grouped_accuracy(*answers(run, t), run.sizes, known=sum(run.sizes[:-1]))
    row = [grouped[label] for label in group_labels(run.sizes)]
    assert row == pytest.approx([float(100 * value) for value in exact(run)[t]], abs=0.005 + 1e-9)
    assert grouped["new"] == row[-1]
    assert grouped["total"] == pytest.approx(100 * matrix_of(run).last_acc, abs=0.005 + 1e-9)
    if t:
        assert grouped["old"] == pytest.approx(100 * sum(run.hits[t][:-1]) / sum(run.count[:-1]), abs=0.005 + 1e-9)


@given(runs())
def test_without_last_undoes_add_row(run):
    matrix = matrix_of(run)
    assert matrix.without_last() == matrix_of(Run(run.sizes[:-1], run.count[:-1], run.hits[:-1]))


# ---- the table


def test_table_of_a_hand_made_matrix():
    assert format_table(matrix_of(HAND_MADE)).splitlines() == [
        "after task   00-01   02-03   04-04    all",
        "         0   50.00                  50.00",
        "         1  100.00   75.00          87.50",
        "         2   25.00  100.00  100.00  70.00",
        "average incremental 69.17, last 70.00, forgetting 25.00, BWT 0.00",
    ]


def test_table_shows_what_is_undefined_as_a_dash():
    matrix = AccuracyMatrix()
    matrix.add_row(np.array([1]), np.array([1]), [1, 1])
    assert format_table(matrix).splitlines() == [
        "after task  00-00   01-01     all",
        "         0      -               -",
        "         1      -  100.00  100.00",
        "average incremental -, last 100.00, forgetting -, BWT -",
    ]


def test_metrics_never_import_torch():
    code = "import sys, utils.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_legend_has_one_line_for_each_task_whatever_the_classes_are_called():
    assert class_legend(["one\nother", "a\tb", "\u00fc"], [2, 1]) == '00-01: "one\\nother", "a\\tb"\n02-02: \u00fc'


def test_the_legend_names_the_classes_under_the_labels_of_the_table():
    names = [*"abc", *(f"class {n}" for n in range(10))]
    shown = ", ".join(f"class {n}" for n in range(8))
    assert class_legend(names, [2, 1, 10]) == f"00-01: a, b\n02-02: c\n03-12: {shown} and 2 more"
    assert class_legend(names, [1]) == "00-00: a"


# ---- transient tasks


def test_transient_tasks_count_in_no_average_but_keep_their_column():
    whole = AccuracyMatrix([2, 2, 2, 2], [10, 20, 30, 0], [[9], [5, 18], [6, 7, 21], [3, 4, 15, 0]], [1])
    assert whole.average_accuracies == [9 / 10, 5 / 10, 27 / 40, 18 / 40]
    assert whole.averaged == [0, 2]
    assert whole.forgetting == pytest.approx(((9 - 3) / 10 + (21 - 15) / 30) / 2)
    assert whole.bwt == pytest.approx(-((9 - 3) / 10 + (21 - 15) / 30) / 2)
    assert whole.learning_accuracy == pytest.approx((9 / 10 + 21 / 30) / 2)
    assert (whole.transient_learned, whole.transient_left) == ([18 / 20], [4 / 20])
    assert whole.matrix[:, 1].tolist()[1:] == [18 / 20, 7 / 20, 4 / 20]
    assert AccuracyMatrix.from_json(whole.to_json()) == whole
    assert whole.without_last().transient == [1]
    first = AccuracyMatrix([2], [10], [[9]], [1])
    assert math.isnan(first.summary()["transient_left"][0])
    assert "transient" not in format_table(first)
    assert "transient task 1: 90.00 after learning it, 20.00 now" in format_table(whole)
    assert format_table(whole).splitlines()[0].endswith("core")


def test_numbers_count_the_tasks_that_are_left_out():
    for left_out in ([], [1], [2, 1], [1, 3, 4]):
        kept = [number for number in range(9) if number not in left_out]
        assert [number_with(left_out, task) for task in range(len(kept))] == kept
