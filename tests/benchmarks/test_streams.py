"""docs/streams.md, from finished runs that stand in for the real ones."""

import json
import shutil
from pathlib import Path

import pytest
from finished_runs import write_run

from benchmarks import streams
from tools.sweep.plan import read_plan

ROOT = Path(__file__).parents[2]
FOLDER = "logs/sweeps"


def test_both_protocols_are_of_three_seeds_and_their_tables_are_in_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "exps", tmp_path / "exps")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "streams.md", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    Path(FOLDER).mkdir(parents=True)
    plan = [planned for path in (streams.TRANSIENT, streams.ORDER) for planned in read_plan(path, FOLDER)]
    assert len(plan) == 3 * (2 + 5)
    for planned in plan:
        config = {**planned.member.config.model_dump(mode="json"), "seed": [planned.seed]}
        rows = [[90 - task + planned.seed % 3] * (task + 1) for task in range(5 + (not config["leave_out_transient"]))]
        keys = {key: config[key] for key in ("transient", "leave_out_transient")}
        made = write_run(Path("made"), planned.member.name, planned.seed, rows, **keys)
        (made / "config.json").write_text(json.dumps(config))
        made.rename(Path(FOLDER) / planned.name)
    assert streams.main([]) == 0
    text = (tmp_path / "docs" / "streams.md").read_text()
    assert "**Core accuracy with and without transient task 2; with the task and without the task; per cent**" in text
    assert "| task 1 | 90.00 ± 1.00 | 90.00 ± 1.00 | +0.00 | - |" in text
    assert "| task 2, transient | 89.00 ± 1.00 | 90.00 ± 1.00 | -1.00 | - |" in text
    assert "**quickstart over 5 class orders, each the mean of its seeds; per cent**" in text
    assert "training time" not in text
