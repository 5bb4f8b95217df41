"""Situations of docs/reliability.md, section "Public reports", that no other test holds, and the tests it names."""

import ast
import gc
import json
import re
from pathlib import Path

import pytest
import torch
from input_runs import Caller, make_images
from tiny_runs import events_of

from tools import verify
from trainer import Run
from utils.runs.log import RunLog

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reliability.md"


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Caller:
    return Caller(tmp_path, capsys)


def test_every_row_names_a_report_and_a_test_that_exists() -> None:
    rows = PAGE.read_text(encoding="utf-8").split("## Public reports\n")[1].split("\n## ")[0].splitlines()
    table = [line for line in rows if line.startswith("| ")][2:]
    assert len(table) >= 20
    for row in table:
        assert re.search(r"\[[\w.-]+/[\w.-]+#\d+\]\(https://github\.com/[\w./-]+/issues/\d+\)", row), row
        ((name, test),) = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        functions = [
            node.name
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        ]
        assert test in functions, row


@pytest.mark.parametrize("name", ["a [1] *?", "\u00fc \u00f6", "one\nother", "-x", "%d {0} $1x"])
def test_a_run_in_a_folder_of_any_name(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    images, call = make_images(folder / "images", {"a": 3, "b [*]": 3}), Caller(folder, capsys)

    def stopped(*_: object) -> None:
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "results", stopped)
        assert call(images, increment=1, init_cls=1)[0] == 1
    (run,) = (folder / "logs").iterdir()
    assert call.main("--resume", str(run))[0] == 0
    assert len(json.loads((run / "results.json").read_text())["run"]["resumed"]) == 1  # it did not begin anew
    assert call(images, increment=1, init_cls=1, auto_resume=True) == (0, "")
    assert call.main("--eval", "--checkpt_path", str(run / "checkpoints/task_1.safetensors"))[0] == 0
    assert verify.main([str(run)]) == 0


def test_the_run_of_a_seed_does_not_depend_on_the_seeds_before_it(call: Caller, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", {"a": 4, "b": 4, "c": 4})
    assert call(images, "alone", seed=3, shuffle=True)[0] == 0
    assert call(images, "together", seed=[1, 3], shuffle=True)[0] == 0
    alone, together = (next((tmp_path / output).glob("*-s3")) for output in ("alone", "together"))
    assert events_of(alone) == events_of(together)


def test_no_tensor_is_kept_of_a_task_that_is_over(
    call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, after = make_images(tmp_path / "images", {f"class {number}": 2 for number in range(8)}), Run._account_for
    kept: list[int] = []

    def count(run: Run, task: int) -> None:
        after(run, task)
        gc.collect()
        kept.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    monkeypatch.setattr(Run, "_account_for", count)
    assert (
        call(images, init_cls=1, increment=1, exp_threshold=1e9)[0] == 0
    )  # without expansion the network stays as it is
    assert len(set(kept[1:])) == 1
