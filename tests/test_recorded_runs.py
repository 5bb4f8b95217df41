"""Finished runs of an earlier version can be read, verified, compared, reported and evaluated. None is written to."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from finished_runs import NESTED, PLAIN, RECORDED

from tools.compare.comparison import compare
from tools.compare.fairness import warnings
from tools.compare.tables import terminal
from tools.finished.checks import CHECKS
from tools.finished.reader import read_run
from tools.report.__main__ import main as report
from tools.verify import READABLE, main, verify
from utils.config.identity import counted_digest

ROOT = Path(__file__).parents[1]
RUNS = {"nested": NESTED, "plain": PLAIN}


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    before = state_of(RECORDED)
    yield
    assert state_of(RECORDED) == before


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_passes_every_check(name: str) -> None:
    found = verify(RUNS[name])
    assert found == {what: [] for what in (READABLE, *(check.name for check in CHECKS))}
    assert main([str(RUNS[name])]) == 0


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_is_what_its_files_say(name: str) -> None:
    run, results = read_run(RUNS[name]), json.loads((RUNS[name] / "results.json").read_text())
    assert (run.label, run.seed, run.notes) == (name, 4, ())
    assert run.matrix.correct == results["accuracy"]["correct"]
    assert list(run.curve) == results["average_accuracy"]
    branches = {"slow+fast", "slow", "fast", "neither"} if name == "nested" else set()
    assert run.branches.keys() == branches
    assert run.changed == [None] * 3  # not known
    assert run.off.correct == (run.branches["neither"].correct if name == "nested" else [None] * 3)


def test_recorded_runs_are_compared() -> None:
    comparison = compare([NESTED, PLAIN], "plain")
    assert [group.name for group in comparison.groups] == ["nested", "plain"]
    assert comparison.differing["ffn_adapter_type"] == ["nested_lora", "adaptmlp"]
    text = terminal(comparison)
    assert "16.67" in text
    assert not [line for line in warnings(comparison) if "edited" in line or "cadence audit failed" in line]


def test_recorded_runs_are_reported(tmp_path: Path) -> None:
    assert report([str(NESTED), str(PLAIN), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "16.67" in page


def test_a_recorded_run_may_lie_elsewhere(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(NESTED, tmp_path / NESTED.name))
    assert main([str(copy)]) == 0


def test_a_run_with_an_adapter_of_the_user_s_own_is_read_without_it(tmp_path: Path) -> None:
    """So it is with a learner of their own; of the edit that makes such a run here, only what it changes is found."""
    copy = Path(shutil.copytree(NESTED, tmp_path / NESTED.name))
    config = json.loads((copy / "config.json").read_text())
    config |= {"ffn_adapter_type": "my_lora", "model_name": "my_learner"}
    (copy / "config.json").write_text(json.dumps(config))
    own = copy.rename(tmp_path / f"mine-{counted_digest(config)}-s4")
    comparison = compare([own, PLAIN])
    assert comparison.differing["ffn_adapter_type"] == ["my_lora", "adaptmlp"]
    assert not [line for line in warnings(comparison) if str(own) in line]
    assert report([str(own), "-o", str(tmp_path / "report.html")]) == 0
    failed = {name for name, faults in verify(own).items() if faults}
    assert failed == {"checkpoints belong to the run", "files are as the run wrote them"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_checkpoint_gives_the_accuracies_on_record(name: str, tmp_path: Path) -> None:
    task = 2
    file = (RUNS[name] / "checkpoints" / f"task_{task}.safetensors").relative_to(ROOT)
    done = forked.python(("main.py", "--eval", "--checkpt_path", str(file)), ROOT, os.environ, tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((RUNS[name] / "results.json").read_text())["accuracy"]
    row, images = accuracy["correct"][task], accuracy["count"][: task + 1]
    cells = [100 * hits / n for hits, n in zip([*row, sum(row)], [*images, sum(images)], strict=True)]
    line = next(line for line in done.stdout.splitlines() if re.match(rf" *{task} ", line))
    assert line.split() == [str(task), *(f"{cell:.2f}" for cell in cells)]
