"""Runs with validation images: what is scored, on record and recounted, and that nothing else changes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_resume import Killer, only_run, to_the_end
from test_trainer import configuration, events, images, results, run  # noqa: F401

import trainer
from eval import evaluate
from tools.compare.comparison import compare
from tools.compare.fairness import warnings
from tools.compare.tables import terminal
from tools.verify import verify
from utils.config.load import load
from utils.errors import ConfigError
from utils.metrics import AccuracyMatrix
from utils.runs.images import read_images

SHORT: dict[str, Any] = {"max_tasks": 2, "func_epoch": 1, "rd_epoch": 1, "val_fraction": 0.3, "readouts": ["ncm"]}


def arrays(path: Path, task: int, part: str = "") -> dict[str, np.ndarray]:
    with np.load(path / "predictions" / f"{part}task_{task}.npz") as kept:
        return dict(kept)


@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora"])
def test_validation_images_are_scored_after_each_task_and_recounted(run: Callable[..., Path], kind: str) -> None:  # noqa: F811
    path = run(ffn_adapter_type=kind, **SHORT)
    found = results(path)
    matrix = AccuracyMatrix.from_json(found["validation"]["accuracy"])
    assert matrix.count == [6, 6]  # 3 of 10 images of each of 2 classes
    kept = [arrays(path, task, "val_") for task in (0, 1)]
    right = [[int(((k["labels"] // 2 == t) & (k["labels"] == k["whole"])).sum()) for t in (0, 1)] for k in kept]
    assert matrix.correct == [right[0][:1], right[1]]
    assert found["validation"]["last_acc"] == sum(right[1]) / 12
    assert found["validation"]["avg_inc_acc"] == pytest.approx((right[0][0] / 6 + sum(right[1]) / 12) / 2)
    assert [task["validation"]["top1"] for task in events(path, "task")] == [
        pytest.approx(100 * right[0][0] / 6, abs=0.005),
        pytest.approx(100 * sum(right[1]) / 12, abs=0.005),
    ]
    log = (path / "log.txt").read_text()
    assert "on validation images top-1" in log
    assert log.count("\non validation images\n") == 2
    assert not any(verify(path).values())
    record = json.loads((path / "data.json").read_text())
    assert (record["train"]["images"], record["val"]["images"]) == (60, 18)
    assert sum(image.part == "val" for image in read_images(path)) == 18
    table = terminal(compare([path]))
    assert re.search(rf"validation last accuracy +{100 * sum(right[1]) / 12:.2f}\b", table)
    off = evaluate(load(path / "config.json", {"eval": True, "checkpt_path": str(path), "num_workers": 0}))
    assert off["last_acc"] == found["last_acc"]


def test_a_run_learns_nothing_from_its_validation_images(
    run: Callable[..., Path],  # noqa: F811
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = run(**SHORT)
    aside = [int(image.name) for image in read_images(first) if image.part == "val"]
    with np.load(images) as kept:
        stored = dict(kept)
    stored["x_train"][aside] = np.random.RandomState(1).randint(0, 255, stored["x_train"][aside].shape)
    config = configuration(images, tmp_path / "other", **SHORT)
    other = tmp_path / "noise.npz"
    np.savez(other, **stored)
    drawn = np.isin(np.arange(60), aside)  # the draw is of the content, which has changed
    monkeypatch.setattr(trainer, "with_validation", lambda data, *_: replace(data, validation=drawn))
    trainer.train(config.model_copy(update={"data_root": str(other)}), "tiny")
    second = only_run(tmp_path / "other")
    for task in (0, 1):
        np.testing.assert_array_equal(arrays(first, task)["confidence"], arrays(second, task)["confidence"])
    assert results(first)["accuracy"] == results(second)["accuracy"]
    assert (arrays(first, 1, "val_")["confidence"] != arrays(second, 1, "val_")["confidence"]).any()


def test_a_resumed_run_ends_as_the_whole_one(
    run: Callable[..., Path],  # noqa: F811
    images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run("whole", **SHORT)
    Killer(monkeypatch, 17, saved=False)
    config = configuration(images, tmp_path / "pieces", auto_resume=True, checkpoint_every=1, **SHORT)
    assert to_the_end(config) > 1
    pieces = only_run(tmp_path / "pieces")
    assert results(pieces) == results(whole)
    assert events(pieces) == events(whole)
    assert (pieces / "images.tsv.gz").read_bytes() == (whole / "images.tsv.gz").read_bytes()
    np.testing.assert_equal(arrays(pieces, 1, "val_"), arrays(whole, 1, "val_"))


def test_class_order_and_tasks_do_not_change_the_draw(run: Callable[..., Path]) -> None:  # noqa: F811
    short = {**SHORT, "rd_epoch": 0, "ffn_adapter_type": "adaptmlp"}
    usual, other = run("a", **short), run("b", **{**short, "max_tasks": 1, "class_order_seed": 9, "init_cls": 3})
    assert read_images(usual) == read_images(other)
    assert results(usual)["class_names"] != results(other)["class_names"]


def test_seeds_of_one_configuration_are_one_group_and_without_the_key_nothing_is_kept(
    run: Callable[..., Path],  # noqa: F811
) -> None:
    short = {**SHORT, "max_tasks": 1, "rd_epoch": 0, "ffn_adapter_type": "adaptmlp"}
    one = run("a", **short)
    two = run("b", **short, seed=5)
    (group,) = compare([one, two]).groups
    assert group.seeds == ["4", "5"]
    assert read_images(one) != read_images(two)
    plain = run("c", **{**short, "val_fraction": 0.0})
    assert "validation" not in results(plain)
    assert "validation" not in results(plain)["tasks"][0]
    assert "validation" not in terminal(compare([plain]))
    assert {entry.name for entry in (plain / "predictions").iterdir()} == {"task_0.npz", "mistakes.npz"}


@pytest.mark.parametrize("fraction", [0.04, 0.96])
def test_a_class_left_empty_is_refused_before_training(run: Callable[..., Path], fraction: float) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=f"val_fraction = {fraction}: class 0 has 10 training images"):
        run(val_fraction=fraction)


def with_other_test_images(images: Path) -> Path:  # noqa: F811
    """A data set with noise in the place of the test images."""
    with np.load(images) as kept:
        stored = dict(kept)
    stored["x_test"] = np.random.RandomState(1).randint(0, 255, stored["x_test"].shape).astype(np.uint8)
    noise = images.parent / "noise" / images.name
    noise.parent.mkdir()
    np.savez(noise, **stored)
    return noise


def test_a_run_on_validation_images_scores_them_alone(run: Callable[..., Path], images: Path) -> None:  # noqa: F811
    usual = run("usual", **SHORT)
    config = configuration(with_other_test_images(images), images.parent / "val", evaluate_on="val", **SHORT)
    trainer.train(config, "tiny")
    chosen = only_run(images.parent / "val")
    found = results(chosen)
    assert found["accuracy"] == results(usual)["validation"]["accuracy"]
    assert found["evaluate_on"] == "val"
    assert "validation" not in found
    for task in (0, 1):
        mine, theirs = arrays(chosen, task), arrays(usual, task, "val_")
        np.testing.assert_array_equal(mine["labels"], theirs["labels"])
        np.testing.assert_array_equal(mine["confidence"], theirs["confidence"])
    assert found["readouts"]["ncm"]["count"] == [6, 6]
    assert not any(verify(chosen).values())
    log = (chosen / "log.txt").read_text()
    assert "all accuracies are of the validation images; no test image is scored" in log
    assert log.count("on validation images") >= 4
    off = evaluate(load(usual / "config.json", {"eval": True, "checkpt_path": str(usual), "num_workers": 0}))
    again = load(chosen / "config.json", {"eval": True, "checkpt_path": str(chosen), "num_workers": 0})
    evaluated = evaluate(again.model_copy(update={"data_root": str(images), "accept_changed_data": True}))
    assert evaluated["accuracy"] == off["accuracy"]
    assert np.isnan(evaluated["average_accuracy"][0])  # on record is that of validation images


def test_comparisons_say_that_accuracies_are_of_validation_images(run: Callable[..., Path]) -> None:  # noqa: F811
    short = {**SHORT, "max_tasks": 1, "rd_epoch": 0, "ffn_adapter_type": "adaptmlp"}
    one, two = run("a", evaluate_on="val", **short), run("b", **short)
    alone, both = compare([one]), compare([one, two])
    assert alone.images == "validation images"
    assert "all accuracies are of validation images (evaluate_on); no test image was scored" in warnings(alone)
    assert any("so that they cannot be compared" in text for text in warnings(both))
    assert not any("evaluate_on" in text for text in warnings(compare([two])))
    file = one / "results.json"
    file.write_text(file.read_text().replace('"evaluate_on": "val"', '"evaluate_on": "test"'))
    assert verify(one)["measures follow from the counts in results.json"]


def test_validation_images_cannot_be_scored_where_there_are_none(run: Callable[..., Path]) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="expected val_fraction above 0"):
        run(evaluate_on="val")


def test_verify_finds_an_edited_count(run: Callable[..., Path]) -> None:  # noqa: F811
    path = run(**{**SHORT, "max_tasks": 1, "rd_epoch": 0})
    file = path / "results.json"
    values = json.loads(file.read_text())
    row = values["validation"]["accuracy"]["correct"][0]
    row[0] = (row[0] + 1) % 6
    file.write_text(json.dumps(values))
    faults = verify(path)
    assert faults["measures follow from the counts in results.json"]
    assert faults["accuracies on validation images are the counts of the predictions"]
