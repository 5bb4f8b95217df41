"""Checkpoints: a safetensors file a task with everything evaluation needs; the public implementation's are read too."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save
from torch import Tensor

from utils.files import atomic_write
from utils.runs.checkpoint_meta import FORMAT as FORMAT
from utils.runs.checkpoint_meta import CheckpointError as CheckpointError
from utils.runs.checkpoint_meta import read_meta as read_meta
from utils.runs.tensor_file import read_tensors
from utils.text import shown_key


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata atomically: the file is there whole or not at all."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    atomic_write(path, save(contiguous, {"format": FORMAT, "meta": json.dumps(meta)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of ours, or of the public implementation's (whose metadata are empty).

    Raises:
        CheckpointError: Missing, unreadable, or a safetensors file that is no checkpoint.
    """
    meta = read_meta(path)
    try:
        return read_tensors(path), meta
    except Exception as error:  # a damaged file can raise nearly anything
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {error}") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration a checkpoint was made with.

    Raises:
        CheckpointError: As `read_meta`, or the file carries none (public `.pth` files do not).
    """
    meta = read_meta(Path(path))
    if "config" not in meta:
        raise CheckpointError(f"checkpoint {str(path)!r} carries no configuration; give one with --config")
    return dict(meta["config"])


class SlotShape(NamedTuple):
    """The structure of one layer's slot.

    Attributes:
        widths: Inner width of every adapter (of slow, if nested).
        records: For each descriptor the number of recorded losses.
        expanding: Whether the newest adapter still has a router of its own.
    """

    widths: list[int]
    records: list[int]
    expanding: bool


NUMBER = "([0-9]{1,6})"  # a name with more digits is none of ours
SLOT = rf"backbone\.blocks\.{NUMBER}\.adapter_module\.adapters\.{NUMBER}\."
INNER = re.compile(SLOT + r"functional\.(?:slow\.)?down_proj\.weight")
RECORDS = re.compile(SLOT + r"records\.losses")
NEW_ROUTER = "backbone.blocks.{}.adapter_module.new_router.weight"


def adapter_type(tensors: Mapping[str, Tensor]) -> str:
    """Which adapter type a checkpoint's names speak of."""
    return "nested_lora" if any(".functional.slow." in key for key in tensors) else "adaptmlp"


def structure(tensors: Mapping[str, Tensor]) -> dict[int, SlotShape]:
    """Every layer's structure, read off the tensors' names and shapes."""
    records = _lengths(tensors, RECORDS)
    return {
        layer: SlotShape(widths, records.get(layer, []), NEW_ROUTER.format(layer) in tensors)
        for layer, widths in _lengths(tensors, INNER).items()
    }


def _lengths(tensors: Mapping[str, Tensor], pattern: re.Pattern[str]) -> dict[int, list[int]]:
    found: dict[int, dict[int, int]] = defaultdict(dict)
    for key, value in tensors.items():
        if match := pattern.fullmatch(key):
            found[int(match[1])][int(match[2])] = value.shape[0] if value.dim() else 0
    return {layer: [length for _, length in sorted(adapters.items())] for layer, adapters in found.items()}


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """One line for each tensor that is missing, unexpected or of another shape; records may be missing."""
    missing = [key for key in expected.keys() - given.keys() if not key.endswith("records.losses")]
    lines = [f"missing {key} {tuple(expected[key].shape)}" for key in missing]
    lines += [f"unexpected {shown_key(key)} {tuple(given[key].shape)}" for key in given.keys() - expected.keys()]
    lines += [
        f"{key} is {tuple(given[key].shape)} there, {tuple(expected[key].shape)} here"
        for key in expected.keys() & given.keys()
        if expected[key].shape != given[key].shape
    ]
    return sorted(lines)
