# ruff: noqa: E501
"""Files of weights as various programs write them: loaded, or told what they are."""

import argparse
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from backbone.vit_sema import BackboneError, load_weights, sketch_vit

NAME = "vit_tiny_patch16_224"
SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
State = dict[str, Tensor]


class Settings:
    """Of a trainer: a class that a reader need not have."""


@pytest.fixture
def state() -> State:
    """The values of another network, with a classifier of seven classes."""
    torch.manual_seed(1)
    return timm.create_model(NAME, num_classes=7, **SHAPE).state_dict()


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(2)
    return timm.create_model(NAME, num_classes=0, **SHAPE)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def bare(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def zeros(state: State) -> State:
    return {name: torch.zeros_like(value) for name, value in state.items()}


KINDS: dict[str, Callable[[State], Any]] = {
    **{
        f"prefix {prefix}": lambda s, prefix=prefix: {"state_dict": prefixed(prefix, s), "epoch": 3}
        for prefix in ("module.", "model.", "backbone.", "encoder.", "_orig_mod.", "module.backbone.", "net.vit.")
    },
    **{
        f"key {key}": lambda s, key=key: {key: s, "optimizer": {"state": {0: {"momentum": torch.ones(3)}}}}
        for key in ("state_dict", "model", "model_ema", "state_dict_ema", "teacher", "encoder", "network", "anything")
    },
    "two keys deep": lambda s: {"state": {"model": prefixed("module.", s)}, "lr": 0.1},
    "student and teacher": lambda s: {
        "student": prefixed("module.backbone.", zeros(s)),
        "teacher": prefixed("backbone.", s),
    },
    "model and its average": lambda s: {"model_ema": zeros(s), "model": s},
    "two encoders": lambda s: prefixed("base_encoder.", s) | prefixed("momentum_encoder.", zeros(s)),
    "a detector": lambda s: {"model": prefixed("backbone.", s) | {"neck.conv.weight": torch.ones(3, 3)}},
    "a Namespace": lambda s: {
        "model": s,
        "args": argparse.Namespace(lr=0.1, path=Path("x"), more=SimpleNamespace(a=1)),
    },
    "a class of its own": lambda s: {"model": s, "settings": Settings(), "loss": np.float64(0.5)},
    "half precision": lambda s: {name: value.half() for name, value in s.items()},
    "bfloat16": lambda s: {name: value.bfloat16() for name, value in s.items()},
    "doubles": lambda s: {name: value.double() for name, value in s.items()},
    "a masked autoencoder": lambda s: {
        "model": bare(s) | {"mask_token": torch.zeros(1, 1, 32), "decoder_embed.weight": torch.ones(2, 32)}
    },
    "DINO's head": lambda s: {"teacher": prefixed("backbone.", bare(s)) | {"head.mlp.0.weight": torch.ones(4, 32)}},
    "a projection": lambda s: bare(s) | {"projector.0.weight": torch.ones(4, 32), "predictor.bias": torch.ones(4)},
    "parameters": lambda s: {name: torch.nn.Parameter(value) for name, value in s.items()},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_trainers_load(vit: VisionTransformer, state: State, tmp_path: Path, kind: str, zipped: bool) -> None:
    stored, path = KINDS[kind](state), tmp_path / "w.pth"
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    if not zipped and kind in ("a Namespace", "a class of its own"):
        with pytest.raises(BackboneError, match=r"w\.pth' holds objects of other classes than torch's"):
            load_weights(vit, path)
        return
    load_weights(vit, path)
    rounding = {"half precision": torch.float16, "bfloat16": torch.bfloat16}.get(kind, torch.float32)
    for name, value in vit.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].to(rounding).float()), name


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors", "w"])
def test_the_content_of_a_file_decides_and_not_its_name(
    vit: VisionTransformer, state: State, tmp_path: Path, name: str
):
    save_file(state, tmp_path / name)
    load_weights(vit, tmp_path / name)
    assert torch.equal(vit.norm.weight, state["norm.weight"])
    assert torch.equal(vit.pos_embed, state["pos_embed"])


def test_nothing_of_a_file_is_imported_or_run(vit: VisionTransformer, state: State, tmp_path: Path) -> None:
    class Deadly:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": state, "args": Deadly()}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="holds objects of other classes than torch's"):
        load_weights(vit, tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


# ---- JAX


def flax(state: State) -> dict[str, np.ndarray]:
    """The names and shapes of Google's published ViT arrays, written out from timm's values."""
    v = {name: value.numpy() for name, value in state.items()}
    heads, width = 2, 32
    arrays = {
        "embedding/kernel": v["patch_embed.proj.weight"].transpose(2, 3, 1, 0), "embedding/bias": v["patch_embed.proj.bias"],
        "cls": v["cls_token"], "Transformer/posembed_input/pos_embedding": v["pos_embed"],
        "Transformer/encoder_norm/scale": v["norm.weight"], "Transformer/encoder_norm/bias": v["norm.bias"],
        "head/kernel": v["head.weight"].T, "head/bias": v["head.bias"],
    }  # fmt: skip
    for n in range(2):
        block, there = f"blocks.{n}.", f"Transformer/encoderblock_{n}/"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{there}{theirs}/scale"], arrays[f"{there}{theirs}/bias"] = (
                v[f"{block}{ours}.weight"],
                v[f"{block}{ours}.bias"],
            )
        attention = f"{there}MultiHeadDotProductAttention_1/"
        for k, part in enumerate(("query", "key", "value")):
            weight, bias = v[f"{block}attn.qkv.weight"], v[f"{block}attn.qkv.bias"]
            arrays[f"{attention}{part}/kernel"] = weight[k * width : (k + 1) * width].T.reshape(
                width, heads, width // heads
            )
            arrays[f"{attention}{part}/bias"] = bias[k * width : (k + 1) * width].reshape(heads, width // heads)
        arrays[f"{attention}out/kernel"] = v[f"{block}attn.proj.weight"].T.reshape(heads, width // heads, width)
        arrays[f"{attention}out/bias"] = v[f"{block}attn.proj.bias"]
        for k in (1, 2):
            arrays[f"{there}MlpBlock_3/Dense_{k - 1}/kernel"] = v[f"{block}mlp.fc{k}.weight"].T
            arrays[f"{there}MlpBlock_3/Dense_{k - 1}/bias"] = v[f"{block}mlp.fc{k}.bias"]
    return arrays


def test_arrays_of_jax_load(vit: VisionTransformer, state: State, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **flax(state))
    load_weights(sketch_vit(NAME, False, SHAPE), tmp_path / "w.npz")
    load_weights(vit, tmp_path / "w.npz")
    for name, value in vit.state_dict().items():
        torch.testing.assert_close(value, state[name], msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: {k: v for k, v in a.items() if "encoderblock_1" not in k},
            "it has 1 blocks of width 32, expected 2",
        ),
        (lambda a: {**a, "Transformer/encoderblock_2/LayerNorm_0/scale": np.ones(32)}, "it has 3 blocks of width 32"),
        (lambda a: {"x_train": np.ones(3)}, "is an archive of NumPy arrays, but not of a Vision Transformer"),
        (lambda a: {k: v for k, v in a.items() if k != "cls"}, "cannot be read as weights"),
    ],
)
def test_arrays_of_another_network_are_refused(
    vit: VisionTransformer, state: State, tmp_path: Path, change: Callable[..., Mapping[str, np.ndarray]], message: str
) -> None:
    np.savez(tmp_path / "w.npz", **change(flax(state)))
    with pytest.raises(BackboneError, match=message):
        load_weights(vit, tmp_path / "w.npz")


# ---- other files


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/weights.bin", b"")


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "is a Git LFS pointer"),
    "a page": (lambda p: p.write_text("<!DOCTYPE html>\n<html>404</html>"), "is an HTML or XML page"),
    "an empty file": (Path.touch, "is empty"),
    "a text": (lambda p: p.write_text("Not found\n"), "is a text file, not weights"),
    "an index": (lambda p: p.write_text(json.dumps({"weight_map": {}})), "is a text file, not weights"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08\x00" + bytes(40)), "is compressed with gzip"),
    "Keras": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)), "is an HDF5 file"),
    "an archive": (archive, "is a zip archive without tensors"),
    "a folder": (Path.mkdir, "is a directory"),
    "a program": (lambda p: torch.jit.script(torch.nn.Linear(1, 1)).save(p), "is a TorchScript program"),
    "a list": (lambda p: torch.save([1, 2], p), "holds no tensors with names"),
    "zeros": (lambda p: p.write_bytes(bytes(4096)), "cannot be read as weights: it is damaged"),
    "half a file": (lambda p: (torch.save({"a": torch.ones(999)}, p), p.write_bytes(p.read_bytes()[:900])), "it is damaged"),
    "a checkpoint of a run": (
        lambda p: save_file({"fc.weight": torch.ones(1), "backbone.blocks.0.adapter_module.router.bias": torch.ones(1)}, p),
        "is a checkpoint of a run",
    ),
    "transformers": (
        lambda p: torch.save({"vit.embeddings.patch_embeddings.projection.weight": torch.ones(1)}, p), "Hugging Face",
    ),
    "torchvision": (
        lambda p: torch.save({"conv_proj.bias": torch.ones(1), "encoder.layers.encoder_layer_0.ln_1.bias": torch.ones(1)}, p),
        "torchvision's ViT",
    ),
    "a ResNet": (lambda p: torch.save({"layer1.0.conv1.weight": torch.ones(1)}, p), "is a ResNet"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_other_files_are_told_what_they_are(vit: VisionTransformer, tmp_path: Path, kind: str) -> None:
    write, message = OTHERS[kind]
    write(tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=rf"^backbone_checkpoint '{tmp_path}/w\.pth' .*{message}") as error:
        load_weights(vit, tmp_path / "w.pth")
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_a_folder_names_its_files(vit: VisionTransformer, tmp_path: Path) -> None:
    for name in ("model.safetensors", "readme.md"):
        (tmp_path / name).touch()
    with pytest.raises(BackboneError, match=r"is a directory; name a file in it: model\.safetensors$"):
        load_weights(vit, tmp_path)


def test_a_hundred_tensors_that_do_not_fit_are_a_few_words(
    vit: VisionTransformer, state: State, tmp_path: Path
) -> None:
    torch.save({name.replace("blocks", "layers"): value for name, value in state.items()}, tmp_path / "w.pth")
    with pytest.raises(
        BackboneError, match=r"missing: blocks.0.* and \d+ more; unknown: layers.0.* and \d+ more$"
    ) as error:
        load_weights(vit, tmp_path / "w.pth")
    assert len(str(error.value)) < 500
    wide = timm.create_model(NAME, num_classes=0, **{**SHAPE, "embed_dim": 64}).state_dict()
    torch.save(wide, tmp_path / "w.pth")
    with pytest.raises(
        BackboneError, match=r"shapes differ: cls_token is \(1, 1, 64\) in the file and \(1, 1, 32\) in the"
    ):
        load_weights(vit, tmp_path / "w.pth")


@pytest.mark.parametrize("spoil", [lambda value: value * torch.nan, lambda value: value + torch.inf, Tensor.int])
def test_weights_that_are_no_finite_numbers_are_named(
    vit: VisionTransformer, state: State, tmp_path: Path, spoil: Callable[[Tensor], Tensor]
) -> None:
    torch.save({**state, "norm.bias": spoil(state["norm.bias"])}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"holds values that are not finite numbers: norm\.bias$"):
        load_weights(vit, tmp_path / "w.pth")


def test_a_check_on_the_meta_device_finds_the_same(state: State, tmp_path: Path) -> None:
    sketch = sketch_vit(NAME, False, SHAPE)
    torch.save(prefixed("module.", state), tmp_path / "w.pth")
    load_weights(sketch, tmp_path / "w.pth")
    torch.save({"norm.weight": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="does not fit the backbone"):
        load_weights(sketch, tmp_path / "w.pth")
