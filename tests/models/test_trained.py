"""Trained networks on new images, against the predictions on record, numpy and the public implementation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_runs import NESTED, PLAIN, RECORDED
from parity_cases import Record, RecordedTasks, backbone_weights
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.functional import center_crop, resize, to_tensor

import eval
from models import load_run
from models.trained import TrainedModel
from utils.config.load import resolve
from utils.config.schema import schemas
from utils.data.images import InputSpec
from utils.errors import ConfigError, DataError, UserError
from utils.inc_net import SEMAVitNet
from utils.runs.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from utils.runs.checkpoint_meta import read_config
from utils.runs.predictions import predictions_file, read_predictions

RUNS = pytest.mark.parametrize("run", [NESTED, PLAIN], ids=["nested", "plain"])
FILE = NESTED / "checkpoints" / "task_2.safetensors"


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return load_run(NESTED, device="cpu")


def test_images(class_order: list[int]) -> np.ndarray:
    arrays = np.load(RECORDED / "images.npz")
    rows = [np.flatnonzero(arrays["y_test"] == label) for label in class_order]
    return arrays["x_test"][np.concatenate(rows)]


test_images.__test__ = False  # type: ignore[attr-defined]


def pictures(count: int = 3, side: int = 20) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (count, side, side, 3)).astype(np.uint8)


@RUNS
@pytest.mark.parametrize("task", [0, 1, 2])
def test_the_predictions_are_those_on_record(run: Path, task: int):
    model = load_run(run, task, "cpu")
    labels, answers, _ = read_predictions(predictions_file(run, task))
    found = model.predict(test_images(model.meta["class_order"])[: len(labels)])
    assert found.labels.tolist() == answers["whole"].tolist()
    assert found.logits.shape == (len(labels), 2 * (task + 1))


@RUNS
def test_the_logits_are_those_of_an_evaluation_bit_by_bit(run: Path, monkeypatch, capsys):
    seen = []
    forward = SEMAVitNet.forward_from

    def watched(network, x, layer):
        output = forward(network, x, layer)
        seen.append(output["logits"])
        return output

    file = run / "checkpoints" / "task_2.safetensors"
    flags = {"checkpt_path": str(file), "eval": True, "data_root": str(RECORDED / "images.npz"), "eval_batch_size": 5}
    with monkeypatch.context() as patch:
        patch.setattr(SEMAVitNet, "forward_from", watched)
        eval.evaluate(resolve(read_config(file), str(file), flags))
    model = load_run(run, device="cpu", eval_batch_size=5)
    logits = model.predict(test_images(model.meta["class_order"])).logits
    assert np.array_equal(logits, torch.cat(seen).numpy()[: len(logits), :6])  # those with all adapters off follow


def test_every_kind_of_image_is_prepared_as_a_test_image(model, tmp_path):
    array, grey = pictures()[0], pictures()[1][..., 0]
    Image.fromarray(array).save(tmp_path / "Größe 1.png")
    Image.fromarray(grey).save(tmp_path / "grau.png")
    ready = to_tensor(center_crop(resize(Image.fromarray(array), 18, 3), 16))
    alike = [tmp_path / "Größe 1.png", str(tmp_path / "Größe 1.png"), Image.fromarray(array), array, ready]
    grey_alike = [grey, Image.fromarray(grey), tmp_path / "grau.png", np.repeat(grey[..., None], 3, axis=2)]
    found = model.predict([*alike, *grey_alike])
    assert (found.logits[: len(alike)] == found.logits[0]).all()
    assert (found.logits[len(alike) :] == found.logits[-1]).all()
    assert not np.array_equal(found.logits[0], found.logits[-1])
    assert found.images[:3] == [str(tmp_path / "Größe 1.png")] * 2 + ["image 2"]
    for images in (tmp_path, str(tmp_path), [tmp_path / "Größe 1.png", grey], (array, grey)):
        np.testing.assert_allclose(model.predict(images).logits, found.logits[[0, -1]], atol=1e-6)


def test_a_batch_of_arrays_or_tensors_is_that_many_images(model):
    prepared = torch.stack([model.transform(Image.fromarray(image)) for image in pictures(4)])
    found = model.predict(pictures(4))
    assert len(found) == 4
    assert np.array_equal(found.logits, model.predict(prepared).logits)
    assert np.array_equal(found.logits, model.predict(prepared.double()).logits)
    assert np.array_equal(model.predict([pictures(2), pictures(4)[2:]]).logits, found.logits)


def test_probabilities_and_the_top_against_numpy(model):
    found = model.predict(pictures())
    powers = np.exp(found.logits.astype(np.float64))
    np.testing.assert_allclose(found.probabilities, powers / powers.sum(axis=1, keepdims=True), rtol=1e-12)
    for row, top in zip(powers / powers.sum(axis=1, keepdims=True), found.top(4), strict=True):
        labels = sorted(range(6), key=lambda label: -row[label])[:4]
        assert [label for label, _, _ in top] == labels
        assert [value for _, _, value in top] == pytest.approx(row[labels].tolist(), rel=1e-12)
        assert [name for _, name, _ in top] == [model.class_names[label] for label in labels]
    assert found.names == [top[0][1] for top in found.top(1)]
    assert [len(top) for top in found.top(100)] == [6, 6, 6]


def test_the_table_has_a_line_for_each_of_the_top(model):
    found = model.predict(pictures(2))
    lines = found.table(2).splitlines()
    (_, name, value), (_, second, _) = found.top(2)[0]
    assert lines[0].split() == ["image", "rank", "class", "probability"]
    assert lines[1].split() == ["image", "0", "1", name, f"{100 * value:.2f}%"]
    assert lines[2].split()[:2] == ["2", second]
    assert len(lines) == 5
    assert repr(found) == found.table(5)


def test_features_are_what_the_head_gets(model):
    features = model.features(pictures())
    assert features.shape == (3, 16)
    fc = model.network.fc
    expected = features @ fc.weight.numpy().T + fc.bias.numpy()
    np.testing.assert_allclose(model.predict(pictures()).logits, expected, atol=1e-5)


def test_nothing_learns_and_nothing_is_in_training_mode(model):
    model.predict(pictures())
    assert not any(module.training for module in model.network.modules())
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_the_names_of_the_classes_are_those_of_the_checkpoint(tmp_path):
    tensors, meta = read_checkpoint(FILE)
    names = ["Vögel", "fish", "1", "b c", "x", "y", "never learned"]
    save_checkpoint(tmp_path / "named.safetensors", tensors, {**meta, "class_names": names})
    model = load_run(tmp_path / "named.safetensors")
    assert model.class_names == tuple(names[:6])


def test_without_names_the_classes_are_the_stored_numbers_and_a_warning_says_so(caplog):
    model = load_run(NESTED, task=0)
    assert list(model.class_names) == [str(label) for label in model.meta["class_order"][:2]]
    (message,) = caplog.messages
    assert "holds no names of classes; they are called by their numbers, as the data set stores them" in message


def test_a_run_may_lie_elsewhere_and_its_images_be_gone(tmp_path, monkeypatch):
    shutil.copytree(NESTED, tmp_path / "moved here")
    monkeypatch.chdir(tmp_path)
    assert load_run("moved here").file == Path("moved here/checkpoints/task_2.safetensors")
    assert load_run("moved here/checkpoints", 1).file == Path("moved here/checkpoints/task_1.safetensors")


def test_a_public_checkpoint_needs_a_configuration_and_gives_the_recorded_logits(tmp_path, caplog):
    record = Record("sgd_expand")
    save_file(backbone_weights(record.shape), tmp_path / "vit.safetensors")
    known = {key: value for key, value in record.config.items() if key in schemas()}
    weights = {"backbone_kwargs": record.shape, "backbone_checkpoint": str(tmp_path / "vit.safetensors")}
    (tmp_path / "public.json").write_text(json.dumps({**known, **weights, "dataset": "npz"}))
    with pytest.raises(CheckpointError, match="holds no configuration; give one with --config"):
        load_run(record.checkpoint)
    model = load_run(record.checkpoint, config=tmp_path / "public.json")
    found = model.predict(RecordedTasks(record).test_images())
    np.testing.assert_allclose(found.logits, record.logits[-1], rtol=0, atol=record.tolerance)
    assert model.class_names == tuple(str(label) for label in range(record.config["nb_classes"]))
    assert "in the order of learning" in caplog.text


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no image is given"),
        (np.zeros((5, 5), np.float32), "image 0 is float32 of shape (5, 5); expected paths"),
        ([pictures()[0], np.zeros((3, 20, 20), np.uint8)], "image 1 is uint8 of shape (3, 20, 20)"),
        (np.zeros((0, 4, 3), np.uint8), "image 0 is uint8 of shape (0, 4, 3)"),
        (torch.zeros(2, 3, 20, 20), "image 0 is torch.float32 of shape (3, 20, 20)"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), "image 0 is torch.uint8"),
        (7, "image 0 is int"),
        ([None], "image 0 is NoneType"),
    ],
)
def test_what_is_no_image_is_named(model, images, message):
    with pytest.raises(DataError) as error:
        model.predict(images)
    assert message in str(error.value)


def test_unreadable_files_are_named_before_anything_is_computed(model, tmp_path, monkeypatch):
    Image.fromarray(pictures()[0]).save(tmp_path / "good.png")
    for name in ("bad.png", "worse.jpg"):
        (tmp_path / name).write_text("text")
    monkeypatch.setattr(SEMAVitNet, "forward", None)
    with pytest.raises(DataError, match=r"(?s)bad\.png.*worse\.jpg.*unreadable files: 2; .*on_bad_image"):
        model.predict(tmp_path)


def test_unreadable_files_are_left_out_and_counted_if_so_configured(tmp_path, caplog):
    Image.fromarray(pictures()[0]).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    model = load_run(NESTED, on_bad_image="skip")
    found = model.predict([tmp_path / "cut.png", tmp_path / "good.png"])
    assert (found.images, found.left_out) == ([str(tmp_path / "good.png")], 1)
    assert "cut.png: not a readable image" in caplog.text
    with pytest.raises(DataError, match="none of the images can be read; left out: 1"):
        model.predict(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("run", "keys", "message"),
    [
        ("nested-c1080012-s5", {}, "does not exist; did you mean nested-c1080012-s4?"),
        (".", {}, "holds no checkpoint (checkpoints/task_T.safetensors); run directories in it: "),
        ("nested-c1080012-s4", {"task": 7}, "has checkpoints of the tasks [0, 1, 2]"),
        ("nested-c1080012-s4/checkpoints/task_0.safetensors", {"task": 0}, "is no run directory"),
        (
            "nested-c1080012-s4",
            {"devise": "cpu"},
            'devise = "cpu" (argument devise): unknown key; did you mean device?',
        ),
        ("nested-c1080012-s4", {"batch_size": 0}, "batch_size = 0 (argument batch_size): expected an integer"),
        ("nested-c1080012-s4", {"device": "cuda:99"}, "this machine has no GPU 99"),
        ("nested-c1080012-s4", {"nested_lora_rank": 3, "ffn_adapter_type": "adaptmlp"}, "holds nested_lora adapters"),
        ("images.npz", {}, "holds no configuration"),
    ],
)
def test_what_cannot_be_loaded_is_named(run, keys, message):
    with pytest.raises(UserError) as error:
        load_run(RECORDED / run, **keys)
    assert message in str(error.value)


def test_a_checkpoint_without_a_head_is_named(tmp_path):
    tensors, meta = read_checkpoint(FILE)
    del tensors["fc.weight"]
    save_checkpoint(tmp_path / "a.safetensors", tensors, meta)
    with pytest.raises(CheckpointError, match="has no head"):
        load_run(tmp_path / "a.safetensors")


def test_the_transform_normalises_if_the_run_did(tmp_path):
    tensors, meta = read_checkpoint(FILE)
    meta["config"]["normalize"] = True
    save_checkpoint(tmp_path / "a.safetensors", tensors, meta)
    model = load_run(tmp_path / "a.safetensors")
    assert model._spec == InputSpec(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    white = model.transform(Image.new("RGB", (20, 20), "white"))
    torch.testing.assert_close(white, torch.ones(3, 16, 16))


def test_moved_weights_of_the_backbone_are_named_by_their_key(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone_checkpoint .*gone\.safetensors.* does not exist"):
        load_run(NESTED, backbone_checkpoint=str(tmp_path / "gone.safetensors"))
