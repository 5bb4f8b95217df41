"""Checkpoints: one safetensors file per task with everything that evaluation needs.

Those of the public implementation, which torch.save wrote, can be read too. Reading runs no code of a file.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from utils.files import atomic_write
from utils.runs.checkpoint_meta import FORMAT as FORMAT
from utils.runs.checkpoint_meta import CheckpointError as CheckpointError
from utils.runs.checkpoint_meta import read_config as read_config
from utils.runs.checkpoint_meta import read_meta as read_meta
from utils.text import shown_key

NO_CHECKPOINT = "it is damaged, or no checkpoint; expected a file such as logs/RUN/checkpoints/task_0.safetensors"
WRAPPER = "module."  # before the names of a network in DataParallel
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata atomically."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    atomic_write(path, save(contiguous, {"format": FORMAT, "meta": json.dumps(meta)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a checkpoint. The public implementation's have no metadata.

    Raises:
        CheckpointError: The file is missing, damaged or not a checkpoint.
    """
    meta = read_meta(path)
    try:
        return _read_tensors(path), meta
    except Exception as error:  # a damaged file can raise nearly anything
        reason = error if type(error) in (ValueError, BadZipFile) else NO_CHECKPOINT
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {reason}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return tensors that are dense, in main memory, and together no larger than the file."""
    refuse_packed(path)
    stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    tensors = _unwrapped(stored)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError("it is not a mapping of names to tensors")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; expected dense floats")
        if tensor.numel() == 0 and tensor.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} and no elements")
    claimed, held = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if claimed > held:  # in a torch file, many elements or tensors can share one number
        raise ValueError(f"its tensors claim {claimed:,} bytes, the file has {held:,}")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds values that are NaN or infinite")
    prefix = WRAPPER if all(str(name).startswith(WRAPPER) for name in tensors) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _unwrapped(stored: Any) -> Any:
    """Return the one mapping in a mapping, as where tensors were saved with a number of the epoch or the task."""
    inner = [value for value in stored.values() if isinstance(value, Mapping)] if isinstance(stored, Mapping) else []
    return inner[0] if len(inner) == 1 else stored


def refuse_packed(path: Path) -> None:
    """Refuse a torch file with compressed parts, which can be much larger in memory than on disk.

    Raises:
        ValueError: A part is compressed.
        OSError: The file cannot be read.
        BadZipFile: The file is damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # safetensors, or torch's old format
    with ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != ZIP_STORED:
                raise ValueError(f"{info.filename} in it is compressed, which torch.save and numpy.savez never do")


# ---- what names and shapes say


class SlotShape(NamedTuple):
    """The structure of one layer's slot.

    Attributes:
        adapters: For every adapter the shapes of its tensors by name.
        records: For every descriptor the number of recorded losses.
        expanding: Whether the newest adapter still has a router of its own.
    """

    adapters: list[dict[str, tuple[int, ...]]]
    records: list[int]
    expanding: bool


NUMBER = "([0-9]{1,6})"  # no run has longer numbers
SLOT = rf"backbone\.blocks\.{NUMBER}\.adapter_module\.adapters\.{NUMBER}\."
FUNCTIONAL = re.compile(SLOT + r"functional\.(.+)")
RECORDS = re.compile(SLOT + r"records\.losses")
NEW_ROUTER = "backbone.blocks.{}.adapter_module.new_router.weight"


def adapter_type(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], branches: Mapping[str, tuple[str, ...]]
) -> str:
    """Return the adapter type that the metadata states, or else the type whose branches are those of the tensors."""
    stated = meta.get("adapter_type") or meta.get("config", {}).get("ffn_adapter_type")
    if stated:
        return str(stated)
    found = {match[3].partition(".")[0] for match in map(FUNCTIONAL.fullmatch, tensors) if match}
    return next((kind for kind, names in branches.items() if names and found == set(names)), "adaptmlp")


def structure(tensors: Mapping[str, Tensor]) -> dict[int, SlotShape]:
    """Return the structure of every layer, from the names and shapes of its tensors."""
    adapters: dict[int, dict[int, dict[str, tuple[int, ...]]]] = defaultdict(lambda: defaultdict(dict))
    records: dict[int, dict[int, int]] = defaultdict(dict)
    for key, value in tensors.items():
        if match := FUNCTIONAL.fullmatch(key):
            adapters[int(match[1])][int(match[2])][match[3]] = tuple(value.shape)
        elif match := RECORDS.fullmatch(key):
            records[int(match[1])][int(match[2])] = value.shape[0] if value.dim() else 0
    return {
        layer: SlotShape(
            [found[number] for number in sorted(found)],
            [records[layer][number] for number in sorted(records[layer])],
            NEW_ROUTER.format(layer) in tensors,
        )
        for layer, found in adapters.items()
    }


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is missing, unexpected or of another shape. Records may be missing."""
    lines = []
    for key in expected.keys() | given.keys():
        here, there = (tuple(side[key].shape) if key in side else None for side in (expected, given))
        if here is None:
            lines.append(f"unexpected {shown_key(key)} {there}")
        elif there is None and not key.endswith("records.losses"):
            lines.append(f"missing {key} {here}")
        elif there not in (None, here):
            lines.append(f"{key} is {there} there, {here} here")
    return sorted(lines)
