"""Checkpoints: a safetensors file a task with everything evaluation needs; the public implementation's are read too."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors.torch import save
from torch import Tensor

from utils.choices import require_plugins
from utils.files import atomic_write
from utils.runs.checkpoint_meta import FORMAT as FORMAT
from utils.runs.checkpoint_meta import CheckpointError as CheckpointError
from utils.runs.checkpoint_meta import read_meta as read_meta
from utils.runs.tensor_file import read_tensors
from utils.text import shown_key

T = TypeVar("T")


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
        UserError: A plug-in it was made with is not loaded; names the file.
    """
    meta = read_meta(Path(path))
    require_plugins(meta.get("plugins"), str(path), unchanged=False)
    if "config" not in meta:
        raise CheckpointError(f"checkpoint {str(path)!r} carries no configuration; give one with --config")
    return dict(meta["config"])


class SlotShape(NamedTuple):
    """The structure of one layer's slot.

    Attributes:
        adapters: For every adapter the shapes of its tensors by name.
        records: For each descriptor the number of recorded losses.
        expanding: Whether the newest adapter still has a router of its own.
    """

    adapters: list[dict[str, tuple[int, ...]]]
    records: list[int]
    expanding: bool


NUMBER = "([0-9]{1,6})"  # a name with more digits is none of ours
SLOT = rf"backbone\.blocks\.{NUMBER}\.adapter_module\.adapters\.{NUMBER}\."
FUNCTIONAL = re.compile(SLOT + r"functional\.(.+)")
RECORDS = re.compile(SLOT + r"records\.losses")
NEW_ROUTER = "backbone.blocks.{}.adapter_module.new_router.weight"


def adapter_type(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], branches: Mapping[str, tuple[str, ...]]
) -> str:
    """Which adapter type a checkpoint holds: what it says, or for the public implementation's what its names say.

    Args:
        tensors: The checkpoint's.
        meta: Its metadata.
        branches: The adapter types by name, each with its branches.
    """
    stated = meta.get("adapter_type") or meta.get("config", {}).get("ffn_adapter_type")
    if stated:
        return str(stated)
    found = {match[3].partition(".")[0] for match in map(FUNCTIONAL.fullmatch, tensors) if match}
    return next((kind for kind, names in branches.items() if names and found == set(names)), "adaptmlp")


def structure(tensors: Mapping[str, Tensor]) -> dict[int, SlotShape]:
    """Every layer's structure, read off the tensors' names and shapes."""
    adapters: dict[int, dict[int, dict[str, tuple[int, ...]]]] = defaultdict(lambda: defaultdict(dict))
    records: dict[int, dict[int, int]] = defaultdict(dict)
    for key, value in tensors.items():
        if match := FUNCTIONAL.fullmatch(key):
            adapters[int(match[1])][int(match[2])][match[3]] = tuple(value.shape)
        elif match := RECORDS.fullmatch(key):
            records[int(match[1])][int(match[2])] = value.shape[0] if value.dim() else 0
    return {
        layer: SlotShape(_in_order(found), _in_order(records[layer]), NEW_ROUTER.format(layer) in tensors)
        for layer, found in adapters.items()
    }


def _in_order(numbered: Mapping[int, T]) -> list[T]:
    return [value for _, value in sorted(numbered.items())]


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
