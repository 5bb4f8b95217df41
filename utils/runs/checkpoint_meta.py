"""The metadata of a checkpoint, checked as they are read. Never imports torch, so that finished runs can be read."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from safetensors import SafetensorError, safe_open

from utils.errors import UserError
from utils.json_file import faults, parse
from utils.metrics import AccuracyMatrix
from utils.text import shown

FORMAT = "nested-sema-1"


class CheckpointError(UserError):
    """A checkpoint that is missing, unreadable, or of another network."""


class Backbone(BaseModel):
    """Provenance of the frozen weights, see `SEMAVitNet.provenance`."""

    model_config = ConfigDict(strict=True, extra="allow")
    timm_name: str
    weights: str
    sha256: str


class Meta(BaseModel):
    """The metadata of a run's checkpoint. Each may be missing; a version with more of them may write more."""

    model_config = ConfigDict(strict=True, extra="allow")
    config: dict[str, JsonValue] = {}
    class_order: list[Annotated[int, Field(ge=0)]] = []
    task_sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [1]
    backbone: Backbone | None = None
    accuracy: dict[str, JsonValue] | None = None
    adapter_type: str | None = None
    plugins: list[dict[str, JsonValue]] = []

    @field_validator("accuracy")
    @classmethod
    def _is_a_matrix(cls, value: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if value is not None:
            AccuracyMatrix.from_json(value)
        return value


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata alone; empty for a file of the public implementation.

    Raises:
        CheckpointError: Missing, or a safetensors file that is no checkpoint, or whose metadata are of wrong types.
    """
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.safetensors"))) if path.parent.is_dir() else ""
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist" + (f"; there are {near}" if near else ""))
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{str(path)!r} is no checkpoint of a run (its format is {header.get('format')!r})")
        return _checked(parse(header["meta"]))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {error}") from error


def _checked(meta: object) -> dict[str, Any]:
    """The metadata as they are, if they are what they should be.

    Raises:
        ValueError: They are not; the message says which is what instead.
    """
    if not isinstance(meta, dict):
        raise ValueError(f"its metadata are {shown(meta)}; expected a JSON object")
    try:
        Meta.model_validate(meta)
    except ValidationError as error:
        raise ValueError(faults(error)) from None
    return meta
