"""What a checkpoint says of itself beside its tensors, checked before anything believes it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from utils.metrics import AccuracyMatrix
from utils.text import shown


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


def checked(meta: object) -> dict[str, Any]:
    """The metadata as they are, if they are what they should be.

    Raises:
        ValueError: They are not; the message says which is what instead.
    """
    if not isinstance(meta, dict):
        raise ValueError(f"its metadata are {shown(meta)}; expected a JSON object")
    try:
        Meta.model_validate(meta)
    except ValidationError as error:
        raise ValueError("; ".join(map(_problem, error.errors()))) from None
    return meta


def _problem(item: Any) -> str:
    place = ".".join(map(str, item["loc"]))
    return f"{place} = {shown(item['input'])}: {item['msg'].removeprefix('Value error, ').lower()}"
