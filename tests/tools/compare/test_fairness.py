import json
import math
from pathlib import Path

import pytest
from finished_runs import PilotRun, write_run
from recorded_events import cadence

from tools.compare.comparison import compare
from tools.compare.fairness import warnings
from tools.compare.measures import TIME
from tools.compare.tables import terminal


def of(folder: Path, label: str, seeds: list[int], **options) -> list[Path]:
    """Runs of a configuration; those of another label have other right answers."""
    rows = options.pop("rows", [[90], [80, 70 + ord(label) - ord("a")]])
    return [write_run(folder, label, seed, rows, **options) for seed in seeds]


def test_equal_conditions_and_three_paired_seeds_give_no_warning(tmp_path):
    paths = of(tmp_path, "a", [1, 2, 3]) + of(tmp_path, "b", [1, 2, 3], buffer_size=9)
    assert warnings(compare(paths, "a")) == []


def test_few_seeds_are_said_for_each_configuration(tmp_path):
    paths = of(tmp_path, "a", [1]) + of(tmp_path, "b", [1, 2], buffer_size=9)
    assert [text.split(";")[0] for text in warnings(compare(paths))] == ["a: only one seed", "b: only 2 seeds"]


def test_a_warning_that_many_share_is_one_with_their_number(tmp_path):
    paths = [path for number in range(5) for path in of(tmp_path, "abcde"[number], [1], buffer_size=number + 3)]
    expected = "5 configurations (a, b, c, d, ...): only one seed; fewer than 3 say little about the spread"
    assert warnings(compare(paths)) == [expected]


def test_unequal_training_is_said_first(tmp_path):
    paths = of(tmp_path, "a", [1], func_epoch=2) + of(tmp_path, "a", [1], func_epoch=3, rd_epoch=4)
    first, second, *_ = warnings(compare(paths))
    a, b = '"func epoch 2, rd epoch 20"', '"func epoch 3, rd epoch 4"'
    assert first == f"unequal epochs of the adapters (func_epoch): 2 in {a}; 3 in {b}"
    assert second == f"unequal epochs of the descriptors (rd_epoch): 20 in {a}; 4 in {b}"


def test_unpaired_seeds_are_named(tmp_path):
    paths = (
        of(tmp_path, "a", [1, 2, 3])
        + of(tmp_path, "b", [2, 3, 4, 5], buffer_size=9)
        + of(tmp_path, "c", [6, 7, 8], rd_dim=9)
    )
    assert warnings(compare(paths, "a")) == [
        "b: its difference to a is over seed 2, 3 only; unpaired: 4, 5 of b and 1 of a",
        "c: no seed in common with a, so no difference is given",
    ]
    assert warnings(compare(paths)) == []


def test_an_unknown_seed_is_unpaired(tmp_path):
    log = tmp_path / "x.log"
    log.write_text(PilotRun([[900], [800, 700]], [10, 10]).text())
    assert "x: no seed in common with a, so no difference is given" in warnings(
        compare([*of(tmp_path, "a", [1]), log], "a")
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sizes": [15, 5]}, "unequal tasks (number x classes): 2 x 10 in a; 1 x 15 + 1 x 5 in b"),
        ({"count": [100, 90]}, "unequal numbers of test images: 200 in a; 190 in b"),
        ({"environment": {"commit": "e" * 40}}, "unequal commits: cccccccccc in a; eeeeeeeeee in b"),
        (
            {"environment": {"backbone": {"sha256": "f" * 64}}},
            "unequal backbone weights of seed 1: dddddddddd in a; ffffffffff in b",
        ),
    ],
)
def test_unequal_conditions_are_said(tmp_path, options, expected):
    paths = of(tmp_path, "a", [1, 2, 3]) + of(tmp_path, "b", [1, 2, 3], buffer_size=9, **options)
    assert expected in warnings(compare(paths))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"versions": {"torch": "2.6"}}, "versions of torch: 2.5 in a; 2.6 in b"),
        ({"versions": {"torch": "2.5", "timm": "2"}}, "versions of timm: 1 in a; 2 in b"),
        ({"python": "3.12.1"}, "versions of Python: 3.11.7 in a; 3.12.1 in b"),
        ({"lock": "2" * 64}, "lock files (requirements.lock): 1111111111 in a; 2222222222 in b"),
        ({"device": "A100"}, "devices: cpu in a; A100 in b"),
        ({"processor": "Y"}, "processors: X in a; Y in b"),
        ({"threads": 2}, "numbers of threads: 1 in a; 2 in b"),
        ({"deterministic": True}, "use of deterministic algorithms: False in a; True in b"),
    ],
)
def test_conditions_of_a_process_are_said_between_runs_and_within_a_resumed_one(tmp_path, environment, expected):
    begun = {"versions": {"torch": "2.5", "timm": "1"}, "python": "3.11.7", "lock": "1" * 64, "device": "cpu"}
    begun |= {"processor": "X", "threads": 1, "deterministic": False}
    first = of(tmp_path, "a", [1, 2, 3], environment=begun)
    other = of(tmp_path, "b", [1, 2, 3], buffer_size=9, environment={**begun, **environment})
    assert warnings(compare([*first, *other])) == [f"unequal {expected}"]
    resumed = {**begun, "resumed": [{"started": "now"}, environment, {"threads": 1}]}
    (path,) = of(tmp_path, "c", [1], rd_dim=9, environment=resumed)
    what, values = expected.split(": ")
    was, now = (value.split(" in ")[0] for value in values.split("; "))
    assert f"{path}: resumed with other {what}: {now}, begun with {was}" in warnings(compare([*first, path]))


MACHINE = {"device": "cpu", "processor": "X", "threads": 1}


def times(folder: Path, second: dict[str, object], **options):
    """The comparison of two configurations of one seed each, which trained 2 + 3 and 4 + 6 seconds."""
    a = of(folder, "a", [1], training=[2.0, 3.0], environment=MACHINE)
    b = of(folder, "b", [1], buffer_size=9, environment={**MACHINE, **second}, **{"training": [4.0, 6.0], **options})
    return compare([*a, *b], "a")


def test_times_of_equal_machines_are_compared_as_a_ratio_without_a_test(tmp_path):
    found = times(tmp_path, {})
    assert not [text for text in warnings(found) if "time" in text]
    (b,) = found.others
    assert (b.ratio(found.baseline, TIME), math.isnan(b.minus(found.baseline, TIME).p)) == (2.0, True)
    assert [line.split()[-2:] for line in terminal(found).splitlines() if line.startswith("  training time")] == [
        ["5.0", "10.0"],
        ["2.00", "times"],
    ]


@pytest.mark.parametrize(
    ("second", "options", "reason"),
    [
        ({"device": "A100"}, {}, "the device was not the same everywhere: A100, cpu"),
        ({"processor": "Y"}, {}, "the processor was not the same everywhere: X, Y"),
        ({"threads": 2}, {}, "the number of threads was not the same everywhere: 1, 2"),
        ({"resumed": [{}, {"threads": 2}]}, {}, "the number of threads was not the same everywhere: 1, 2"),
        ({"processor": None}, {}, "the processor of a run is not on record"),
        ({}, {"training": None}, "it is not on record of "),
    ],
)
def test_times_that_cannot_be_compared_are_left_out_with_the_reason(tmp_path, second, options, reason):
    found = times(tmp_path, second, **options)
    (text,) = [text for text in warnings(found) if text.startswith("training time (s): ")]
    assert text.startswith(f"training time (s): left out, as {reason}")
    assert all(math.isnan(TIME.of(run)) for _, run in found.runs)
    assert [set(line.split()[3:]) for line in terminal(found).splitlines() if line.startswith("  training time")] == [
        {"-"},
        {"-"},
    ]


def test_runs_of_earlier_versions_whose_conditions_are_not_known_give_no_warning(tmp_path):
    known = {"threads": 1, "processor": "X", "resumed": [{"threads": None}]}
    paths = of(tmp_path, "a", [1, 2, 3], environment=known) + of(tmp_path, "b", [1, 2, 3], buffer_size=9)
    assert warnings(compare(paths)) == []


def test_unequal_precisions_and_class_orders_of_a_seed_are_said(tmp_path):
    paths = of(tmp_path, "a", [1, 2, 3]) + of(tmp_path, "b", [1, 2, 3], precision="bf16")
    for path in paths:
        names = ["x", "y", "z"] if path not in paths[-1:] else ["y", "x", "z"]
        results = json.loads((path / "results.json").read_text())
        (path / "results.json").write_text(json.dumps({**results, "class_names": names}))
    first, second = warnings(compare(paths))
    assert first == "unequal precisions: fp32 in a; bf16 in b"
    assert second.startswith("unequal class orders of seed 3: x, y, z, ... (")
    assert "; y, x, z, ... (" in second


def test_unequal_data_sets_are_said(tmp_path):
    log = tmp_path / "x.log"
    log.write_text(PilotRun([[900], [800, 700]], [10, 10], dataset="cifar224", seed=1).text())
    assert "unequal data sets: cub in a; cifar224 in x" in warnings(compare([*of(tmp_path, "a", [1]), log]))


def test_tasks_that_a_log_does_not_show_are_not_unequal(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("CNN top1 curve: [90.0, 75.0]\n")
    assert not [text for text in warnings(compare([*of(tmp_path, "a", [1]), log])) if "unequal" in text]


def test_random_weights_may_differ_from_seed_to_seed(tmp_path):
    paths = [
        write_run(
            tmp_path,
            label,
            seed,
            [[90 - epochs]],
            buffer_size=epochs,
            environment={"backbone": {"sha256": str(seed) * 64}},
        )
        for label, epochs in (("a", 5), ("b", 6))
        for seed in (1, 2, 3)
    ]
    assert warnings(compare(paths)) == []


def test_uncommitted_changes_are_said(tmp_path):
    paths = of(tmp_path, "a", [1, 2]) + of(tmp_path, "a", [3], environment={"dirty": True})
    assert warnings(compare(paths)) == [f"1 of 3 runs were made with uncommitted changes, such as {paths[2]}"]


def test_an_environment_that_knows_nothing_is_no_reason_to_warn(tmp_path):
    nothing = {"commit": None, "dirty": None, "backbone": None}
    assert warnings(compare(of(tmp_path, "a", [1, 2, 3], environment=nothing))) == []


def test_what_is_odd_about_a_run_and_what_was_left_out_is_among_the_warnings(tmp_path):
    paths = of(tmp_path, "a", [1, 2, 3])
    moved = paths[0].rename(paths[0].with_name(paths[0].name.replace("-s1", "-s9")))
    again = of(tmp_path / "x", "a", [2])
    texts = warnings(compare([moved, *paths[1:], *again]))
    assert texts[0].startswith(f"{again[0]}: left out, as {paths[1]} is seed 2 too")
    assert texts[1].startswith(f"{moved}: the directory's name says seed 9, its config.json 1")


def test_the_notes_on_a_log_name_file_and_seed(tmp_path):
    text = PilotRun([[900], [800, 700]], [10, 10], seed=5).text()
    (tmp_path / "x.log").write_text(text.replace("CNN top5 curve: [100.0]", "CNN top5 curve: [50.0]"))
    found = [line for line in warnings(compare([tmp_path / "x.log"])) if "top-5" in line]
    assert found[0].startswith(f"{tmp_path / 'x.log'}, seed 5: line ")


def test_equal_accuracies_of_different_configurations_are_said(tmp_path):
    alike = [[90], [80, 70]]
    paths = of(tmp_path, "a", [1, 2, 3], rows=alike) + of(tmp_path, "b", [2, 3, 4], rows=alike, buffer_size=9, rd_dim=7)
    assert warnings(compare(paths)) == [
        "a and b have the same accuracy on every task for every common seed, as if buffer_size, rd_dim had no effect; "
        "check their cadence and telemetry events"
    ]
    other = write_run(tmp_path, "b", 1, [[90], [80, 69]], buffer_size=9, rd_dim=7)
    assert warnings(compare([*paths, other])) == []
    assert not [text for text in warnings(compare([paths[0], paths[5]])) if "the same accuracy" in text]


def test_a_failed_cadence_audit_is_a_warning_that_names_run_and_phase(tmp_path):
    paths = of(tmp_path, "a", [1, 2, 3], nested_lora_update_interval_slow=5)
    with (paths[1] / "metrics.jsonl").open("a") as file:
        file.writelines(
            json.dumps(event) + "\n" for event in (cadence(0, 12, 5), cadence(1, 12, 5, observed=[5, 11, 12]))
        )
    assert warnings(compare(paths)) == [
        f"{paths[1]}: metrics.jsonl: the cadence audit failed in task 1 cycle 0: slow moved at 3 of 12 steps, "
        "the configuration says 2"
    ]
