from pathlib import Path

import pytest
from finished_runs import write_run

from benchmarks.accuracy import SWEEP, VIEWS, table
from tools.compare.comparison import compare
from tools.sweep.plan import read_plan
from utils.config.schema import schemas

NEEDS = {"views_bf16": ["views"]}  # keys that act together with others only


def test_a_row_holds_means_deviations_and_paired_differences(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, "exact", seed, [[40 + seed]], count=[50]) for seed in (1, 2, 3)]
    paths += [write_run(tmp_path, "bf16", seed, [[40 + 2 * seed]], count=[50], precision="bf16") for seed in (1, 2, 3)]
    paths += [write_run(tmp_path, "same", seed, [[40 + seed]], count=[50], rd_views=2) for seed in (1, 2, 3)]
    rows = [line.split(" | ") for line in table(compare(paths, "exact")).splitlines()]
    assert rows[0][0] == "| 3 seeds, 50 test images"
    assert rows[2][1:3] == ["84.00 ± 2.00", ""]
    # 84, 88, 92 against 82, 84, 86 are 2, 4, 6 points: 4 ± t(0.975, 2) * 2 / sqrt(3)
    assert rows[3][1:3] == ["88.00 ± 4.00", "+4.00 [-0.97, +8.97]"]
    assert rows[4][2] == "+0.00 in every seed"


def test_every_key_of_speed_that_can_change_a_result_has_a_member_of_its_own_and_all_but_compile_one_together() -> None:
    opt_in = {key for key, s in schemas().items() if s["group"] == "Speed" and s["changes_results"]}
    members = {run.member.name: dict(run.member.changes) for run in read_plan(SWEEP, "logs")}
    common = {"func_epoch": 3, "rd_epoch": 4}
    own = [changes.keys() - common.keys() for changes in members.values()]
    assert own[0] == set()
    assert sorted(map(sorted, own[1:-1])) == sorted([*NEEDS.get(key, []), key] for key in opt_in)
    assert own[-1] == opt_in - {"compile", "rd_views"}  # with views rd_views has no effect
    assert len({run.seed for run in read_plan(SWEEP, "logs")}) >= 3


@pytest.mark.parametrize("kind", VIEWS)
def test_kept_views_are_compared_with_fresh_ones_on_five_seeds_and_in_nothing_else(kind: str) -> None:
    plan = read_plan(VIEWS[kind], "logs")
    assert [dict(run.member.changes) for run in plan[:3]] == [{}, {"views": 5}, {"views": 2}]
    assert [run.seed for run in plan[::3]] == [1993, 1994, 1995, 1996, 1997]
    assert {run.member.config.ffn_adapter_type for run in plan} == {kind}
