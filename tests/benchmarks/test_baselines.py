"""docs/baselines.md, from finished runs that stand in for the real ones; and the files that it names."""

import json
import re
import shutil
from pathlib import Path

import pytest
from finished_runs import write_run

from benchmarks import baselines
from tools.generated import read_part, read_tables
from tools.sweep.plan import read_plan
from utils.choices import LEARNERS

ROOT = Path(__file__).parents[2]
FOLDER = "logs/sweeps"


def test_every_learner_is_in_the_document_with_a_file_for_each_benchmark() -> None:
    text = (ROOT / "docs" / "baselines.md").read_text()
    named = set(re.findall(r"`(\w+\.json)`", text))
    assert all((ROOT / "exps" / name).is_file() for name in named)
    shipped = {path.name for path in (ROOT / "exps").glob("*.json") if path.name.startswith(("baseline_", "control_"))}
    assert shipped <= named
    assert {f"`{name}`" for name in LEARNERS.names()} <= set(re.findall(r"`\w+`", text))


def test_both_sweeps_are_of_three_seeds_and_their_tables_are_in_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "exps", tmp_path / "exps")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "baselines.md", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    Path(FOLDER).mkdir(parents=True)
    plan = [planned for path in baselines.SWEEPS.values() for planned in read_plan(path, FOLDER)]
    assert len(plan) == 3 * (8 + 8 + 3)
    for number, planned in enumerate(plan):
        config = {**planned.member.config.model_dump(mode="json"), "seed": [planned.seed]}
        rows = [[80 + planned.seed % 3 + number % 8 - task] * (task + 1) for task in range(3)]
        made = write_run(Path("made"), str(number), planned.seed, rows, adapters=[1])
        (made / "config.json").write_text(json.dumps(config))
        if not (Path(FOLDER) / planned.name).exists():
            made.rename(Path(FOLDER) / planned.name)
    asked: list[list[str]] = []
    monkeypatch.setattr("tools.sweep.__main__.main", lambda arguments: asked.append(arguments) or 0)
    assert baselines.main([]) == 0
    assert asked == [[str(path), "--output_dir", FOLDER] for path in baselines.SWEEPS.values()]
    document = tmp_path / "docs" / "baselines.md"
    last = [
        table
        for table in read_tables(read_part(document, "baselines"))
        if table[0][:2] == ["configuration", "last accuracy"]
    ]
    means, differences = ({row[0]: row[1] for row in table[1:]} for table in last)
    assert means["sema, adaptmlp"] == "79.00 ± 1.00"  # 80, 81, 82 less 2 after the last task
    assert means["linear"] == "81.00 ± 1.00"
    assert differences["linear"].startswith("+2.00")
    assert "sema, adaptmlp" not in differences
    assert "training time" not in document.read_text()
