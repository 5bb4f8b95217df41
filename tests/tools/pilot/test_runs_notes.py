import pytest
from finished_runs import PilotRun, random_hits
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.pilot.log import parse
from tools.pilot.runs import Tasks, notes

HITS = [[900], [800, 700], [600, 650, 750]]
SIZES = [10, 10, 10]
KEYS = {"init_cls": 10, "increment": 10}


def found(text: str) -> list[str]:
    (log,) = parse(text)
    return notes(Tasks(log))


def changed(old: str, new: str) -> list[str]:
    """Notes on a consistent log in which one thing was changed; it has no matrix, which would be changed with it."""
    text = PilotRun(HITS, SIZES, **KEYS).text(matrix=False)
    assert old in text
    return found(text.replace(old, new))


@given(st.lists(st.integers(2, 20), min_size=1, max_size=14), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_log_that_is_right_gives_no_notes(sizes, seed):
    assert found(PilotRun(random_hits(seed, sizes), sizes).text()) == []


def log_sorted_as_text() -> PilotRun:
    """Twelve tasks of ten classes; 100-109 and 110-119 go before 20-29 when sorted as text."""
    return PilotRun(random_hits(5, [10] * 12), [10] * 12, sort_as_text=True, **KEYS)


def test_three_digit_labels_sorted_as_text_are_found_out():
    run = log_sorted_as_text()
    right = PilotRun(run.hits, run.sizes).forgetting()
    last = len(run.sizes) - 1
    ours = sum(max(run.per_cent(t, [i]) for t in range(i, last)) - run.per_cent(last, [i]) for i in range(last)) / last
    assert abs(run.forgetting() - right) > 0.5  # what the log prints is wrong
    assert found(run.text()) == [
        "the accuracy matrix is not that of the groups: it sorts the groups as text (110-119 before 20-29)",
        f"forgetting is {run.forgetting():.2f}, but the groups give {right:.2f} by its formula and {ours:.2f} by ours: "
        "it sorts the groups as text (110-119 before 20-29)",
    ]


def test_sorting_as_text_does_no_harm_to_labels_of_two_digits():
    assert found(PilotRun(random_hits(0, [10] * 10), [10] * 10, sort_as_text=True).text()) == []


def test_a_matrix_the_other_way_round_or_without_zeros_is_the_same_matrix():
    run = PilotRun(HITS, SIZES)
    text, table = run.text(), run.table()
    assert found(text.replace(str(table), str(table.T))) == []
    triangle = "\n".join(str(table.T[t, : t + 1].tolist()) for t in range(3))
    assert found(text.replace(str(table), triangle)) == []
    assert found(text.replace("[ 0. 70. 65.]", "[ 0. 70. 66.]")) == ["the accuracy matrix is not that of the groups"]


def test_forgetting_by_our_formula_is_right_too_and_any_other_is_not():
    hits = [[800], [700, 700], [900, 650, 750]]  # task 0 is best at the end: theirs never falls below 0, ours does
    run = PilotRun(hits, SIZES)
    theirs, ours = (0 + 5) / 2, (-10 + 5) / 2
    assert run.forgetting() == theirs
    text = run.text()
    assert found(text) == []
    assert found(text.replace(f"(CNN): {theirs}", f"(CNN): {ours}")) == []
    (note,) = found(text.replace(f"(CNN): {theirs}", "(CNN): 3.1"))
    assert note == "forgetting is 3.10, but the groups give 2.50 by its formula and -2.50 by ours"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "CNN top1 curve: [90.0, 75.0]",
            "CNN top1 curve: [90.0, 76.0]",
            [
                "task 1 (line 15): the end of the curve is 76, but the total, which is used, is 75",
                "line 25: a point of the curve is 75, but the curve before it (of another run, or of a resumed one)",
            ],
        ),
        (
            "CNN: {'total': 75.0",
            "CNN: {'total': 85.0",
            ["total is 85, but its groups give 70 to 80", "curve is 75, but the total, which is used, is 85"],
        ),
        ("'old': 80.0, 'new': 70.0", "'old': 80.0, 'new': 71.0", ["task 1 (line 15): new is 71, but its groups give"]),
        ("'old': 80.0, 'new': 70.0", "'old': 79.0, 'new': 70.0", ["task 1 (line 15): old is 79, but its groups give"]),
        ("'20-29': 75.0", "'20-29': 175.0", ["20-29 is 175, but a percentage is 0 to 100", "new is 75, but"]),
        (
            "CNN top5 curve: [100.0, 100.0]",
            "CNN top5 curve: [100.0, 50.0]",
            ["top-5 accuracy is 50, but the top-1 accuracy allows 75 to 100"],
        ),
        (f"(CNN): {(90 + 75 + 66.67) / 3}", "(CNN): 80.0", ["average accuracy is 80, but the mean of the curve is"]),
        (
            "CNN: {'total': 75.0, '00-09': 80.0, '10-19': 70.0, 'old': 80.0, 'new': 70.0}",
            "CNN: {'total': 75.0, '00-09'",
            ["cut off or damaged", "no accuracies by group after task 1"],
        ),
        ("'00-09': 60.0, ", "", ["task 2 (line 24): no accuracy on task 0: its groups are missing"]),
        ("No NME accuracy.", "NME: {'total': 1.0}", ["(NME), which are not read"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_said(old, new, expected):
    texts = changed(old, new)
    assert len(texts) == len(expected), texts
    assert all(part in text for part, text in zip(expected, texts, strict=True)), texts


def test_a_lost_group_of_the_last_task_and_a_label_beyond_the_classes_are_said():
    run = PilotRun([[900], [800, 700], [600, 650, 90]], [10, 10, 1])
    assert found(run.text(matrix=False).replace(" '20-20': 90.0,", "")) == [
        "task 2 (line 22): the new classes have no group; `new` is used for them"
    ]
    order = f"2024-01-18 10:00:30,251 [data_manager.py] => {list(range(25))}\n"
    short = PilotRun([[900], [800, 700], [600, 650, 400]], [10, 10, 5])
    assert found(order + short.text().replace("20-24", "20-29")) == [
        "the last class of 20-29 is 29, but the classes are 0 to 24"
    ]


@pytest.mark.parametrize(("classes", "tasks"), [(30, 3), (31, 4), (25, 3), (100, 10)])
def test_a_run_that_ends_before_its_last_task_is_unfinished(classes, tasks):
    text = PilotRun(HITS, SIZES, **KEYS).text()
    order = f"2024-01-18 10:00:30,251 [data_manager.py] => {list(range(classes))}\n"
    lines = text.splitlines(keepends=True)
    expected = [] if tasks == 3 else [f"ends after 3 of {tasks} tasks: the run is not finished"]
    assert [note for note in found("".join([*lines[:2], order, *lines[2:]])) if "last class" not in note] == expected


def test_a_resumed_run_whose_curve_starts_again_is_said_and_its_matrix_is_whole():
    text = PilotRun(HITS, SIZES).text(matrix=False)
    resumed = text.replace("top1 curve: [90.0, 75.0, 66.67]", "top1 curve: [66.67]")
    (log,) = parse(resumed)
    assert notes(Tasks(log))[:2] == [
        "task 2 (line 22): the length of the curve is 1, but it should be 3",
        "line 23: a point of the curve is 66.67, but the curve before it (of another run, or of a resumed one) has 90",
    ]
    assert Tasks(log).matrix.correct == [[9000], [8000, 7000], [6000, 6500, 7500]]


def test_the_accuracy_of_new_classes_is_the_mean_of_their_groups():
    text = "CNN: {'total': 80.0, '00-09': 90.01, '10-19': 70.0, 'old': 0, 'new': 80.0}\nCNN top1 curve: [80.0]\n"
    assert found(text) == []
    (note,) = found(text.replace("'new': 80.0", "'new': 85.0"))
    assert note == "task 0 (line 1): new is 85, but its groups give 80"


def test_groups_that_no_task_can_be_given_are_said():
    text = "CNN: {'total': 80.0, '00-09': 90.0, '10-19': 40.0, 'old': 0, 'new': 80.0}\nCNN top1 curve: [80.0]\n"
    (note,) = found(text)
    assert note.endswith("no accuracy on task 0: its groups are missing, or their mean is not the total")
    unknown = (
        text + "CNN: {'total': 70.0, '00-09': 90.0, '10-19': 40.0, '20-29': 60.0}\nCNN: {'total': 1.0, '20-29': 60.0}\n"
    )
    (log, _) = parse(unknown + "CNN top1 curve: [1.0]")
    assert "the groups of classes cannot be assigned to tasks, so there is no accuracy matrix" in notes(Tasks(log))


@given(st.text(max_size=200), st.integers(0, 2000))
@settings(max_examples=50, deadline=None)
def test_no_log_however_damaged_makes_it_fall_over(junk, place):
    text = log_sorted_as_text().text()
    for log in parse(text[:place] + junk + text[place + 300 :]):
        tasks = Tasks(log)
        assert all(isinstance(note, str) for note in notes(tasks))
        assert len(tasks.curve) == len(tasks.matrix.correct) == len(tasks.matrix.task_sizes)
