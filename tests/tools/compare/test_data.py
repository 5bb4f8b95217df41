import csv
import io
import json
import math

import pytest
from finished_runs import PilotRun, write_run
from scipy import stats

from tools.compare.comparison import compare
from tools.compare.data import as_csv, as_json
from tools.compare.measures import MEASURES

OURS, BASE = [0.76, 0.77, 0.79], [0.75, 0.75, 0.75]


@pytest.fixture
def comparison(tmp_path):
    paths = [
        write_run(tmp_path, label, seed, [[90], [80, round(200 * last) - 80]], **keys)
        for label, lasts, keys in (("ours", OURS, {"backbone_checkpoint": 'a,"b"\n'}), ("base", BASE, {}))
        for seed, last in enumerate(lasts, start=1)
    ]
    log = tmp_path / "x.log"
    log.write_text(PilotRun([[900], [800, 700]], [10, 10]).text())
    return compare([*paths, log], "base")


def test_csv_has_a_row_for_each_configuration_with_every_measure(comparison):
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison)), strict=True))
    assert [(row["configuration"], row["seeds"]) for row in rows] == [
        ("ours", "1 2 3"),
        ("base", "1 2 3"),
        ("x", "unknown"),
    ]
    ours, base, log = rows
    assert ours["config.backbone_checkpoint"] == 'a,"b"\n'
    assert (base["config.backbone_checkpoint"], log["config.backbone_checkpoint"]) == ("null", "")
    assert float(ours["last_acc.mean"]) == pytest.approx(sum(OURS) / 3)
    assert float(ours["last_acc.std"]) == pytest.approx(stats.tstd(OURS))
    test = stats.ttest_rel(OURS, BASE)
    assert float(ours["last_acc.difference.p"]) == pytest.approx(test.pvalue)
    assert float(ours["last_acc.difference.low"]) == pytest.approx(test.confidence_interval().low)
    assert ours["last_acc.difference.count"] == "3"
    assert ours["last_acc.difference.verdict"] == "cannot tell"
    assert float(ours["last_acc.difference.p_corrected"]) > float(ours["last_acc.difference.p"])
    assert float(ours["last_acc.difference.wanted"]) == 0.01
    assert int(ours["last_acc.difference.seeds_for_wanted"]) > 3
    assert ours["seconds.difference.verdict"] == ours["seconds.difference.p_corrected"] == ""
    assert base["last_acc.difference.mean"] == log["last_acc.difference.mean"] == log["parameters.mean"] == ""
    for measure in MEASURES:
        assert {f"{measure.key}.{part}" for part in ("mean", "std", "difference.high")} <= ours.keys()


def test_csv_without_a_baseline_has_no_columns_of_differences(tmp_path):
    text = as_csv(compare([write_run(tmp_path, "a", 1, [[90]])]))
    assert "difference" not in text
    assert len(list(csv.reader(io.StringIO(text)))) == 2


def test_json_has_everything(comparison):
    found = json.loads(as_json(comparison), parse_constant=pytest.fail)  # neither NaN nor Infinity
    assert found["baseline"] == "base"
    ours, base, log = found["groups"]
    assert [run["seed"] for run in ours["runs"]] == [1, 2, 3]
    assert [run["measures"]["last_acc"] for run in ours["runs"]] == pytest.approx(OURS)
    assert ours["runs"][0]["accuracy_matrix"] == [[0.9, None], [0.8, 0.72]]
    assert ours["measures"]["last_acc"] == {
        "mean": pytest.approx(sum(OURS) / 3),
        "std": pytest.approx(stats.tstd(OURS)),
        "count": 3,
    }
    assert ours["difference"]["last_acc"]["p"] == pytest.approx(stats.ttest_rel(OURS, BASE).pvalue)
    assert "difference" not in base
    unknown = ("mean", "low", "high", "p", "p_corrected", "verdict", "detectable", "wanted", "seeds_for_wanted")
    assert log["difference"]["last_acc"] == {**dict.fromkeys(unknown), "count": 0}
    assert found["differing"] == {"backbone_checkpoint": {"ours": 'a,"b"\n', "base": None}}
    assert "log" in found["one_sided"]
    concluded = found["conclusions"]
    assert concluded["correction"] == "Holm's method (Holm 1979)"
    assert (concluded["comparisons"], concluded["power"]) == (3, 0.8)
    assert concluded["level"] == pytest.approx(0.05 / 3)
    assert concluded["sentences"][0].startswith("ours: cannot tell whether it really differs; ")
    assert (ours["one_class_order"], log["one_class_order"]) == (False, None)
    assert any("no seed in common" in text for text in found["warnings"])
    assert found["legend"].keys() == {measure.key for measure in MEASURES}
    assert not any(math.isnan(value) for value in base["measures"]["last_acc"].values())
