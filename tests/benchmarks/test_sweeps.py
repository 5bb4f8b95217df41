"""The documents' sweep tables and the README's picture, from finished runs that stand in for the real ones."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from finished_runs import write_run

from benchmarks import sweeps
from tools.sweep import __main__ as sweep
from tools.sweep.plan import PlannedRun, read_plan

ROOT = Path(__file__).parents[2]
FOLDER = "logs/sweeps"


def stand_in(planned: PlannedRun, hits: int) -> None:
    """A finished run under the planned run's name and configuration."""
    path = write_run(Path("made"), f"{hits}", planned.seed, [[90], [80, hits]])
    config = {**planned.member.config.model_dump(mode="json"), "seed": [planned.seed]}
    (path / "config.json").write_text(json.dumps(config))
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    path.rename(Path(FOLDER) / planned.name)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """A project with its documents and all runs of both sweeps but one."""
    shutil.copytree(ROOT / "exps", tmp_path / "exps")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "sweeps.md", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    plan = [planned for path in (sweeps.INTERVAL, sweeps.MATCHED) for planned in read_plan(path, FOLDER)]
    missing = list({planned.name: planned for planned in plan}.values())
    for number, planned in enumerate(missing[:-1]):
        stand_in(planned, 40 + number)
    return missing


def test_what_is_missing_is_run_and_tables_and_picture_are_those_of_the_runs(runs, tmp_path, monkeypatch, capsys):
    asked: list[str] = []

    class Execution:
        def __init__(self, missing: Sequence[PlannedRun], *_: object) -> None:
            self.missing, self.failed = missing, {}

        def to_end(self) -> None:
            for planned in self.missing:
                asked.append(planned.name)
                stand_in(planned, 70)

    monkeypatch.setattr(sweep, "Execution", Execution)
    monkeypatch.setattr(sweep, "write_page", lambda comparison, target: None)
    assert sweeps.main([]) == 0
    assert asked == [runs[-1].name]
    text = (tmp_path / "docs" / "sweeps.md").read_text()
    baseline = [number for number, planned in enumerate(runs[:15]) if planned.member.name == "update_interval_slow=1"]
    mean = sum((80 + 40 + number) / 2 for number in baseline) / 5  # last accuracy, per cent
    assert f"| last accuracy | {mean:.2f} ± " in text
    assert "Difference to adaptmlp, bottleneck 16 on equal seeds" in text
    assert text.count("**Legend**") == 1
    assert "time (s)" not in text
    assert (tmp_path / sweeps.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert f"| last accuracy | {mean:.2f} ± " in capsys.readouterr().out


def test_a_sweep_that_fails_leaves_the_documents_as_they_were(runs, tmp_path, monkeypatch):
    before = (tmp_path / "docs" / "sweeps.md").read_bytes()
    monkeypatch.setattr(sweep, "main", lambda argv: 1)
    assert sweeps.main([]) == 1
    assert (tmp_path / "docs" / "sweeps.md").read_bytes() == before
    assert not (tmp_path / sweeps.PICTURE).exists()


@pytest.mark.parametrize("readme", ["README.md", "README.ja.md"])
def test_the_readmes_show_the_picture_and_lead_to_its_tables(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert f"]({sweeps.PICTURE})" in text
    assert f"({sweeps.DOCUMENT})" in text
    assert (ROOT / sweeps.PICTURE).exists()
