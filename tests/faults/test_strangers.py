"""Checkpoints, configurations and runs that come from strangers: believed only as far as they can be checked."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_record import fault
from finished_runs import write_run
from input_runs import KEYS, Caller, make_images
from safetensors.torch import load_file, save_file

import main
from tools.compare.__main__ import main as compare
from utils.runs.checkpoint import FORMAT, read_meta

Change = Callable[[dict[str, Any]], dict[str, Any]]
SLOW = "backbone.blocks.1.adapter_module.adapters.0.functional.slow.down_proj.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks with nested adapters, and its images beside it."""
    folder = tmp_path_factory.mktemp("trained")
    images = make_images(folder / "images", {"a": 3, "b": 3, "c": 3})
    keys = {**KEYS, "ffn_adapter_type": "nested_lora", "nested_lora_rank": 2}
    (folder / "run.json").write_text(json.dumps({**keys, "data_root": str(images), "output_dir": str(folder / "logs")}))
    assert main.main(["--config", str(folder / "run.json")]) == 0
    return folder


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy of its checkpoint."""
    (source,) = trained.glob("logs/*/checkpoints/task_1.safetensors")
    return Path((tmp_path / "a.safetensors").write_bytes(source.read_bytes()) and tmp_path / "a.safetensors")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Path) -> Callable[..., str]:
    """Evaluate a checkpoint that is to be refused; the message, which is the user's to understand."""

    def evaluate(path: Path, *flags: str) -> str:
        before = sorted(trained.rglob("*"))
        code, message = Caller(tmp_path, capsys).main("--eval", "--checkpt_path", str(path), *flags)
        assert code == 2
        assert "Traceback" not in message
        assert sorted(trained.rglob("*")) == before
        return message

    return evaluate


def with_meta(path: Path, change: Change) -> Path:
    save_file(load_file(path), path, {"format": FORMAT, "meta": json.dumps(change(read_meta(path)))})
    return path


def test_the_checkpoint_itself_is_evaluated(checkpoint, tmp_path, capsys):
    assert Caller(tmp_path, capsys).main("--eval", "--checkpt_path", str(checkpoint)) == (
        0,
        f"checkpoint {checkpoint}\n",
    )


# ---- checkpoints


@fault("a truncated checkpoint", "its last third cut off")
def test_a_truncated_checkpoint(checkpoint, refused):
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size * 2 // 3])
    assert f"checkpoint '{checkpoint}' cannot be read: " in refused(checkpoint)


@fault("a checkpoint with a damaged header", "one bit of its header flipped")
def test_a_checkpoint_with_a_damaged_header(checkpoint, refused):
    content = bytearray(checkpoint.read_bytes())
    content[40] ^= 0x80
    checkpoint.write_bytes(content)
    assert f"checkpoint '{checkpoint}' cannot be read: " in refused(checkpoint)


@fault(
    "a checkpoint of another model", "evaluated with another depth, width, adapter type or seed of the random weights"
)
def test_a_checkpoint_of_another_model(checkpoint, refused):
    shape = KEYS["backbone_kwargs"]
    deeper, wider = ({**shape, key: value} for key, value in (("depth", 3), ("embed_dim", 32)))
    for shape in (deeper, wider):
        assert "trained with backbone_kwargs = " in refused(checkpoint, "--backbone_kwargs", json.dumps(shape))
    assert "the checkpoint was made on" in refused(checkpoint, "--seed", "5")
    assert "nested_lora adapters, the configuration asks for adaptmlp" in refused(
        checkpoint, "--ffn_adapter_type", "adaptmlp"
    )


@fault("a checkpoint that claims a giant tensor", "a header with a rank of 10^15, and no bytes for it")
def test_a_checkpoint_that_claims_a_giant_tensor(checkpoint, refused):
    content = checkpoint.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["x"] = {"dtype": "F32", "shape": [10**15, 0], "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    checkpoint.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert "x has shape (1000000000000000, 0) and no elements" in refused(checkpoint)


@fault("a checkpoint that repeats a tensor without storing it", "a .pth whose slow adapter is one number, 10^12 times")
def test_a_checkpoint_that_repeats_a_tensor(checkpoint, refused, trained, tmp_path):
    tensors = {**load_file(checkpoint), SLOW: torch.ones(1).expand(10**12, 16)}
    torch.save(tensors, tmp_path / "a.pth")
    message = refused(tmp_path / "a.pth", "--config", str(trained / "run.json"))
    assert "its tensors claim 64,000,000" in message


@fault("a checkpoint with thousands of adapters", "names of 5,000 adapters at one layer, for three classes")
def test_a_checkpoint_with_thousands_of_adapters(checkpoint, refused):
    tensors = {SLOW.replace("adapters.0", f"adapters.{n}"): torch.ones(1, 16) for n in range(9, 5009)}
    save_file(
        load_file(checkpoint) | tensors, checkpoint, {"format": FORMAT, "meta": json.dumps(read_meta(checkpoint))}
    )
    assert re.search(
        r"500\d adapters .* at layer 1; expected at most 3 adapters, one for each class", refused(checkpoint)
    )


@fault("a pickle that runs code", "a .pth whose pickle touches a file")
def test_a_pickle_that_runs_code(refused, trained, tmp_path):
    class Stranger:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"fc.weight": Stranger()}, tmp_path / "a.pth")
    assert "cannot be read" in refused(tmp_path / "a.pth", "--config", str(trained / "run.json"))
    assert not (tmp_path / "ran").exists()


WRONG: dict[str, tuple[Change, str]] = {
    "task_sizes": (lambda meta: {**meta, "task_sizes": ["2"]}, "task_sizes.0 = "),
    "accuracy": (lambda meta: {**meta, "accuracy": {"correct": []}}, "accuracy = "),
    "class_order": (lambda meta: {**meta, "class_order": [1, 0, 2]}, "another class order"),
    "class_names": (lambda meta: {**meta, "class_names": meta["class_names"][::-1]}, "the checkpoint: class 0 is "),
    "backbone": (lambda meta: {**meta, "backbone": {"sha256": 3}}, "backbone.timm_name: field required; "),
    "config": (lambda meta: {**meta, "config": [1]}, "config = [1]"),
    "more classes": (lambda meta: {**meta, "task_sizes": [2, 2]}, "knows 4 classes, there are 3"),
    "more tasks": (lambda meta: {**meta, "task_sizes": [1, 1, 1]}, "of other tasks or test images"),
    "nothing": (
        lambda meta: {"config": meta["config"]},
        "has no task_sizes, class_order, accuracy, backbone",
    ),
}


@pytest.mark.parametrize("what", WRONG)
@fault("a checkpoint with made-up metadata", "task sizes, accuracies, class order, backbone or configuration replaced")
def test_a_checkpoint_with_made_up_metadata(checkpoint, refused, what):
    change, message = WRONG[what]
    assert message in refused(with_meta(checkpoint, change))


@fault("a checkpoint of other test images", "a test image removed after training")
def test_a_checkpoint_of_other_test_images(checkpoint, refused, tmp_path):
    images = make_images(tmp_path / "images", {"a": 3, "b": 3, "c": 3})
    (images / "test" / "a" / "0.png").unlink()
    assert "not those of the checkpoint: 6 then, 5 now; restore" in refused(checkpoint, "--data_root", str(images))


# ---- configurations


@fault("a configuration whose network no memory holds", "embed_dim 2^20 in the configuration of a checkpoint")
def test_a_checkpoint_whose_network_no_memory_holds(checkpoint, refused):
    kwargs = {**KEYS["backbone_kwargs"], "embed_dim": 2**20}
    with_meta(checkpoint, lambda meta: {**meta, "config": {**meta["config"], "backbone_kwargs": kwargs}})
    assert "bytes, the memory here is " in refused(checkpoint)


@fault("a configuration that writes elsewhere", "timm's cache_dir in the configuration of a checkpoint")
def test_a_checkpoint_that_would_write_elsewhere(checkpoint, refused):
    kwargs = {**KEYS["backbone_kwargs"], "cache_dir": "/etc"}
    with_meta(checkpoint, lambda meta: {**meta, "config": {**meta["config"], "backbone_kwargs": kwargs}})
    assert "cache_dir is not passed on to timm; use" in refused(checkpoint)


@pytest.mark.parametrize("name", ["..json", "....json", "a\nb.json", "~.json", "-.json", "%2e%2e.json"])
@fault(
    "a configuration with a name that leads elsewhere", "files such as ..json; the run's directory is named after them"
)
def test_a_run_stays_in_its_output_directory_whatever_its_file_is_called(tmp_path, capsys, name):
    images = make_images(tmp_path / "images", {"a": 2, "b": 2})
    config = tmp_path / "in" / name
    config.parent.mkdir()
    keys = {**KEYS, "data_root": str(images), "output_dir": str(tmp_path / "logs"), "prefix": "../../x"}
    config.write_text(json.dumps(keys))
    assert Caller(tmp_path, capsys).main("--config", str(config))[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"images", "in", "logs"}
    assert list(config.parent.iterdir()) == [config]
    (run,) = (tmp_path / "logs").iterdir()
    assert (run / "results.json").exists()


# ---- runs


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl", "results.json"])
@fault("a run directory with a damaged file", "a file cut in its middle, then replaced by 100,000 brackets")
def test_a_run_directory_with_a_damaged_file(tmp_path, capsys, name):
    file = write_run(tmp_path, "a", 1, [[90], [80, 70]]) / name
    for content in (file.read_bytes()[: file.stat().st_size // 2], b"[" * 100_000):
        file.write_bytes(content)
        assert compare([str(file.parent)]) == 2
        assert str(file) in capsys.readouterr().err


@fault("a run directory edited by hand", "one more right answer in results.json")
def test_a_run_directory_edited_by_hand(tmp_path, capsys):
    file = write_run(tmp_path, "a", 1, [[90], [80, 70]]) / "results.json"
    results = json.loads(file.read_text())
    results["accuracy"]["correct"][1][0] += 1
    file.write_text(json.dumps(results))
    assert compare([str(file.parent)]) == 2
    assert "a file was edited or is damaged" in capsys.readouterr().err
