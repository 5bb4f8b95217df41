"""Runs whose images, weights or directories are moved or changed: what is the same goes on, what differs is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from input_runs import KEYS, Caller, make_images, results
from PIL import Image
from safetensors.torch import save_file

from tools.finished.reader import read_run
from tools.verify import main as verify
from utils.runs.checkpoint import read_checkpoint, save_checkpoint
from utils.stopping import StateKeeper

CLASSES = dict.fromkeys("abcd", 6)


class Stopped(BaseException):
    """The process ends here."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "old" / "images", CLASSES)


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Caller:
    (tmp_path / "old").mkdir(exist_ok=True)
    return Caller(tmp_path / "old", capsys)


@pytest.fixture
def stop(call: Caller, images: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train until a point of this name was reached this many times; the directory of the unfinished run."""

    def stop_at(wanted: str = "task", times: int = 1, **keys: Any) -> Path:
        keep, reached = StateKeeper.__call__, []

        def ending(keeper: StateKeeper, point: str) -> None:
            keep(keeper, point)
            reached.append(point)
            if reached.count(wanted) == times:
                raise Stopped

        with monkeypatch.context() as patched:
            patched.setattr(StateKeeper, "__call__", ending)
            with pytest.raises(Stopped):
                call(images, **keys)
        (run,) = (call.folder / "logs").iterdir()
        return run

    return stop_at


def weights(path: Path, width: int = 16) -> Path:
    kwargs = {**KEYS["backbone_kwargs"], "embed_dim": width}
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0, **kwargs).state_dict(), path)
    return path


def repaint(file: Path) -> None:
    """Other pixels in a file of the same size."""
    size = file.stat().st_size
    pixels = 255 - np.asarray(Image.open(file))
    Image.fromarray(pixels).save(file)
    with file.open("ab") as opened:
        opened.write(bytes(max(0, size - file.stat().st_size)))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "added": (lambda root: shutil.copy(root / "train/d/0.png", root / "train/c/new.png"), "1 added, 0 changed"),
    "missing": (lambda root: (root / "test/a/0.png").unlink(), "1 missing; the first one: test/a/0.png"),
    "changed": (lambda root: repaint(root / "train/b/3.png"), "1 changed, 0 missing; the first one: train/b/3.png"),
    "class": (lambda root: [(root / half / "c").rename(root / half / "x") for half in ("train", "test")],
              'missing: "c"; new: "x"'),
    "more classes": (lambda root: make_images(root, {"e": 3}), 'new: "e"'),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["resume", "auto_resume"])
def test_a_run_does_not_go_on_with_other_images(
    stop: Callable[..., Path], call: Caller, images: Path, change: str, how: str
):
    run = stop()
    alter, message = CHANGES[change]
    alter(images)
    files = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    code, error = call(images, auto_resume=True) if how == "auto_resume" else call.main("--resume", str(run))
    assert (code, message in error, "Traceback" in error) == (2, True, False), error
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == files


def test_a_finished_run_is_not_taken_for_that_of_other_images_of_the_same_name(
    call: Caller, images: Path, tmp_path: Path
):
    assert call(images)[0] == 0
    other = Path(shutil.copytree(images, tmp_path / "other" / "images"))
    for half in ("train", "test"):
        shutil.copy(other / half / "d" / "0.png", other / half / "d" / "new.png")
    code, error = call(other, auto_resume=True)
    assert (code, "logs/run-" in error, "2 added" in error) == (2, True, True)
    assert "the run is finished; train on these images with another --output_dir" in error
    assert call(images, auto_resume=True)[0] == 0


def test_an_accepted_change_stands_on_record(stop: Callable[..., Path], call: Caller, images: Path, capsys):
    run = stop()
    CHANGES["added"][0](images)
    repaint(images / "test/a/0.png")
    code, error = call.main("--resume", str(run), "--accept_changed_data")
    assert (code, "which was accepted: 1 added, 1 changed, 0 missing" in error) == (0, True)
    (accepted,) = json.loads((run / "data.json").read_text())["accepted_changes"]
    assert {key: accepted[key] for key in ("task", "added", "changed", "missing")} == {
        "task": 1, "added": 1, "changed": 1, "missing": 0
    }  # fmt: skip
    assert verify([str(run)]) == 1  # task 0 was measured on the other image
    assert "continued with other images, which was accepted: 1 added, 1 changed, 0 missing" in read_run(run).notes[0]
    assert call.main("--resume", str(run))[0] == 2


@pytest.mark.parametrize(
    ("point", "change", "message"),
    [
        ("task", "missing", "numbers of test images of tasks 0 to 0 changed"),
        ("epoch", "changed", "training images of task 0, which has begun, changed"),
    ],
)
def test_changes_that_a_run_cannot_continue_with_are_refused_even_if_accepted(
    stop: Callable[..., Path], call: Caller, images: Path, point: str, change: str, message: str
):
    run = stop(point)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "note"}\n')  # after the state, as when a process was killed
    files = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "log.txt"}
    CHANGES[change][0](images)
    code, error = call.main("--resume", str(run), "--accept_changed_data")
    assert (code, message in error) == (2, True), error
    assert {file: file.read_bytes() for file in files} == files


def test_a_run_goes_on_after_everything_was_moved(
    stop: Callable[..., Path], call: Caller, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = {"backbone_checkpoint": str(weights(tmp_path / "old" / "w.safetensors"))}
    assert call(images, "whole", **own)[0] == 0
    whole = results(call.folder / "whole")
    run = stop(**own)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = Path("..") / "new" / "logs" / run.name
    code, error = call.main("--resume", str(moved))
    assert code == 0, error
    assert results(moved.parent) == whole
    assert verify([str(moved)]) == 0
    (tmp_path / "new").rename(tmp_path / "newer")
    checkpoint = tmp_path / "newer" / "logs" / run.name / "checkpoints" / "task_1.safetensors"
    assert call.main("--eval", "--checkpt_path", str(checkpoint))[0] == 0


@pytest.mark.parametrize("kind", ["folder", "link", "other name"])
def test_a_run_goes_on_with_data_and_weights_at_another_place(
    stop: Callable[..., Path], call: Caller, images: Path, tmp_path: Path, kind: str
):
    file = weights(tmp_path / "old" / "w.safetensors")
    run = stop(backbone_checkpoint=str(file))
    target = tmp_path / "disk" / ("images" if kind == "folder" else "pictures")
    target.parent.mkdir()
    images.rename(target)
    file.rename(tmp_path / "disk" / "weights.safetensors")
    if kind == "link":
        (tmp_path / "disk" / "images").symlink_to(target)
        target = tmp_path / "disk" / "images"
    new = ["--data_root", str(target), "--backbone_checkpoint", str(tmp_path / "disk" / "weights.safetensors")]
    code, error = call.main("--resume", str(run), *new)
    assert code == 0, error
    assert verify([str(run)]) == 0


def test_other_weights_of_the_same_name_are_refused(stop: Callable[..., Path], call: Caller, tmp_path: Path):
    file = weights(tmp_path / "old" / "w.safetensors")
    run = stop(backbone_checkpoint=str(file))
    weights(file)
    code, error = call.main("--resume", str(run))
    assert (code, "weights" in error, "Traceback" in error) == (2, True, False), error


# ---- evaluation


def checkpoint(call: Caller, images: Path) -> Path:
    assert call(images)[0] == 0
    (file,) = (call.folder / "logs").glob("*/checkpoints/task_1.safetensors")
    return file


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in ("added", "changed")])
def test_a_checkpoint_is_not_evaluated_on_other_test_images_or_classes(call: Caller, images: Path, change: str):
    file = checkpoint(call, images)
    alter, message = CHANGES[change]
    alter(images)
    code, error = call.main("--eval", "--checkpt_path", str(file))
    assert (code, message in error) == (2, True), error


@pytest.mark.parametrize("classes", ["abc", "abcde"])
@pytest.mark.parametrize("kind", ["names", "no names", "public"])
def test_a_checkpoint_of_another_number_of_classes_is_refused_in_classes(
    call: Caller, images: Path, tmp_path: Path, classes: str, kind: str
):
    file = checkpoint(call, images)
    tensors, meta = read_checkpoint(file)
    del meta["class_names"]
    if kind == "no names":  # as earlier versions
        save_checkpoint(file, tensors, meta)
    elif kind == "public":
        torch.save(tensors, file := tmp_path / "public.pth")
    other = make_images(tmp_path / "other", dict.fromkeys(classes, 6))
    code, error = call(other, eval=True, checkpt_path=str(file))
    expected = "its classes are not those of" if kind == "names" else f"of 4 classes, here are {len(classes)}"
    assert (code, expected in error, "fc." in error) == (2, True, False), error


def test_a_run_without_a_record_of_its_images_is_not_resumed_with_fewer_classes(
    stop: Callable[..., Path], call: Caller, images: Path
):
    run = stop()
    (run / "data.json").unlink()
    for half in ("train", "test"):
        shutil.rmtree(images / half / "d")
    code, error = call.main("--resume", str(run))
    assert (code, "of 4 classes, here are 3" in error, "fc." in error) == (2, True, False), error


OTHER_HEADS = {"backbone_kwargs": {**KEYS["backbone_kwargs"], "num_heads": 4}}


OTHER_LAYER = {"backbone_kwargs": {**KEYS["backbone_kwargs"], "act_layer": "relu"}}
OTHER_TYPE = {"backbone_type": "deit_tiny_patch16_224_adapter"}  # of the same tensors


@pytest.mark.parametrize("keys", [{"normalize": True}, OTHER_HEADS, OTHER_LAYER, OTHER_TYPE])
def test_a_checkpoint_is_not_used_in_another_way_than_it_was_trained(
    call: Caller, images: Path, tmp_path: Path, keys: dict[str, Any]
):
    file = checkpoint(call, images)
    picture = str(next(images.rglob("*.png")))
    for use in ({"eval": True}, {"predict": [picture]}, {"export": str(tmp_path / "x.safetensors")}):
        code, error = call(images, **use, checkpt_path=str(file), **keys)
        assert (code, f"was trained with {next(iter(keys))} = " in error) == (2, True), error


def test_other_training_images_do_not_matter_to_an_evaluation(call: Caller, images: Path):
    file = checkpoint(call, images)
    CHANGES["added"][0](images)
    assert call.main("--eval", "--checkpt_path", str(file))[0] == 0


def test_accepted_test_images_are_evaluated_without_the_rows_of_the_others(
    call: Caller, images: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    file = shutil.copy(checkpoint(call, images), tmp_path / "alone.safetensors")
    (images / "test/a/0.png").unlink()
    code, error = call.main("--eval", "--checkpt_path", str(file))
    assert (code, "8 then, 7 now; restore" in error) == (2, True)
    assert call.main("--eval", "--checkpt_path", str(file), "--accept_changed_data")[0] == 0
    first, second = (line.split() for line in call.output.splitlines() if line[:10].strip() in ("0", "1"))
    assert first == ["0", "-", "-"]
    assert (second[0], len(second)) == ("1", 4)


@pytest.mark.parametrize("keys", [{"precision": "bf16"}, {"eval_cache_bf16": True}])
def test_an_evaluation_with_other_rounding_leaves_out_the_rows_of_the_run(
    call: Caller, images: Path, keys: dict[str, Any]
):
    file = checkpoint(call, images)
    code, error = call(images, eval=True, checkpt_path=str(file), **keys)
    assert code == 0, error
    assert ["0", "-", "-"] in [line.split() for line in call.output.splitlines()]
    assert "\naverage incremental -, last " in call.output


def test_files_that_are_left_out_are_on_record(call: Caller, images: Path):
    (images / "train/b/x.heic").write_bytes(b"")
    code, error = call(images)
    assert (code, error.count("x.heic")) == (0, 1)
    (run,) = (call.folder / "logs").iterdir()
    assert json.loads((run / "data.json").read_text())["left_out"] == [
        {"file": "train/b/x.heic", "reason": "ending in .heic"}
    ]
    assert "left out: 1 ending in .heic: train/b/x.heic" in (run / "log.txt").read_text()
