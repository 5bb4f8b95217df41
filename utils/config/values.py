"""Types of a configuration's values that are more than a number or a choice: what is accepted, and what it becomes."""

from collections.abc import Callable, Iterable
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from utils.choices import ADAPTERS, LEARNERS
from utils.datasets import DATASETS
from utils.text import did_you_mean, nearest

DEVICE_NAMES = ("auto", "cpu", "cuda")
A_DEVICE = '"auto", "cpu", "cuda", the number of a GPU such as "0", -1 for the CPU, or a list of one of these'
NOT_FOR_TIMM = {  # what would fetch other weights than those named, or write where no run writes
    "pretrained": "the key pretrained of the configuration",
    "checkpoint_path": "the key backbone_checkpoint of the configuration",
    "pretrained_cfg": "the key backbone_checkpoint of the configuration",
    "pretrained_cfg_overlay": "the key backbone_checkpoint of the configuration",
    "cache_dir": "the environment variable HF_HOME",
}
LARGEST = 2**31 - 1  # what all that counts in integers takes, torch among them
WIDEST = 8192  # inner width of an adapter or a descriptor; wider than any ViT, and memory for it is still there
A_JSON_OBJECT = 'a JSON object of finite values, such as {"img_size": 96}'
SEEDS = "an integer from 0 to 4294967295, or a list of different ones"


def _one_device(value: object) -> object:
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise ValueError(f'a run uses one device for now, not {len(value)}; name one, such as "0"')
    return value[0]


def _device_name(value: object) -> object:
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if name == "-1":
        return "cpu"
    if name in DEVICE_NAMES or (isinstance(name, str) and name.isascii() and name.isdigit()):
        return name
    number = name.removeprefix("cuda:") if isinstance(name, str) else ""
    near = number if number.isdigit() else "".join(nearest(name, DEVICE_NAMES))
    raise ValueError(f"expected {A_DEVICE}" + (f'; did you mean "{near}"?' if near else ""))


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _without_repeats(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the same seed twice is the same run twice; expected {SEEDS}")
    return seeds


def _for_timm(kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for kwarg in kwargs:
        if kwarg in NOT_FOR_TIMM:
            raise ValueError(f"{kwarg} is not passed on to timm from here; use {NOT_FOR_TIMM[kwarg]}")
    return kwargs


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a character in it is NUL, which neither paths nor names can have; expected text without")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy's RandomState, which draws the class order, accepts
Seeds = Annotated[
    list[Seed], BeforeValidator(_as_list, json_schema_input_type=Seed | list[Seed]), AfterValidator(_without_repeats)
]
Device = Annotated[
    str, BeforeValidator(_device_name), BeforeValidator(_one_device, json_schema_input_type=str | int | list[str | int])
]
BackboneKwargs = Annotated[dict[str, JsonValue], AfterValidator(_for_timm)]


def _one_of(names: Callable[[], Iterable[str]]) -> AfterValidator:
    """One of the names there are when the value is checked: plug-ins may have added some."""

    def check(name: str) -> str:
        if name not in (known := list(names())):
            raise ValueError(f"expected one of {', '.join(known)}{did_you_mean(name, known)}")
        return name

    return AfterValidator(check)


CHOICES: dict[str, Callable[[], list[str]]] = {
    "dataset": lambda: list(DATASETS),
    "model_name": LEARNERS.names,
    "ffn_adapter_type": ADAPTERS.names,
}
Dataset = Annotated[str, _one_of(CHOICES["dataset"])]
ModelName = Annotated[str, _one_of(CHOICES["model_name"])]
AdapterType = Annotated[str, _one_of(CHOICES["ffn_adapter_type"])]
