"""Accuracy by class, confusions and mistakes, against counting by hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from finished_runs import PilotRun, answer, write_run

from tools.compare.comparison import Group, compare
from tools.report.__main__ import main
from tools.report.classes import class_drawings, class_tables, classes_of, pictures
from utils.errors import UserError
from utils.runs.predictions import WHOLE, predictions_file, read_mistakes, save_mistakes, save_predictions

SIZES = [3, 2]
ROWS = [[6], [5, 3]]  # of 9 and 8 test images
NAMES = ["ant", "bee", "cat", "dog", "eel"]


def a_run(folder: Path, seed: int = 1, names: list[str] | None = None, **keys) -> Path:
    return write_run(folder, "run", seed, ROWS, sizes=SIZES, count=[9, 8], adapters=[1, 1], **keys)


def group_of(*runs: Path) -> Group:
    (group,) = compare(runs).groups
    return group


def test_counts_of_one_run_are_those_of_its_predictions(tmp_path):
    run = a_run(tmp_path)
    counts = answer(run, NAMES)
    found = classes_of(group_of(run))
    assert found.names == NAMES
    assert found.tasks.tolist() == [0, 0, 0, 1, 1]
    assert found.counts.tolist() == counts.tolist()
    assert found.counts.diagonal().sum() == 5 + 3
    assert found.images.tolist() == [3, 3, 3, 4, 4]
    # By hand: images 0 to 4 of task 0 are right, of the classes 0 1 2 0 1; images 0 to 2 of task 1, of 3 4 3.
    assert found.accuracy.tolist() == [2 / 3, 2 / 3, 1 / 3, 2 / 4, 1 / 4]
    assert found.confusions == [(4, 0), (2, 3), (3, 4), (0, 1), (1, 2)]


def test_tables_name_the_classes(tmp_path):
    run = a_run(tmp_path)
    answer(run, NAMES)
    (whole, confusions), more = class_tables(classes_of(group_of(run)))
    assert more == []
    assert whole.header == ["class", "task", "test images", "right", "accuracy (%)", "most often taken for"]
    assert whole.rows[2] == ["cat", "0", "3", "1", "33.3", "dog (2)"]
    assert confusions.rows[0] == ["eel", "ant", "3", "75.0"]


def test_of_many_classes_the_worst_and_the_best_are_shown_and_all_can_be_opened(tmp_path):
    run = write_run(tmp_path, "run", 1, [[150], [120, 100]], sizes=[150, 100], count=[300, 200], adapters=[1])
    answer(run, [f"class {number}" for number in range(250)])
    (worst, best, confusions), (whole,) = class_tables(classes_of(group_of(run)))
    assert [len(table.rows) for table in (worst, best, confusions, whole)] == [5, 5, 10, 250]
    per_cent = [float(row[4]) for row in whole.rows]
    assert [float(row[4]) for row in worst.rows] == sorted(per_cent)[:5]
    assert [float(row[4]) for row in best.rows] == sorted(per_cent)[::-1][:5]
    matrix, bars = class_drawings(group_of(run), classes_of(group_of(run)))
    svg = matrix.svg("x", 6.5, "wide")
    assert len(svg) < 200_000  # one image, not 62,500 shapes
    assert "lines divide the tasks" in matrix.text
    assert len(bars.numbers.rows) == 250


def test_seeds_of_one_class_order_are_added_up(tmp_path):
    runs = [a_run(tmp_path, seed, class_order_seed=7) for seed in (1, 2)]
    counts = [answer(run, NAMES) for run in runs]
    found = classes_of(group_of(*runs))
    assert found.counts.tolist() == (counts[0] + counts[1]).tolist()
    assert found.tasks.tolist() == [0, 0, 0, 1, 1]


def test_seeds_of_different_class_orders_are_matched_by_name(tmp_path):
    runs = [a_run(tmp_path, seed) for seed in (1, 2)]
    first, second = answer(runs[0], NAMES), answer(runs[1], NAMES[::-1])
    found = classes_of(group_of(*runs))
    assert (found.names, found.tasks) == (NAMES, None)
    assert found.counts.tolist() == (first + second[::-1, ::-1]).tolist()


@pytest.mark.parametrize(
    ("keys", "pooled"),
    [({}, 1), ({"shuffle": False}, 2), ({"class_order_seed": 3}, 2), ({"class_order_seed": None}, 1)],
)
def test_without_names_seeds_are_added_up_only_if_their_order_is_the_same(tmp_path, keys, pooled):
    runs = [a_run(tmp_path, seed, **keys) for seed in (1, 2)]
    for run in runs:
        answer(run)
    found = classes_of(group_of(*runs))
    assert len(found.runs) == pooled
    assert found.names == [f"class {number}" for number in range(5)]


@pytest.mark.parametrize("names", [None, 3, ["a"], [1, 2, 3, 4, 5], ["same"] * 5])
def test_names_that_cannot_be_names_are_numbers(tmp_path, names):
    run = a_run(tmp_path)
    answer(run)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "class_names": names}))
    assert classes_of(group_of(run)).names[0] == "class 0"


def test_a_run_without_predictions_and_a_log_have_no_classes(tmp_path):
    log = tmp_path / "x.log"
    log.write_text(PilotRun([[400], [350, 380]], [5, 5], dataset="cub", seed=1).text())
    assert classes_of(group_of(log)) is None
    assert classes_of(group_of(a_run(tmp_path))) is None


def test_mistakes_are_shown_with_names_and_confidence(tmp_path):
    run = a_run(tmp_path)
    answer(run, NAMES)
    found = pictures(group_of(run).runs[0])
    wrong = np.arange(17)[np.r_[5:9, 12:17]]  # the images after those that are right
    assert [picture.name for picture in found] == [f"folder/{at}.png" for at in wrong]
    assert (found[0].true, found[0].predicted, found[0].confidence) == ("cat", "dog", "83.7 %")  # .99 - 5 * .49 / 16
    assert found[0].address.startswith("data:image/jpeg;base64,/9j/")


def test_a_mistake_without_a_thumbnail_says_so(tmp_path):
    run = a_run(tmp_path)
    answer(run, NAMES)
    save_mistakes(run, [mistake._replace(thumbnail=b"") for mistake in read_mistakes(run)])
    assert main([str(run), "-o", str(tmp_path / "x.html")]) == 0
    page = (tmp_path / "x.html").read_text()
    assert page.count("The image could not be read.") == 9
    assert "<img" not in page


def test_a_page_needs_the_run_directory_alone_and_shows_names(tmp_path):
    run = a_run(tmp_path)
    answer(run, NAMES)
    assert main([str(run), "-o", str(tmp_path / "x.html")]) == 0
    page = (tmp_path / "x.html").read_text()
    assert len(re.findall("<img ", page)) == 9
    assert "<b>dog</b>, 83.7 %<br>is cat<br>folder/5.png" in page


def test_damaged_predictions_are_named(tmp_path, capsys):
    run = a_run(tmp_path)
    answer(run, NAMES)
    file = predictions_file(run, 1)
    save_predictions(file, np.array([0, 1]), {WHOLE: np.array([0, 9])})
    with pytest.raises(UserError, match=r"task_1\.npz: expected classes from 0 to 4"):
        classes_of(group_of(run))
    save_predictions(file, np.array([0, 1]), {WHOLE: np.array([0, 0])}, np.ones(2))
    assert main([str(run), "-o", str(tmp_path / "x.html")]) == 2
    assert "the mistakes are not of the predictions of task 1" in capsys.readouterr().err
