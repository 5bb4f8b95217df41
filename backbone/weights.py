"""Read the backbone's weights from a file, whoever wrote it, without running code of the file.

Trainers store a network's tensors under various keys (`state_dict`, `model_ema`, ...), with prefixes of the modules
around it (`module.`, `backbone.`, ...), and beside objects of their own, such as arguments.
"""

import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
PREFERRED = ("model", "state_dict", "module", "teacher", "target_encoder", "encoder")  # if several networks fit equally
ANCHOR = "blocks.0.norm1.weight"  # a name that every network of timm's has
# Parts around a backbone that are not used: classifiers, decoders, projections.
OTHER_PARTS = re.compile(
    r"(head|head_dist|fc|classifier|pre_logits|mask_token|decoder|proj|predict|prototypes|mlp_head)"
)
MAGIC = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights; fetch them with: git lfs pull",
    b"\x89HDF": "is an HDF5 file, as Keras writes; convert it to a PyTorch state dict",
    b"GGUF": "is a GGUF file; expected safetensors or a PyTorch state dict",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"\x93NUMPY": "is a single NumPy array; expected the tensors of a network",
}
FOREIGN = {  # by a part of a tensor's name: where the file comes from
    "adapter_module.": "is a checkpoint of a run, which has no backbone; give it as checkpt_path",
    "embeddings.patch_embeddings": "has the names of Hugging Face transformers; use timm's file of the same weights",
    "embeddings.patch_embedding.": "has the names of Hugging Face transformers; use timm's file of the same weights",
    "encoder_layer_0": "has the names of torchvision's ViT; use a file with timm's names",
    "visual.": "is a CLIP model; its backbone_type is a vit_..._clip_..._adapter of timm",
    "norm_pre.": "is of a network with a norm before its blocks, as CLIP's; choose such a backbone_type",
    "layer1.0.conv1": "is a ResNet; expected the weights of a VisionTransformer",
    "layers.0.blocks.0": "is a Swin Transformer; expected the weights of a VisionTransformer",
}


class WeightsError(ValueError):
    """A file that cannot be used as weights; the text says what it is and what to do."""


def is_jax(path: Path) -> bool:
    """Return whether a file is an archive of NumPy arrays, as JAX's Vision Transformers are published."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_weights(path: Path, vit: VisionTransformer) -> State:
    """Return the tensors of a file under the names of `vit`, on its grid of positions.

    Raises:
        WeightsError: The file holds no such tensors.
    """
    refuse_other_files(path)
    found = list(_networks(_read(path)))
    if not found:
        raise WeightsError("holds no tensors with names; expected a state dict")
    found.sort(key=lambda item: _preference(item[0]))
    fitting = [item for item in found if any(name.endswith(ANCHOR) for name in item[1])]
    place, state = fitting[0] if fitting else max(found, key=lambda item: len(item[1]))
    prefix = next((name.removesuffix(ANCHOR) for name in state if name.endswith(ANCHOR)), "")
    if "visual" in prefix or "vision_encoder" in prefix:
        prefix = ""  # timm knows these
    names = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    used = checkpoint_filter_fn({name: value for name, value in names.items() if not OTHER_PARTS.match(name)}, vit)
    if place or prefix or len(used) < len(state):
        what = f"key {'.'.join(place) or '-'}, prefix {prefix or '-'}"
        logger.info("backbone_checkpoint %s: %s, %d of %d tensors used", path, what, len(used), len(state))
    return {name: value for name, value in used.items() if not OTHER_PARTS.match(name)}


def refuse_other_files(path: Path) -> None:
    """Raise WeightsError for a path that is no file of tensors at all, from its first bytes."""
    if path.is_dir():
        there = sorted(
            entry.name for entry in path.iterdir() if entry.suffix in (".safetensors", ".pth", ".pt", ".bin")
        )
        raise WeightsError("is a directory" + (f"; name a file in it: {', '.join(there[:5])}" if there else ""))
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise WeightsError("is empty; fetch it again")
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            raise WeightsError(what)
    if start.lstrip()[:1] == b"<":
        raise WeightsError("is an HTML or XML page, not weights; fetch the file itself, by its link for downloads")
    if start.isascii() and start.decode().isprintable() | (b"\n" in start) and start[:1] not in b"\x80P(]}":
        raise WeightsError("is a text file, not weights; expected a safetensors or torch file")


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _read(path: Path) -> Any:
    if _is_safetensors(path):
        return load_file(path)
    if path.suffix == ".safetensors":
        raise WeightsError("is damaged or no safetensors file; fetch it again")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [Path(name).name for name in archive.namelist()]
        if "constants.pkl" in names:
            raise WeightsError("is a TorchScript program; save its state_dict() with torch.save, and name that file")
        if "data.pkl" not in names:
            raise WeightsError("is a zip archive without tensors; unpack it, and name the file of the weights in it")
        strangers = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    else:
        strangers = []  # torch does not list them for files in its old format
    try:
        with torch.serialization.safe_globals([(Unknown, name) for name in strangers]):
            return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and not strangers:
            raise
        raise WeightsError(
            "holds objects of other classes than torch's, so it is not read; where you trust it: state = "
            'torch.load(file, weights_only=False), then torch.save of its tensors alone, such as state["model"]'
        ) from error


class Unknown:
    """Stands for any object of a class that is not torch's, which is neither imported nor made."""

    def __new__(cls, *_: object, **__: object) -> "Unknown":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _networks(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield every mapping of names to tensors within a file, with its place in it."""
    if not isinstance(value, Mapping) or len(place) > 3:
        return
    if tensors := {name: v for name, v in value.items() if isinstance(name, str) and isinstance(v, Tensor)}:
        yield place, tensors
    for name, inner in value.items():
        yield from _networks(inner, (*place, str(name)))


def _preference(place: tuple[str, ...]) -> int:
    known = [PREFERRED.index(name) for name in place if name in PREFERRED]
    return min(known) if known else -1 if not place else len(PREFERRED)


def unlike(vit: VisionTransformer, state: Mapping[str, Tensor]) -> str:
    """Return in one sentence how a file's tensors differ from the network's; empty: names and shapes are equal."""
    own = vit.state_dict()
    for part, what in FOREIGN.items():
        if any(part in name for name in state) and not any(part in name for name in own):
            return what
    missing, unknown = [n for n in own if n not in state], [n for n in state if n not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(value.shape)} in the backbone"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if not missing and (bad := [name for name in own if not _is_finite(state[name])]):
        return f"holds values that are not finite numbers: {_some(bad)}"
    parts = [
        *([f"{len(shapes)} shapes differ: {shapes[0]}"] if shapes else []),
        *([f"missing: {_some(missing)}"] if missing else []),
        *([f"unknown: {_some(unknown)}"] if unknown else []),
    ]
    return "does not fit the backbone; " + "; ".join(parts) if parts else ""


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@torch.no_grad()
def load_jax(vit: VisionTransformer, path: Path) -> None:
    """Load the arrays of a Vision Transformer of JAX (Flax), by timm's own reader.

    Raises:
        WeightsError: The arrays are those of another network.
    """
    with np.load(path) as arrays:
        blocks = {int(n) for name in arrays for n in re.findall(r"encoderblock_(\d+)/", name)}
        width = next((arrays[name].shape[-1] for name in arrays if name.endswith("embedding/kernel")), None)
    if width is None or not blocks:
        raise WeightsError("is an archive of NumPy arrays, but not of a Vision Transformer of JAX (Flax)")
    if (len(blocks), width) != (len(vit.blocks), vit.embed_dim):
        here = f"{len(vit.blocks)} blocks of width {vit.embed_dim}"
        raise WeightsError(f"does not fit the backbone; it has {len(blocks)} blocks of width {width}, expected {here}")
    vit.load_pretrained(str(path))
