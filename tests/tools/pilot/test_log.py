import math
import time

import pytest
from finished_runs import PilotRun, random_hits
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.pilot.log import literal, parse

STAMP = "2024-01-18 10:00:30,251 [trainer.py] => "
HITS = [[900], [800, 700], [600, 650, 750]]
TEXT = PilotRun(HITS, [10, 10, 10], config="x.json", prefix="p", seed=3, init_cls=10, increment=10).text()


def stamped(*lines: str) -> str:
    return "".join(f"{STAMP}{line}\n" for line in lines)


def test_a_log_is_taken_apart():
    (log,) = parse(TEXT)
    assert log.config == {"config": "x.json", "prefix": "p", "seed": 3, "init_cls": 10, "increment": 10}
    assert [row.groups for row in log.rows] == [
        {"00-09": 90.0},
        {"00-09": 80.0, "10-19": 70.0},
        {"00-09": 60.0, "10-19": 65.0, "20-29": 75.0},
    ]
    assert [(row["total"], row["old"], row["new"]) for row in log.rows] == [
        (90, 0, 90),
        (75, 80, 70),
        (66.67, 62.5, 75),
    ]
    assert [row.curve for row in log.rows] == [[90.0], [90.0, 75.0], [90.0, 75.0, 66.67]]
    assert log.curve == [90.0, 75.0, 66.67]
    assert log.average == pytest.approx((90 + 75 + 66.67) / 3)
    assert log.forgetting == pytest.approx((30 + 5) / 2)
    assert log.matrix == [[90.0, 80.0, 60.0], [0.0, 70.0, 65.0], [0.0, 0.0, 75.0]]
    assert log.seconds == 3600.0
    assert not log.notes


def test_numpy_scalars_windows_line_ends_and_progress_bars_do_not_matter():
    odd = TEXT.replace("90.0", "np.float64(90.0)").replace("\n2024", "\n 99%|#| 3/4 [00:01<00:00]\r2024")
    (log,), (plain,) = parse(odd.replace("\n", "\r\n")), parse(TEXT)
    assert [(row.groups, row.curve) for row in log.rows] == [(row.groups, row.curve) for row in plain.rows]
    assert (log.config, log.matrix, log.curve) == (plain.config, plain.matrix, plain.curve)


def test_an_excerpt_without_stamps_is_read():
    (log,) = parse("CNN: {'total': 61.28, '00-19': 60.96, 'old': 0, 'new': nan}\nCNN top1 curve: [61.28]\n")
    assert (log.rows[0].groups, log.curve) == ({"00-19": 60.96}, [61.28])
    assert math.isnan(log.rows[0]["new"])
    assert log.config == {}
    assert math.isnan(log.seconds)


def test_an_excerpt_that_begins_with_accuracies_has_no_configuration():
    (log,) = parse(stamped("CNN: {'total': 1.0, '00-09': 1.0, 'old': 0, 'new': 1.0}", "CNN top1 curve: [1.0]"))
    assert log.config == {}


def test_the_configuration_ends_where_training_begins():
    text = stamped("seed: 1", "All params: 3", "task_time: 4") + TEXT.split("\n", 5)[5]
    assert parse(text)[0].config == {"seed": 1}


def test_what_follows_accuracies_is_no_configuration_and_a_key_may_come_twice():
    text = stamped("seed: 1", "lr: 0.1", "seed: 2", "CNN top1 curve: [90.0]", "task_time: 4")
    (log,) = parse(text)
    assert log.config == {"seed": 2, "lr": 0.1}


def test_values_of_the_configuration_are_python_values_where_they_can_be():
    text = stamped(
        "seed: 1", "lr: 0.01", "on: True", "none: None", "device: [device(type='cuda', index=0)]", "name: a b"
    )
    (log,) = parse(text + TEXT.split("\n", 5)[5])
    assert log.config == {
        "seed": 1,
        "lr": 0.01,
        "on": True,
        "none": None,
        "device": "[device(type='cuda', index=0)]",
        "name": "a b",
    }


def test_the_class_order_says_how_many_classes_there_are():
    order = "2024-01-18 10:00:30,251 [data_manager.py] => [2, 0, 3, 1]\n"
    lines = TEXT.split("\n", 5)
    assert parse("\n".join(lines[:5]) + "\n" + order + lines[5])[0].nb_classes == 4


def test_seeds_written_into_one_file_are_runs_of_their_own():
    texts = [PilotRun(random_hits(seed, [10] * 4), [10] * 4, prefix="p", seed=seed).text() for seed in (1, 2, 3)]
    logs = parse("".join(texts))
    assert [log.config["seed"] for log in logs] == [1, 2, 3]
    assert [len(log.rows) for log in logs] == [4, 4, 4]
    assert [log.curve for log in logs] == [parse(text)[0].curve for text in texts]
    assert [log.matrix for log in logs] == [parse(text)[0].matrix for text in texts]
    assert logs[1].line == len(texts[0].splitlines()) + 1


def test_a_run_that_was_started_again_without_its_configuration_is_a_run_of_its_own():
    without = "\n".join(line for line in TEXT.splitlines() if "CNN" in line) + "\n"
    assert [len(log.rows) for log in parse(TEXT + without)] == [3, 3]
    first = "\n".join(without.splitlines()[:2]) + "\n"
    assert [len(log.rows) for log in parse(first + first)] == [1, 1]
    later = "\n".join(without.splitlines()[4:]) + "\n"  # from the second task on
    assert [len(log.rows) for log in parse(later + without)] == [2, 3]
    curves = "".join(f"CNN top1 curve: {[90.0, 80.0][:n]}\n" for n in (1, 2))
    assert [log.curve for log in parse(curves + curves)] == [[90.0, 80.0]] * 2


def test_a_start_that_came_to_no_accuracy_leaves_no_trace():
    config = stamped("config: x.json", "seed: 9", "All params: 3").replace("2024", "2023")
    (log,) = parse(config + TEXT)
    assert log.config["seed"] == 3
    assert log.seconds == 3600.0


def test_a_line_printed_twice_counts_once():
    doubled = "".join(line + "\n" + (line + "\n") * ("CNN: {" in line) for line in TEXT.splitlines())
    (log,) = parse(doubled)
    assert len(log.rows) == 3
    assert len(log.notes) == 3
    assert "counted once" in log.notes[0]


@pytest.mark.parametrize(
    "line",
    [
        "CNN: {'total': 91.2, '00-09': 9",
        "CNN: {'total': '91'}",
        "CNN top1 curve: [91.2, 8",
        "CNN top1 curve: [nan]",
        "CNN: {}",
        f"CNN: {{0x{'f' * 5000}: 91.2}}",
    ],
)
def test_a_damaged_line_is_noted_with_its_number(line):
    (log,) = parse(TEXT + stamped(line))
    assert log.notes == [f"line {len(TEXT.splitlines()) + 1}: cut off or damaged: {line.partition(': ')[2][:60]}"]
    assert len(log.rows) == 3


def test_of_very_many_damaged_lines_the_first_are_noted():
    (log,) = parse(TEXT + "CNN: {\n" * 1000)
    assert len(log.notes) == 101
    assert log.notes[99] == f"line {len(TEXT.splitlines()) + 100}: cut off or damaged: {{"
    assert log.notes[100] == f"line {len(TEXT.splitlines()) + 101} and later: more such lines, which are not listed"


def test_what_a_fork_adds_to_the_groups_is_not_looked_at():
    text = TEXT.replace("'total': 90.0", "'total': 90.0, 'by_task': {'Task_0': 90.0}, 'hm': [1]")
    assert parse(text)[0].rows[0].groups == {"00-09": 90.0}
    assert not parse(text)[0].notes


def test_matrices_that_wrap_or_come_line_by_line_are_read_and_shortened_ones_are_not():
    wide = PilotRun(random_hits(0, [10] * 16), [10] * 16)
    assert any(line.startswith("  ") for line in str(wide.table()).splitlines())  # numpy wraps it
    assert parse(wide.text())[0].matrix == wide.table().tolist()
    by_line = TEXT + stamped("Accuracy matrix (CNN):", "  [90.0]", "  [80.0, 70.0]", "Forgetting (CNN): 1.50")
    assert parse(by_line)[0].matrix == [[90.0], [80.0, 70.0]]
    assert parse(by_line)[0].forgetting == 1.5
    assert parse(TEXT.replace("[[90.", "[[90. ..."))[0].matrix == []
    assert parse(TEXT + "Accuracy Matrix (NME):\n[[1.]]\n")[0].matrix == parse(TEXT)[0].matrix


def test_other_names_of_the_same_lines():
    text = "ACC top1 curve: [90.0, 80.0]\nAverage Accuracy: 85.0\nAverage Forgetting (CNN): 2.5\nNME: {'total': 1}\n"
    (log,) = parse(text)
    assert (log.curve, log.average, log.forgetting, log.has_nme) == ([90.0, 80.0], 85.0, 2.5, True)


def test_a_text_without_accuracies_has_no_runs():
    assert parse("") == []
    assert parse(stamped("seed: 1", "All params: 3")) == []
    assert parse("Accuracy Matrix (CNN):\n[[1.]]\n") == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[np.float64(1.5), numpy.float32(2)] ", [1.5, 2]),
        ("{'a': nan}", {"a": None}),
        ("{'a': 1} => rest", {"a": 1}),
        ("1993", 1993),
        ("None", None),
        ("np.float64(0.5)", 0.5),
    ],
)
def test_literals(text, value):
    assert literal(text) == value


@pytest.mark.parametrize(
    "text",
    ["a b", "[[" * 500, "-" * 50_000 + "1", "{[]: 1}", "{{}}", "print(1)", "[" + "1, " * 40_000 + "]", ""],
)
def test_what_is_no_literal_or_too_long_is_no_value(text):
    with pytest.raises(ValueError, match="no value"):
        literal(text)


def test_a_value_that_python_would_warn_about_is_a_value():
    assert parse(stamped(r"prefix: '\d'", "CNN top1 curve: [90.0]"))[0].config == {"prefix": r"\d"}


@pytest.mark.parametrize("text", ["nan", "0x" + "f" * 5000, "{(1, 2): 3}", "{1, 2}", "b'x'", "{None: 1, 'a': 2}"])
def test_what_is_no_value_of_a_configuration_stays_a_text(text):
    (log,) = parse(stamped(f"seed: {text}", "CNN top1 curve: [90.0]"))
    assert log.config == {"seed": text}


@pytest.mark.parametrize("value", ["1e999", "-1e999", "1" + "0" * 400, "0x" + "f" * 5000, "True", "'9'", "1e7"])
def test_a_percentage_beyond_all_measure_is_damage(value):
    good = "CNN: {'total': 90.0, '00-09': 90.0}\nCNN top1 curve: [90.0]"
    bad = f"CNN: {{'total': {value}, '00-09': 90.0}}\nCNN top1 curve: [90.0, {value}]"
    (log,) = parse(f"{good}\n{bad}")
    assert (len(log.rows), log.curve) == (1, [90.0])
    assert [note[:7] for note in log.notes] == ["line 3:", "line 4:"]


def test_a_time_that_is_none_is_no_time():
    (log,) = parse(
        "2024-02-31 10:00:00,000 [trainer.py] => CNN top1 curve: [90.0]\n"
        "2024-02-01 10:00:00,000 [trainer.py] => x\n2024-02-01 10:01:00,000 [trainer.py] => x\n"
    )
    assert log.seconds == 60.0


def test_a_run_has_a_thousand_tasks_at_most():
    rows = [f"CNN: {{'total': 1.0, '{2 * t}-{2 * t + 1}': {t % 90}.0}}" for t in range(1010)]
    (log,) = parse("\n".join([*rows, f"CNN top1 curve: {[1.0] * 1001}"]))
    assert (len(log.rows), log.curve) == (1000, [])
    assert len(log.notes) == 11


def test_a_printed_matrix_of_many_lines_takes_time_by_its_lines():
    before = time.process_time()
    (log,) = parse("CNN top1 curve: [90.0]\nAccuracy Matrix (CNN):\n[" + "0 1 2 3 4 5 6 7 8 9\n" * 200_000 + "]")
    assert len(log.matrix_lines) == 200_002
    assert (
        time.process_time() - before < 10
    )  # of which it takes a tenth; by the square of its lines it would take an hour


@given(st.integers(0, len(TEXT)), st.text(max_size=20), st.integers(0, len(TEXT)))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_it_fall_over(cut, junk, end):
    for log in parse(TEXT[:cut] + junk + TEXT[end:]):
        assert log.rows or log.top1
