"""What is said first: that adapters change no answer, or few."""

import json
from pathlib import Path

import pytest
from finished_runs import NESTED, PLAIN, PilotRun, write_run

from tools.compare.comparison import compare
from tools.compare.data import as_json
from tools.compare.effect import TITLE, effect_of_adapters
from tools.compare.tables import READABLE
from tools.report.__main__ import main as report

ROWS = [[90], [80, 60]]
NONE = (
    "The adapters of {} change no answer on the test images, after any task and with any seed: the accuracies are "
    "those of the head on frozen features."
)


def runs(folder: Path, label: str, *changed: list[int], epochs: int = 1) -> list[Path]:
    """A run for each seed, with as many changed answers after each task, none of which was right."""
    options = {"off": ROWS, "func_epoch": epochs}
    return [write_run(folder, label, seed, ROWS, changed=tasks, **options) for seed, tasks in enumerate(changed)]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ([[0, 0], [0, 0]], NONE.format("x")),
        (
            [[0, 0], [0, 3]],
            "The adapters of x change 0.75 % of the answers on the test images after the last task (mean over seeds): "
            "its last accuracy is that of the head on frozen features to within 0.75 points.",
        ),
        (
            [[0, 1], [0, 3]],  # 1 %
            "The adapters of x change 1.00 % of the answers on the test images after the last task (mean over seeds). "
            "Its last accuracy is 70.00 %; with all adapters off the same head has 70.00 %.",
        ),
    ],
)
def test_a_configuration_is_named_with_what_its_adapters_change(tmp_path, changed, sentence):
    assert effect_of_adapters(compare(runs(tmp_path, "x", *changed))) == [sentence]


def test_of_a_learner_without_adapters_nothing_is_said(tmp_path):
    paths = [
        write_run(tmp_path, name, 1, ROWS, off=ROWS, changed=[0, 0], model_name=name) for name in ("linear", "finetune")
    ]
    assert effect_of_adapters(compare(paths)) == [NONE.format("finetune")]


def test_answers_that_change_after_an_earlier_task_only_are_not_none(tmp_path):
    (found,) = effect_of_adapters(compare(runs(tmp_path, "x", [0, 0], [1, 0])))
    assert found.startswith("The adapters of x change 0.00 % of the answers on the test images after the last task")


def test_configurations_with_the_same_sentence_share_it(tmp_path):
    paths = [
        *runs(tmp_path, "a", [0, 0]),
        *runs(tmp_path, "b", [0, 90], epochs=2),
        *runs(tmp_path, "c", [0, 0], epochs=3),
    ]
    none, some = effect_of_adapters(compare(paths))
    assert none == NONE.format("a, c")
    assert some.startswith("The adapters of b change 45.00 % ")


def test_of_runs_without_such_a_record_only_equal_figures_can_be_said(tmp_path):
    (tmp_path / "x.log").write_text(PilotRun([[900], [800, 700]], [10, 10]).text())
    (found,) = effect_of_adapters(compare([NESTED, PLAIN, tmp_path / "x.log"]))
    assert found == NONE.format("nested").replace("no answer", "no accuracy")
    other = write_run(tmp_path, "other", 1, ROWS)
    assert effect_of_adapters(compare([other])) == []
    results = json.loads((other / "results.json").read_text())
    branches = {"a+b": results["accuracy"], "neither": {**results["accuracy"], "correct": [[90], [80, 61]]}}
    (other / "results.json").write_text(json.dumps({**results, "branches": branches}))
    events = [{"kind": "branches", "task": t, "when": "after_task", "correct": {"a+b": r}} for t, r in enumerate(ROWS)]
    events[0]["correct"]["neither"], events[1]["correct"]["neither"] = [90], [80, 61]
    with (other / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    assert effect_of_adapters(compare([other])) == []


def test_every_format_and_the_page_open_with_it(tmp_path):
    comparison = compare(runs(tmp_path, "x", [0, 0], [0, 0]))
    for name, form in READABLE.items():
        text = form(comparison)
        assert text.index(NONE.format("x")) < text.index("Runs"), name
        assert TITLE in text
    assert json.loads(as_json(comparison))["effect_of_adapters"] == [NONE.format("x")]
    paths = [str(run.path) for _, run in comparison.runs]
    assert report([*paths, "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    summary = page.split('id="summary"')[1]
    assert summary.index(NONE.format("x")) < summary.index("Warnings") < summary.index("<table")


def test_differences_with_adapters_off_stand_beside_the_others(tmp_path):
    options = {"off": [[80], [70, 60]], "changed": [10, 20]}
    base = [write_run(tmp_path, "base", seed, [[90], [80, 60]], **options) for seed in (1, 2)]
    ours = []
    for seed in (1, 2):
        options = {"off": [[80], [70, 60 + seed]], "changed": [10, 20], "func_epoch": 3}
        ours.append(write_run(tmp_path, "ours", seed, [[90], [80, 70 + seed]], **options))
    found = json.loads(as_json(compare([*ours, *base], "base")))["groups"][0]["difference"]
    assert found["last_acc"]["mean"] == pytest.approx(0.0575)
    assert found["last_acc_off"]["mean"] == pytest.approx(0.0075)
    assert found["avg_inc_acc_off"]["mean"] == pytest.approx(0.00375)
