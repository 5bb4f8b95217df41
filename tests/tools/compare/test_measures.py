import json
import math
from dataclasses import replace

import numpy as np
import pytest
from finished_runs import PilotRun, write_run
from hypothesis import given
from hypothesis import strategies as st

from tools.compare.measures import MEASURES
from tools.finished.reader import Run, read_run
from tools.pilot.runs import read_log
from utils.metrics import AccuracyMatrix

BY_KEY = {measure.key: measure for measure in MEASURES}
RARE = {measure.key for measure in MEASURES if measure.rare}


def values(run: Run) -> dict[str, float]:
    return {key: measure.of(run) for key, measure in BY_KEY.items()}


def test_every_measure_of_a_run_by_hand(tmp_path):
    parameters = {"slow": 20, "fast": 22, "router": 3, "descriptor": 5, "head": 10, "backbone": 900, "total": 960}
    options = {"count": [100, 100, 50], "parameters": parameters, "training": [2.5, 10.0]}
    options |= {"off": [[80], [80, 60], [50, 50, 50]], "changed": [10, 20, 40]}
    run = read_run(write_run(tmp_path, "x", 1, [[90], [80, 70], [60, 65, 50]], **options))
    assert {key for key, value in values(run).items() if math.isnan(value)} == RARE
    sizes, count = run.matrix.task_sizes, run.matrix.count
    read = {
        "ncm": AccuracyMatrix(sizes, count, [[70], [70, 50], [60, 40, 25]]),
        "ranpac.adapters_off": AccuracyMatrix(sizes, count, [[90], [80, 90], [80, 80, 40]]),
    }
    found = values(replace(run, readouts=read))
    assert found["last_acc_ncm"] == pytest.approx(125 / 250)
    assert found["avg_inc_acc_ncm"] == pytest.approx((0.7 + 0.6 + 0.5) / 3)
    assert found["last_acc_ranpac_off"] == pytest.approx(200 / 250)
    assert found["avg_inc_acc_ranpac_off"] == pytest.approx((0.9 + 0.85 + 0.8) / 3)
    assert sum(map(math.isnan, found.values())) == len(RARE) - 4
    assert {key: value for key, value in values(run).items() if not math.isnan(value)} == {
        "last_acc": pytest.approx(175 / 250),
        "avg_inc_acc": pytest.approx((0.9 + 0.75 + 0.7) / 3),
        "last_acc_off": pytest.approx(150 / 250),
        "avg_inc_acc_off": pytest.approx((0.8 + 0.7 + 0.6) / 3),
        "changed": pytest.approx(40 / 250),
        "forgetting": pytest.approx((0.3 + 0.05) / 2),
        "bwt": pytest.approx((-0.3 - 0.05) / 2),
        "learning_accuracy": pytest.approx((0.9 + 0.7 + 1.0) / 3),
        "plasticity": pytest.approx((0.7 + 1.0) / 2),
        "stability": pytest.approx(1 - 0.175),
        "parameters": 60,
        "adapter_parameters": 42,
        "adapters": 4,
        "seconds": 12.5,
    }


def test_after_one_task_there_is_neither_plasticity_nor_stability(tmp_path):
    found = values(read_run(write_run(tmp_path, "x", 1, [[90]])))
    assert (found["last_acc"], found["learning_accuracy"]) == (0.9, 0.9)
    assert all(math.isnan(found[key]) for key in ("plasticity", "stability", "forgetting", "bwt"))


def test_what_a_run_does_not_record_with_adapters_off_is_not_known(tmp_path):
    keys = ("last_acc_off", "avg_inc_acc_off", "changed")
    found = values(read_run(write_run(tmp_path, "x", 1, [[90], [80, 70]])))
    assert all(math.isnan(found[key]) for key in keys)
    run = write_run(tmp_path, "y", 1, [[90], [80, 70]], off=[[80], [80, 60]], changed=[10, 20])
    results = json.loads((run / "results.json").read_text())
    del results["tasks"][0]["adapters_off"]  # of a version before, which began the run
    (run / "results.json").write_text(json.dumps(results))
    found = values(read_run(run))
    assert (found["last_acc_off"], found["changed"]) == (0.7, 0.1)
    assert math.isnan(found["avg_inc_acc_off"])


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({"model_name": "linear"}, False),
        ({"model_name": "simplecil"}, False),
        ({"model_name": "ranpac", "first_session_adaptation": True}, True),
        ({"model_name": "finetune"}, True),
        ({"model_name": "joint"}, True),
    ],
)
def test_adapters_that_the_learner_does_not_train_are_not_counted(tmp_path, keys, trained):
    parameters = {"adapter": 30, "router": 3, "head": 10, "backbone": 900, "total": 943}
    run = read_run(write_run(tmp_path, "x", 1, [[90]], parameters=parameters, off=[[90]], changed=[0], **keys))
    found = values(run)
    assert found["parameters"] == (43 if trained else 13)
    of_adapters = ("adapter_parameters", "adapters", "changed", "last_acc_off", "avg_inc_acc_off")
    assert [math.isnan(found[key]) for key in of_adapters] == [not trained] * 5


def test_a_task_without_test_images_takes_no_part_in_plasticity(tmp_path):
    run = read_run(write_run(tmp_path, "x", 1, [[90], [80, 0], [60, 0, 75]], count=[100, 0, 100]))
    assert BY_KEY["plasticity"].of(run) == 0.75


def test_a_log_says_nothing_of_parameters(tmp_path):
    (tmp_path / "x.log").write_text(PilotRun([[900], [800, 700]], [10, 10]).text())
    found = values(read_log(tmp_path / "x.log")[0])
    unknown = ("parameters", "adapter_parameters", "adapters", "last_acc_off", "avg_inc_acc_off", "changed")
    assert all(math.isnan(found[key]) for key in unknown)
    assert (found["last_acc"], found["plasticity"], found["stability"]) == pytest.approx((0.75, 0.7, 0.9))


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.integers(0, 50), min_size=n * n, max_size=n * n)))
def test_plasticity_and_stability_are_what_their_formulas_say(flat):
    size = math.isqrt(len(flat))
    table = np.array(flat).reshape(size, size) / 50
    rows = [[int(50 * table[t, i] + 0.5) for i in range(t + 1)] for t in range(size)]
    matrix = AccuracyMatrix([1] * size, [50] * size, list(rows))
    run = Run(
        path=None, label="", seed=1, config={}, identity={}, matrix=matrix, curve=tuple(matrix.average_accuracies)
    )
    if size == 1:
        assert math.isnan(BY_KEY["plasticity"].of(run))
        return
    new = [table[i, i] for i in range(1, size)]
    lost = [max(table[t, i] for t in range(i, size - 1)) - table[size - 1, i] for i in range(size - 1)]
    assert BY_KEY["plasticity"].of(run) == pytest.approx(sum(new) / len(new))
    assert BY_KEY["stability"].of(run) == pytest.approx(1 - sum(lost) / len(lost))
