"""Sections that depend on what the runs have."""

import json

from finished_runs import write_run

from tools.compare.comparison import compare
from tools.report.sections import accuracy


def test_learning_curves_are_in_the_report_of_runs_evaluated_in_the_middle_of_a_task(tmp_path):
    run = write_run(tmp_path, "a", 1, [[90], [80, 70]], adapters=[1])
    title = "Learning each new task"
    assert title not in [part.title for part in accuracy(compare([run])).parts]
    place = {"task": 1, "cycle": 0, "phase": "func", "epoch": 0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "eval", **place, "accuracy": {"grouped": {"new": 50.0, "old": 60.0}}}) + "\n")
    (part,) = [part for part in accuracy(compare([run])).parts if part.title == title]
    assert [drawing.numbers.rows for drawing in part.drawings] == [[["a", "1", "0", "0", "50", "60"]]]
