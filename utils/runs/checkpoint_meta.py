"""The metadata of a checkpoint. Imports no torch, so that finished runs can be read quickly."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, JsonValue, PlainValidator, ValidationError
from safetensors import SafetensorError, safe_open

from utils.errors import UserError
from utils.json_file import faults, parse
from utils.metrics import AccuracyMatrix
from utils.text import shown

FORMAT = "nested-sema-1"


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
    adapter_type: str | None = None
    plugins: list[dict[str, JsonValue]] = []


def read_meta(path: Path) -> dict[str, Any]:
    """Return the metadata of a checkpoint, empty for a file of the public implementation.

    Raises:
        CheckpointError: The file is missing, damaged or not a checkpoint, or its metadata has values of wrong types.
    """
    if path.is_dir():
        there = sorted(path.glob("*.safetensors")) or sorted(path.glob("checkpoints/*.safetensors"))
        named = f"; name a file in it, such as {there[-1]}" if there else "; expected a file"
        raise CheckpointError(f"checkpoint {str(path)!r} is a directory{named}")
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.safetensors"))) if path.parent.is_dir() else ""
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist" + (f"; there are {near}" if near else ""))
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
