"""The metadata of a checkpoint. Imports no torch, so that finished runs can be read quickly."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, JsonValue, PlainValidator, ValidationError
from safetensors import SafetensorError, safe_open

from utils.choices import require_plugins
from utils.errors import UserError
from utils.files import seen_from
from utils.json_file import faults, parse
from utils.metrics import AccuracyMatrix
from utils.text import did_you_mean, shown

FORMAT = "nested-sema-1"
# Keys that change what the network computes with equal tensors.
PREPARATION = ("backbone_type", "backbone_kwargs", "normalize")


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or of another network."""


class Backbone(BaseModel, strict=True, extra="allow"):
    """The frozen weights, see `SEMAVitNet.provenance`."""

    timm_name: str
    weights: str
    sha256: str


class Meta(BaseModel, strict=True, extra="allow"):
    """The metadata of a checkpoint. Older versions have fewer keys, newer versions may have more."""

    config: dict[str, JsonValue] = {}
    class_order: list[Annotated[int, Field(ge=0)]] = []
    class_names: list[str] = []
    task_sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [1]
    backbone: Backbone | None = None
    accuracy: Annotated[AccuracyMatrix, PlainValidator(AccuracyMatrix.from_json)] | None = None
    readouts: dict[str, Annotated[AccuracyMatrix, PlainValidator(AccuracyMatrix.from_json)]] = {}
    adapter_type: str | None = None
    plugins: list[dict[str, JsonValue]] = []


def read_meta(path: Path) -> dict[str, Any]:
    """Return the metadata of a checkpoint, empty for a file of the public implementation.

    Raises:
        CheckpointError: The file is missing, damaged or not a checkpoint, or its metadata has values of wrong types.
    """
    if not path.is_file():
        beside = list(path.parent.iterdir()) if path.parent.is_dir() else []
        there = ", ".join(sorted(str(file) for file in beside if file.suffix == ".safetensors"))
        near = f"; there are {there}" if there else did_you_mean(path.name, [file.name for file in beside])
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist{seen_from(path)}{near}")
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{str(path)!r} is not a checkpoint of a run (format {header.get('format')!r})")
        meta = parse(header["meta"])
        if not isinstance(meta, dict):
            raise ValueError(f"its metadata is {shown(meta)}; expected a JSON object")
        Meta.model_validate(meta)
        return meta
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        reason = faults(error) if isinstance(error, ValidationError) else error
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {reason}") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the configuration that a checkpoint was made with.

    Raises:
        CheckpointError: As `read_meta`, or the file holds no configuration, as public `.pth` files.
        UserError: A plug-in that it was made with is not loaded.
    """
    meta = read_meta(Path(path))
    require_plugins(meta.get("plugins"), str(path), unchanged=False)
    if "config" not in meta:
        raise CheckpointError(f"checkpoint {str(path)!r} holds no configuration; give one with --config")
    return dict(meta["config"])


def refuse_other_preparation(meta: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a configuration prepares images, or builds the backbone, otherwise than the run did."""
    trained = meta.get("config", {})
    for key in PREPARATION:
        if key in trained and trained[key] != config[key]:
            raise CheckpointError(
                f"the checkpoint was trained with {key} = {shown(trained[key])}, here it is {shown(config[key])}"
            )


def checkpoint_file(path: Path, task: int | None = None) -> Path:
    """Return the checkpoint of a run directory after a task (None: the last one); any other path as it is.

    Raises:
        CheckpointError: The directory has no such checkpoint, or a task is given for a path that is no directory.
    """
    if not path.is_dir():
        if task is not None:
            raise CheckpointError(f"task = {task}: {str(path)!r} is no run directory; its file is one of one task")
        return path
    found = {
        int(match[1]): file
        for file in (*path.glob("*.safetensors"), *path.glob("checkpoints/*.safetensors"))
        if (match := re.fullmatch("task_([0-9]{1,6})", file.stem))
    }
    if not found:
        runs = sorted({str(file.parents[1]) for file in path.glob("*/checkpoints/task_*.safetensors")})
        unfinished = "; a run writes its first one after task 0" if (path / "config.json").is_file() else ""
        there = f"; run directories in it: {', '.join(runs[:8])}" if runs else ""
        raise CheckpointError(
            f"{str(path)!r} holds no checkpoint (checkpoints/task_T.safetensors){there or unfinished}"
        )
    if task is not None and task not in found:
        raise CheckpointError(f"task = {task}: {str(path)!r} has checkpoints of the tasks {sorted(found)}")
    return found[max(found) if task is None else task]
