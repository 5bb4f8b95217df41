"""A run is verified as it is, and every single edit of it is found by the check it belongs to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_trainer import configuration, images, run  # noqa: F401

from tools import verify as module
from tools.verify import AGREEMENT, CHECKS, main, verify
from utils.runs.predictions import read_predictions, save_predictions

FILES, NOTES, PREDICTIONS, CONFIGURATION, CHECKPOINTS = CHECKS


@pytest.fixture
def path(run: Callable[..., Path]) -> Path:  # noqa: F811
    return run(max_tasks=2)


def failed(path: Path) -> set[str]:
    return {name for name, faults in verify(path).items() if faults}


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_run_as_it_was_written_passes_every_check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(path) == set()
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.count("ok ") == len(CHECKS) + 1


def test_a_resumed_run_passes_too(
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from test_resume import Killer, only_run, to_the_end

    Killer(monkeypatch, every=25, saved=True)
    to_the_end(configuration(images, tmp_path / "cut", auto_resume=True))
    assert failed(only_run(tmp_path / "cut")) == set()


EDITS: dict[str, tuple[str, Callable[[Path], Any], set[str]]] = {
    "rate": ("metrics.jsonl", lambda f: edit(f, '"lr": 0.005', '"lr": 0.05'), {FILES, CONFIGURATION}),
    "epoch": ("metrics.jsonl", lambda f: edit(f, '"func", "epoch": 1', '"func", "epoch": 2'), {FILES, CONFIGURATION}),
    "threshold": ("metrics.jsonl", lambda f: edit(f, '"threshold": 1.0', '"threshold": 1.5'), {FILES, CONFIGURATION}),
    "loss": ("metrics.jsonl", lambda f: edit(f, '"loss": ', '"loss": 1'), {FILES}),
    "event": ("metrics.jsonl", lambda f: edit(f, '"groups"', '"group"'), {FILES, CONFIGURATION}),
    "key": (
        "config.json",
        lambda f: edit(f, '"func_epoch": 2', '"func_epoch": 3'),
        {FILES, NOTES, CONFIGURATION, CHECKPOINTS},
    ),
    "seed": ("config.json", lambda f: edit(f, "4\n  ]", "5\n  ]"), {FILES, NOTES}),
    "interval": (
        "config.json",
        lambda f: edit(f, 'update_interval_slow": 2', 'update_interval_slow": 3'),
        {AGREEMENT},
    ),
    "lost predictions": ("predictions/task_0.npz", Path.unlink, {FILES, PREDICTIONS}),
    "lost checkpoint": ("checkpoints/task_1.safetensors", Path.unlink, {FILES, CHECKPOINTS}),
    "environment": ("environment.json", lambda f: edit(f, '"cores"', '"kernels"'), {FILES}),
    "new file": ("checkpoints/task_2.safetensors", Path.touch, {FILES}),
    "parameters": ("results.json", lambda f: edit(f, '"multiply_adds": ', '"multiply_adds": 1'), {AGREEMENT}),
    "checksums": ("results.json", lambda f: edit(f, '"sha256"', '"sha255"'), {FILES}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_found(path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, change, expected = EDITS[name]
    change(path / file)
    assert failed(path) == expected
    assert main([str(path)]) == 1
    assert capsys.readouterr().out.count("FAILED") == len(expected)


def test_predictions_changed_with_their_checksum_do_not_give_the_matrix(path: Path) -> None:
    file = path / "predictions" / "task_1.npz"
    labels, answers = read_predictions(file)
    save_predictions(file, labels, {**answers, "fast": (labels + 1) % 4})
    forge(path)
    (fault,) = verify(path)[PREDICTIONS]
    assert fault.startswith(f"{file}: fast: right answers [0, 0], but results.json says")
    assert failed(path) == {PREDICTIONS}


def test_a_checkpoint_of_another_matrix_is_found_though_its_checksum_is_right(path: Path) -> None:
    file = path / "checkpoints" / "task_1.safetensors"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    meta = json.loads(header["meta"])
    meta["accuracy"]["correct"][0][0] = 1 - meta["accuracy"]["correct"][0][0]
    save_file(load_file(file), file, {**header, "meta": json.dumps(meta)})
    forge(path)
    assert failed(path) == {CHECKPOINTS}


def forge(path: Path) -> None:
    """Make the checksums those of the files as they are."""
    results = json.loads((path / "results.json").read_text())
    results["run"]["sha256"].update(module.checksums(path))
    (path / "results.json").write_text(json.dumps(results))


def test_an_accuracy_that_its_counts_do_not_give_is_a_contradiction(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(path / "results.json", '"last_acc": 0', '"last_acc": 1')
    assert failed(path) == {AGREEMENT}
    assert main([str(path)]) == 1
    assert "last_acc" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert main([str(tmp_path / "x")]) == 2
    moved = path.with_name("renamed")
    shutil.move(path, moved)
    assert failed(moved) == set()


def test_the_number_of_test_images_counts(path: Path) -> None:
    file = path / "predictions" / "task_0.npz"
    labels, answers = read_predictions(file)
    save_predictions(file, labels[1:], {name: array[1:] for name, array in answers.items()})
    assert PREDICTIONS in failed(path)
    np.savez(file, labels=labels)
    assert PREDICTIONS in failed(path)
