"""Reports and comparisons of runs that earlier versions wrote, and of runs with a third time scale."""

import json
import math
import re
from itertools import combinations
from pathlib import Path

import pytest
from finished_runs import write_run
from recorded_events import record

from tools.compare.comparison import compare
from tools.compare.measures import MEASURES
from tools.compare.tables import terminal
from tools.report.__main__ import main
from tools.report.data import cadences, consolidations, telemetry
from tools.report.figures import branch_title

RECORDED = Path(__file__).parents[2] / "recorded"
NESTED, PLAIN = RECORDED / "nested-c1080012-s4", RECORDED / "plain-698f0ee7-s4"
BY_KEY = {measure.key: measure for measure in MEASURES}
THREE = ("slow", "mid", "fast")


def written(folder: Path, *runs: Path) -> str:
    assert main([*map(str, runs), "-o", str(folder / "report.html")]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def section(page: str, key: str) -> str:
    return page.split(f'<section id="{key}">')[1].split("</section>")[0]


def titles(page: str) -> list[str]:
    return re.findall(r"<figcaption><b>(.*?)</b>", page)


def lines(run: Path, kind: str) -> list[dict]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == kind]


# ---- of an earlier version


def test_runs_of_an_earlier_version_are_compared():
    comparison = compare([NESTED, PLAIN], str(PLAIN))
    for run, group in zip((NESTED, PLAIN), comparison.groups, strict=True):
        results = json.loads((run / "results.json").read_text())
        counts = results["accuracy"]
        found = {key: measure.of(group.runs[0]) for key, measure in BY_KEY.items()}
        assert found["last_acc"] == pytest.approx(sum(counts["correct"][-1]) / sum(counts["count"]))
        last = results["tasks"][-1]["parameters"]
        assert found["adapter_parameters"] == sum(last.get(role, 0) for role in ("adapter", "slow", "fast")) > 0
        assert found["parameters"] == last["total"] - last["backbone"]
    assert "Difference to plain on equal seeds" in terminal(comparison)


def test_the_page_of_runs_of_an_earlier_version_shows_what_they_recorded(tmp_path):
    page = written(tmp_path, NESTED, PLAIN)
    branches = json.loads((NESTED / "results.json").read_text())["branches"].values()
    assert all(branch["correct"] == [[4], [4, 0], [4, 0, 0]] for branch in branches)
    equal = "nested: slow + fast = slow only = fast only = neither branch"
    assert titles(section(page, "matrices"))[2:] == ["nested: accuracy by branch", equal]
    assert len(titles(section(page, "time-scales"))) == 7
    phases = lines(NESTED, "cadence")
    steps, moved = sum(event["steps"] for event in phases), sum(len(event["observed"]) for event in phases)
    row = f"<td>slow</td><td>{len(phases)}</td><td>{steps}</td><td>{moved}</td><td>{moved}</td><td>yes</td>"
    assert row in section(page, "cadence")
    before, after = (
        f"{lines(NESTED, 'consolidation')[0][f'accuracy_{when}']['top1']:.2f}" for when in ("before", "after")
    )
    assert f"<td>{before} → {after}</td>" in section(page, "consolidation")
    assert titles(section(page, "expansion"))[2:] == ["nested = plain: adapters per layer"]
    assert "nested: confusion matrix" in section(page, "classes")
    assert "is of a version that did not keep them" in section(page, "classes")


def test_one_cosine_is_that_of_the_two_branches():
    (run,) = compare([NESTED]).groups[0].runs
    found = [reading.adapters for reading in telemetry(run)]
    for reading, event in zip(found, lines(NESTED, "telemetry"), strict=True):
        for entry in event["layers"]:
            values = reading[entry["layer"], entry["adapter"]]
            cosine = math.nan if entry["output_cosine"] is None else entry["output_cosine"]
            assert values["output_cosine", "slow+fast"] == pytest.approx(cosine, nan_ok=True)
            of_slow = [norm**2 for name, norm in entry["norms"].items() if name.startswith("slow.")]
            assert values["norms", "slow"] == pytest.approx(sum(of_slow) ** 0.5)


# ---- with a third time scale


@pytest.fixture
def three(tmp_path, monkeypatch) -> Path:
    """A run whose adapters have three branches; its events are of scales that are not declared here."""
    monkeypatch.setattr("tools.finished.reader.CHECKS", ())
    run = write_run(tmp_path, "three", 1, [[90], [80, 70], [60, 65, 75]], ffn_adapter_type="nested_lora")
    record(run, tasks=3, scales=THREE)
    return run


def test_a_third_time_scale_is_in_every_part_of_the_page(three, tmp_path):
    page = written(tmp_path, three)
    subsets = ["slow + mid + fast", "slow + mid = slow + fast = mid + fast", "slow only = mid only = fast only"]
    expected = [f"three: {title}" for title in ("accuracy by branch", *subsets, "neither branch")]
    assert titles(section(page, "matrices"))[1:] == expected
    scales = section(page, "time-scales")
    by_layer = [f"three: norm of {branch} by layer" for branch in THREE]
    assert [title for title in titles(scales) if "by layer" in title] == by_layer
    for of in ("output", "update"):
        for a, b in combinations(THREE, 2):
            assert f"{of}: {a} and {b} goes from" in scales
    assert re.findall(r"<td>(slow|mid|fast)</td>", section(page, "cadence")) == ["slow", "mid"]
    header = re.findall(r'<th scope="col">(.*?)</th>', section(page, "consolidation"))
    assert {f"norm of {branch}" for branch in THREE} | {"rank of slow", "rank of mid"} <= set(header)
    assert "rank of fast" not in header


def test_readings_and_receipts_of_three_branches(three):
    (run,) = compare([three]).groups[0].runs
    (first, *_) = telemetry(run)
    entry = lines(three, "telemetry")[0]["layers"][1]
    values = first.adapters[entry["layer"], entry["adapter"]]
    assert {name for key, name in values if key == "share"} == set(THREE)
    assert values["update_norms", "mid"] == entry["update_norms"]["mid"]
    assert list(cadences(run)) == ["slow", "mid"]
    assert consolidations(run)[0].changes["mid_rank"] == (3.2, 3.4)


def test_parameters_of_every_declared_scale_are_those_of_adapters(three, monkeypatch):
    results = json.loads((three / "results.json").read_text())
    results["tasks"][-1]["parameters"] = {"slow": 1, "mid": 20, "fast": 300, "head": 4000, "backbone": 9, "total": 4330}
    (three / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr("tools.compare.measures.NAMES", THREE)
    (run,) = compare([three]).groups[0].runs
    assert BY_KEY["adapter_parameters"].of(run) == 321
    assert BY_KEY["parameters"].of(run) == 4321


def test_titles_of_branches_come_from_their_names():
    names = {"a+b": "a + b", "a": "a only", "neither": "neither branch"}
    assert {name: branch_title(name) for name in names} == names
