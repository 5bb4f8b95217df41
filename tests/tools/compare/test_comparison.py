import json
from pathlib import Path

import pytest
from finished_runs import PilotRun, random_hits, write_run

from tools.compare.comparison import compare, value_text
from tools.compare.fairness import warnings
from tools.compare.measures import MEASURES
from tools.compare.names import ABSENT
from utils.errors import UserError

LAST = MEASURES[0]
A = {1: [[90], [80, 70]], 2: [[92], [84, 70]], 3: [[94], [80, 78]]}  # last: 75, 77, 79 per cent
B = {1: [[90], [78, 70]], 2: [[92], [80, 70]], 3: [[94], [80, 72]]}  # last: 74, 75, 76


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Three seeds of two configurations."""
    ours = [write_run(tmp_path, "ours", seed, rows, exp_threshold=3.0) for seed, rows in A.items()]
    return ours + [write_run(tmp_path, "base", seed, rows) for seed, rows in B.items()]


def test_seeds_are_grouped_and_what_changes_nothing_does_not_part_them(runs, tmp_path):
    fourth = write_run(tmp_path / "x", "moved", 4, A[1], exp_threshold=3.0, output_dir="elsewhere", prefix="mine")
    found = compare([fourth, *reversed(runs)])
    assert [(group.name, list(group.by_seed)) for group in found.groups] == [
        ("moved", [1, 2, 3, 4]),
        ("base", [1, 2, 3]),
    ]
    assert found.differing == {"exp_threshold": [3.0, 2.0]}
    assert (found.baseline, found.others, found.left_out, found.one_sided) == (None, [], [], [])


def test_mean_deviation_and_paired_difference(runs):
    found = compare(runs, str(runs[4]))
    ours, base = found.groups
    assert found.baseline is base
    assert found.others == [ours]
    assert (ours.spread(LAST).mean, ours.spread(LAST).std) == pytest.approx((0.77, 0.02))
    gap = ours.minus(base, LAST)  # .01, .02, .03 as in the tests of tools.compare.paired
    assert (gap.mean, gap.low, gap.count) == (pytest.approx(0.02), pytest.approx(0.02 - 4.302653 * 0.01 / 3**0.5), 3)


def test_only_seeds_that_both_have_are_paired(runs):
    found = compare([runs[0], runs[2], runs[3], runs[4]], str(runs[3]))
    gap = found.groups[0].minus(found.groups[1], LAST)
    assert (gap.mean, gap.count) == (pytest.approx(0.01), 1)


def test_a_baseline_may_be_a_run_not_named_before_or_a_configuration(runs):
    assert compare(runs[:3], str(runs[3])).others[0].name == "ours"
    assert compare(runs, "base").baseline.name == "base"
    with pytest.raises(UserError, match="neither a run nor a configuration; did you mean base"):
        compare(runs, "bse")
    with pytest.raises(UserError, match=r"neither a run nor a configuration; configurations: base, ours$"):
        compare([runs[3], *runs[:3]], "zzz")


def test_the_same_run_named_twice_is_one(runs):
    found = compare([runs[0], runs[0], runs[0] / ".." / runs[0].name])
    assert len(found.groups[0].runs) == 1
    assert found.left_out == []


@pytest.fixture
def foreign(tmp_path) -> list[Path]:
    """What a sweep leaves beside runs: a folder of runs, and one of what they printed."""
    write_run(tmp_path / "sweeps", "inner", 1, A[1])
    (tmp_path / "sweep.logs").mkdir()
    (tmp_path / "sweep.logs" / "inner-attempt1.log").write_text("")
    return [tmp_path / "sweep.logs", tmp_path / "sweeps"]


def test_folders_that_are_no_runs_are_left_out_and_said(runs, foreign):
    found = compare([foreign[0], *runs, foreign[1], foreign[1]])
    assert [len(group.runs) for group in found.groups] == [3, 3]
    assert found.left_out == [
        f"{foreign[0]}: left out, it is not a run directory",
        f"{foreign[1]}: left out, it is not a run directory; it contains runs, which can be given as {foreign[1]}/*-s*",
    ]


@pytest.mark.parametrize("name", ["sweep.md", "sweep.html"])
def test_a_page_beside_the_runs_is_left_out_and_said(runs, tmp_path, name):
    (tmp_path / name).write_text("# a table")
    found = compare([tmp_path / name, *runs])
    assert [len(group.runs) for group in found.groups] == [3, 3]
    assert found.left_out == [f"{tmp_path / name}: left out, it is a page about runs, not a run"]


def test_with_no_run_left_or_such_a_folder_for_a_baseline_there_is_nothing_to_compare(runs, foreign):
    with pytest.raises(UserError, match=r"(?s)no run to compare.*sweep\.logs: left out.*sweeps: left out"):
        compare(foreign)
    with pytest.raises(UserError, match=r"sweeps/config\.json: missing; .*it contains runs"):
        compare(runs, str(foreign[1]))


@pytest.mark.parametrize("kept", ["environment.json", "metrics.jsonl", "results.json"])
def test_a_run_whose_configuration_is_gone_is_not_left_out_but_refused(runs, kept):
    for name in {"config.json", "environment.json", "metrics.jsonl", "results.json"} - {kept}:
        (runs[0] / name).unlink()
    with pytest.raises(UserError, match=r"config\.json: missing"):
        compare(runs)


def test_another_run_of_the_same_seed_is_left_out_and_said(runs, tmp_path):
    twin = write_run(tmp_path / "x", "twin", 1, A[1], exp_threshold=3.0)
    other = write_run(tmp_path / "y", "other", 2, A[1], exp_threshold=3.0)
    found = compare([*runs, twin, other], str(twin))
    assert len(found.groups[0].runs) == 3
    assert [text.split("; ")[1] for text in found.left_out] == ["it has the same accuracies", "it has other accuracies"]
    assert found.baseline is found.groups[0]


def test_configurations_of_one_label_are_told_apart_by_what_differs(tmp_path):
    paths = [write_run(tmp_path, "same", 1, A[1], func_epoch=n) for n in (1, 2)]
    assert [group.name for group in compare(paths).groups] == ["func epoch 1", "func epoch 2"]
    assert compare(paths, "func epoch 2").baseline.name == "func epoch 2"


def unfinished(folder: Path, label: str) -> Path:
    run = write_run(folder, label, 1, A[1])
    (run / "results.json").unlink()
    return run


def test_an_unfinished_run_is_left_out_and_said_if_others_remain(runs, tmp_path):
    begun = unfinished(tmp_path / "my runs", "begun")
    found = compare([begun, *runs])
    assert [len(group.runs) for group in found.groups] == [3, 3]
    how = f"python main.py --resume '{begun}'"
    assert found.left_out == [f"{begun}: left out, the run is unfinished; to finish it: {how}"]
    with pytest.raises(UserError, match=r"(?s)no run to compare.*left out, the run is unfinished"):
        compare([begun])
    with pytest.raises(UserError, match=r"results\.json: missing; the run is unfinished"):
        compare(runs, str(begun))


@pytest.fixture
def log(tmp_path) -> Path:
    path = tmp_path / "reproduce_1_mos.log"
    keys = {"prefix": "reproduce", "seed": 1, "dataset": "cub", "batch_size": 48, "tuned_epoch": 20}
    path.write_text(PilotRun(random_hits(1, [10, 10]), [10, 10], **keys).text())
    return path


def test_runs_of_unknown_seeds_are_all_kept(tmp_path):
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    for log in logs:
        log.write_text(PilotRun(random_hits(1, [10, 10]), [10, 10], lr=0.1).text())
    (group,) = compare(logs).groups
    assert group.seeds == ["unknown", "unknown"]


def test_a_log_and_a_run_differ_where_both_speak(runs, log):
    found = compare([runs[0], log])
    assert [group.name for group in found.groups] == ["ours", "reproduce_mos"]
    assert found.differing == {"batch_size": [32, 48]}
    assert "tuned_epoch" in found.one_sided
    assert "exp_threshold" in found.one_sided


def test_with_a_log_runs_of_ours_still_differ_among_themselves(runs, log):
    assert compare([runs[0], runs[3], log]).differing == {
        "batch_size": [32, 32, 48],
        "exp_threshold": [3.0, 2.0, ABSENT],
    }


def test_a_key_that_one_run_does_not_have_differs(runs, tmp_path):
    config = runs[3] / "config.json"
    config.write_text(config.read_text().replace('"rd_dim": 128', '"rd_dim": 128, "rd_dim_before": 128'))
    assert compare([runs[0], runs[3]]).differing["rd_dim_before"] == [ABSENT, 128]


def test_values_in_cells():
    assert [value_text(value, "?") for value in (ABSENT, "a", True, None, [1], 0.5)] == [
        "?",
        "a",
        "true",
        "null",
        "[1]",
        "0.5",
    ]


def test_a_path_that_is_not_there_offers_the_nearest(runs):
    with pytest.raises(UserError, match=f"did you mean {runs[0].name}"):
        compare([runs[0].with_name("o" + runs[0].name)])


def with_images(run: Path, sha: str) -> Path:
    halves = {half: {"images": 9, "sha256": half + sha} for half in ("train", "test")}
    (run / "data.json").write_text(json.dumps({**halves, "class_names": [], "accepted_changes": []}))
    return run


def test_runs_with_equal_images_are_one_configuration_wherever_these_lay(tmp_path):
    roots = {1: "/old/pets", 2: "/new/animals", 3: "/far/pets"}
    runs = [
        with_images(write_run(tmp_path, "x", seed, A[seed], dataset="imagefolder", data_root=root), "abc")
        for seed, root in roots.items()
    ]
    (group,) = compare(runs).groups
    assert list(group.by_seed) == [1, 2, 3]


def test_runs_with_other_images_of_the_same_name_are_two_configurations(tmp_path):
    one, other = (
        with_images(write_run(tmp_path / sha, "x", 1, A[1], dataset="imagefolder", data_root=f"/{sha}/pets"), sha)
        for sha in ("abc", "xyz")
    )
    found = compare([one, other])
    assert found.differing == {"data_root": ["pets", "pets (trainxyz)"]}
    assert any(text.startswith("unequal training images: trainabc in") for text in warnings(found))


def test_equal_weights_have_one_name(tmp_path):
    runs = [
        write_run(tmp_path, "x", seed, A[seed], backbone_checkpoint=f"/w/{seed}.pth") for seed in (1, 2)
    ]  # fmt: skip
    (group,) = compare(runs).groups
    assert group.identity["backbone_checkpoint"] == "1.pth"
