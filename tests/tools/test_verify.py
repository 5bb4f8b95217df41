"""A run is verified as it is, and every single edit of it is found by the checks it belongs to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import NESTED
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_trainer import _trained, configuration, finished, images, run  # noqa: F401

from tools.finished.checks import CHECKS
from tools.verify import READABLE, main, verify
from utils.runs.directory import checksums
from utils.runs.images import read_images, write_images
from utils.runs.predictions import read_mistakes, read_predictions, save_mistakes, save_predictions

(
    MEASURES, TASKS, BRANCHES, READOUTS, ADAPTERS_OFF, VERDICTS, NONE_MISSING, PASSED, UNCHANGED, NAME, RATES, EPOCHS,
    THRESHOLDS, PREDICTIONS, VALIDATION, MISTAKES, CHECKPOINTS, IMAGES, FILES,
) = (check.name for check in CHECKS)  # fmt: skip

NO_READOUT = '{"task_sizes": [], "count": [], "correct": []}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of a recorded run, under the same name."""
    return Path(shutil.copytree(NESTED, tmp_path / NESTED.name))


def failed(path: Path) -> set[str]:
    return {name for name, faults in verify(path).items() if faults}


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_run_as_it_was_written_passes_every_check(
    run: Callable[..., Path],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = run(max_tasks=2, readouts=["ncm"])
    assert failed(path) == set()
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.count("ok ") == len(CHECKS) + 1


EDITS_OF_THE_RECORD: list[tuple[str, str, str, set[str]]] = [
    ("data.json", '"images": 24', '"images": 25', {IMAGES, FILES}),
    ("data.json", '"1",', '"7",', {IMAGES, FILES}),
    ("data.json", '"left_out"', '"left"', {FILES}),
    ("results.json", '"class_names": [', '"class_names": ["x",', {IMAGES, FILES}),
    ("results.json", '"images": 8', '"images": 9', {TASKS, ADAPTERS_OFF, PREDICTIONS, FILES}),
    ("data.json", '"accepted_changes": []', '"accepted_changes": [3]', {UNCHANGED, FILES}),
]


@pytest.mark.parametrize(("file", "old", "new", "found"), EDITS_OF_THE_RECORD)
def test_an_edited_record_of_the_images_is_found(
    finished: Callable[..., Path],  # noqa: F811
    file: str,
    old: str,
    new: str,
    found: set[str],
) -> None:
    path = finished(max_tasks=1)
    edit(path / file, old, new)
    assert failed(path) == found


def test_a_list_of_other_images_is_found(finished: Callable[..., Path]) -> None:  # noqa: F811
    path = finished(max_tasks=1)
    listed = read_images(path)
    write_images(path, [*listed[:-1], listed[-1]._replace(digest="0" * 16)])
    assert failed(path) == {IMAGES, FILES}
    (path / "images.tsv.gz").unlink()
    assert failed(path) == {IMAGES, FILES}


def test_what_lies_beside_runs_is_left_out_and_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path.parent / "sweep" / "logs").mkdir(parents=True)
    (path.parent / "sweep.html").write_text("a page of an earlier version")
    alone = main([str(path)])
    capsys.readouterr()
    assert main([str(entry) for entry in sorted(path.parent.iterdir())]) == alone
    told = capsys.readouterr()
    assert told.out.startswith(f"{path}\n")
    assert [line.split(":")[0] for line in told.err.splitlines()] == [
        str(path.parent / "sweep"),
        str(path.parent / "sweep.html"),
    ]
    assert main([str(path.parent / "sweep")]) == 2


def test_a_resumed_run_passes_too(
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from test_resume import Killer, only_run, to_the_end

    Killer(monkeypatch, every=25, saved=True)
    to_the_end(configuration(images, tmp_path / "cut", auto_resume=True, checkpoint_every=1, readouts=["ncm"]))
    assert failed(only_run(tmp_path / "cut")) == set()


EDITS: dict[str, tuple[str, Callable[[Path], Any], set[str]]] = {
    "rate": ("metrics.jsonl", lambda f: edit(f, '"lr": 0.005', '"lr": 0.05'), {FILES, RATES}),
    "epoch": ("metrics.jsonl", lambda f: edit(f, '"func", "epoch": 1', '"func", "epoch": 2'), {FILES, EPOCHS}),
    "threshold": ("metrics.jsonl", lambda f: edit(f, '"threshold": 0.9', '"threshold": 0.95'), {FILES, THRESHOLDS}),
    "loss": ("metrics.jsonl", lambda f: edit(f, '"loss": ', '"loss": 1'), {FILES}),
    "event": (
        "metrics.jsonl",
        lambda f: edit(f, '"groups"', '"group"'),
        {FILES, NONE_MISSING, RATES, EPOCHS},
    ),
    "right answers": (
        "metrics.jsonl",
        lambda f: edit(f, '"after_task", "correct": {"slow+fast": [4', '"after_task", "correct": {"slow+fast": [3'),
        {FILES, BRANCHES},
    ),
    "accuracy": ("metrics.jsonl", lambda f: edit(f, '"last_acc": 0.5', '"last_acc": 0.6'), {FILES, TASKS}),
    "observation": (
        "metrics.jsonl",
        lambda f: edit(f, '"observed": [2, 4, 6]', '"observed": [2, 4, 5]'),
        {FILES, VERDICTS},
    ),
    "failed audit": (
        "metrics.jsonl",
        lambda f: edit(
            f, '[2, 4, 6], "expected": [2, 4, 6], "passed": true', '[2, 4], "expected": [2, 4, 6], "passed": false'
        ),
        {FILES, PASSED},
    ),
    "lost audit": ("metrics.jsonl", lambda f: edit(f, '"kind": "cadence"', '"kind": "note"'), {FILES, NONE_MISSING}),
    "lost phase": ("metrics.jsonl", lambda f: edit(f, '"kind": "phase"', '"kind": "note"'), {FILES, EPOCHS}),
    "key": (
        "config.json",
        lambda f: edit(f, '"func_epoch": 2', '"func_epoch": 3'),
        {FILES, NAME, EPOCHS, CHECKPOINTS},
    ),
    "seed": ("config.json", lambda f: edit(f, "4\n  ]", "5\n  ]"), {FILES, NAME}),
    "interval": (
        "config.json",
        lambda f: edit(f, 'update_interval_slow": 2', 'update_interval_slow": 3'),
        {FILES, VERDICTS, NAME, CHECKPOINTS},
    ),
    "lost predictions": ("predictions/task_0.npz", Path.unlink, {FILES, PREDICTIONS}),
    "lost checkpoint": ("checkpoints/task_1.safetensors", Path.unlink, {FILES, CHECKPOINTS}),
    "mistakes": ("predictions/mistakes.npz", lambda f: save_mistakes(f.parents[1], []), {FILES, MISTAKES}),
    "environment": ("environment.json", lambda f: edit(f, '"cores"', '"kernels"'), {FILES}),
    "new file": ("checkpoints/task_3.safetensors", Path.touch, {FILES}),
    "parameters": ("results.json", lambda f: edit(f, '"multiply_adds": ', '"multiply_adds": 1'), {FILES, TASKS}),
    "measure": ("results.json", lambda f: edit(f, '"last_acc": 0', '"last_acc": 1'), {FILES, MEASURES}),
    "branches": ("results.json", lambda f: edit(f, '"slow": {', '"slower": {'), {FILES, BRANCHES, PREDICTIONS}),
    "readouts": (
        "results.json",
        lambda f: edit(f, '"branches": {', f'"readouts": {{"ncm": {NO_READOUT}}}, "branches": {{'),
        {FILES, READOUTS, PREDICTIONS},
    ),
    "damaged": ("results.json", lambda f: edit(f, '"accuracy": {', '"accuracy": ['), {READABLE}),
    "checksums": ("results.json", lambda f: edit(f, '"sha256"', '"sha255"'), {FILES}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_found(path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, change, expected = EDITS[name]
    change(path / file)
    assert failed(path) == expected
    assert main([str(path)]) == 1
    assert capsys.readouterr().out.count("FAILED") == len(expected)


def test_every_check_can_fail() -> None:
    found = set().union(*(expected for *_, expected in [*EDITS.values(), *EDITS_OF_THE_RECORD]))
    elsewhere = {VALIDATION}  # in tests/test_validation_images.py
    assert found | elsewhere == {READABLE, *(check.name for check in CHECKS)}


def test_all_faults_of_a_check_are_named(path: Path) -> None:
    lost = [path / "predictions" / f"task_{task}.npz" for task in (0, 2)]
    for file in lost:
        file.unlink()
    assert [fault.split(":")[0] for fault in verify(path)[PREDICTIONS]] == [str(file) for file in lost]


def test_what_a_check_found_before_a_malformed_value_is_named_too(path: Path) -> None:
    edit(path / "metrics.jsonl", '"lr": 0.001', '"lr": 0.002')
    edit(path / "metrics.jsonl", '{"name": "other", "lr": 0.005', '{"name": "other", "rate": 0.005')
    first, second = verify(path)[RATES]
    assert "task 0 cycle 0 func phase: rate of slow = 0.002, but config.json gives 0.001" in first
    assert "a value is missing or of a wrong type: KeyError: 'lr'" in second


def test_predictions_changed_with_their_checksum_do_not_give_the_matrix(path: Path) -> None:
    file = path / "predictions" / "task_1.npz"
    labels, answers, confidence = read_predictions(file)
    save_predictions(file, labels, {**answers, "fast": (labels + 1) % 4}, confidence)
    forge(path)
    (fault,) = verify(path)[PREDICTIONS]
    assert fault.startswith(f"{file}: right answers and images of fast = [[0, 0], [8, 8]], but results.json gives")
    assert failed(path) == {PREDICTIONS}


def test_mistakes_that_are_not_those_of_the_predictions_are_found(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run(max_tasks=2)
    mistakes = read_mistakes(path) or []
    assert len(mistakes) > 1
    save_mistakes(path, mistakes[::-1])
    forge(path)
    (fault,) = verify(path)[MISTAKES]
    assert fault.startswith(f"{path / 'predictions' / 'mistakes.npz'}: positions = [")
    assert failed(path) == {MISTAKES}
    (path / "predictions" / "mistakes.npz").unlink()
    forge(path)
    assert verify(path)[MISTAKES] == [f"{path / 'predictions' / 'mistakes.npz'}: missing; the run directory is damaged"]


def test_a_checkpoint_of_another_matrix_is_found_though_its_checksum_is_right(path: Path) -> None:
    file = path / "checkpoints" / "task_1.safetensors"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    meta = json.loads(header["meta"])
    meta["accuracy"]["correct"][0][0] = 1 - meta["accuracy"]["correct"][0][0]
    save_file(load_file(file), file, {**header, "meta": json.dumps(meta)})
    forge(path)
    assert failed(path) == {CHECKPOINTS}


def test_answers_with_all_adapters_off_are_counted_again(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run(max_tasks=2, ffn_adapter_type="adaptmlp", readouts=[])
    file = path / "predictions" / "task_1.npz"
    labels, answers, confidence = read_predictions(file)
    other = answers["adapters_off"].copy()
    other[0] = labels[0] if other[0] != labels[0] else (labels[0] + 1) % 4
    for changed in ({**answers, "adapters_off": other}, {"whole": answers["whole"]}):
        save_predictions(file, labels, changed, confidence)
        forge(path)
        (fault,) = verify(path)[PREDICTIONS]
        assert fault.startswith(f"{file}: with all adapters off = ")
        assert failed(path) == {PREDICTIONS}


def forge(path: Path) -> None:
    """Make the checksums those of the files as they are."""
    results = json.loads((path / "results.json").read_text())
    results["run"]["sha256"] = checksums(path, results)
    (path / "results.json").write_text(json.dumps(results))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert main([str(tmp_path / "x")]) == 2
    moved = path.with_name("renamed")
    shutil.move(path, moved)
    assert failed(moved) == set()


def test_the_number_of_test_images_counts(path: Path) -> None:
    file = path / "predictions" / "task_0.npz"
    labels, answers, _ = read_predictions(file)
    save_predictions(file, labels[1:], {name: array[1:] for name, array in answers.items()})
    assert PREDICTIONS in failed(path)
    np.savez(file, labels=labels)
    assert PREDICTIONS in failed(path)
