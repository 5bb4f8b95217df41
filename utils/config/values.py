"""Types of values that need more than a bound or a list of choices."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, WithJsonSchema

from utils.choices import ADAPTERS, LEARNERS
from utils.datasets import DATASETS
from utils.files import expanded, read_text, seen_from
from utils.json_file import MOST_BYTES, parse
from utils.readouts import READOUTS
from utils.text import did_you_mean, nearest

DEVICE_NAMES = ("auto", "cpu", "cuda")
A_DEVICE = '"auto", "cpu", "cuda", the number of a GPU such as "0", -1 for the CPU, or a list of one of these'
A_JSON_OBJECT = 'a JSON object of finite values, such as {"img_size": 96}'
SOME_CLASSES = "a list of labels or class names, or a file with one a line or with a JSON list"
SOME_TASKS = "a list of tasks, each a list of labels or class names; or a JSON file with it"
SOME_TASKS_LATER = "the number of a task from 1 on, or a list of different ones"
SOME_IMAGES = "an image or a folder, or a list of them"
SOME_BRANCHES = "a list of some of the branches of nested_lora, such as fast"
SOME_READOUTS = f"a list of some of {', '.join(READOUTS)}, or an empty list"
SEEDS = "an integer from 0 to 4294967295, or a list of different ones"
LARGEST = 2**31 - 1  # of any integer; torch accepts no larger ones in some places
WIDEST = 8192  # inner width of an adapter or a descriptor; more than any ViT has
JSON_BEGINS = ("[", "{")
NOT_FOR_TIMM = {  # arguments that would load other weights than those named, or write outside the run directory
    "pretrained": "the key pretrained of the configuration",
    **dict.fromkeys(
        ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"),
        "the key backbone_checkpoint of the configuration",
    ),
    "cache_dir": "the environment variable HF_HOME",
}


def _device(value: object) -> str:
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f'a run uses one device for now, not {len(value)}; name one, such as "0"')
        value = value[0]
    name = str(value)
    if name == "-1":
        return "cpu"
    if name in DEVICE_NAMES or (name.isascii() and name.isdigit()):
        return name
    number = name.removeprefix("cuda:")
    near = number if number.isdigit() else "".join(nearest(name, DEVICE_NAMES))
    raise ValueError(f"expected {A_DEVICE}" + (f'; did you mean "{near}"?' if near else ""))


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _content(value: object) -> object:
    """Return what a flag gives as JSON, or the content of the file that a text names; another value as it is."""
    if not isinstance(value, str) or not value.strip():
        return value
    text = value if value.lstrip().startswith(JSON_BEGINS) else _read(Path(expanded(value)))
    if not text.strip():
        raise ValueError("the file is empty; expected classes in it")
    if not text.lstrip().startswith(JSON_BEGINS):
        return [line for part in text.splitlines() if (line := part.strip())]
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"not a JSON list: {where}: {error.msg.lower()}") from None


def _read(path: Path) -> str:
    try:
        return read_text(path, MOST_BYTES)
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ValueError(f"no such file{seen_from(path)}{did_you_mean(path.name, sorted(names))}") from None
    except IsADirectoryError:
        raise ValueError("a folder; expected a file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"the file cannot be read: {error}") from None


def _none_empty(tasks: list[list[int | str]]) -> list[list[int | str]]:
    for number, task in enumerate(tasks):
        if not task:
            raise ValueError(f"task {number} is empty; expected at least one class in every task")
    return tasks


def _numbers(value: object) -> object:
    """Return a number, or a list that a flag gives as JSON, as a list."""
    return _content(value) if isinstance(value, str) and value.lstrip().startswith("[") else _as_list(value)


def _different(tasks: list[int]) -> list[int]:
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"a task is given twice; expected {SOME_TASKS_LATER}")
    return sorted(tasks)


def _without_repeats(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is given twice; expected {SEEDS}")
    return seeds


def _some(names: list[str], known: Sequence[str], what: str, expected: str) -> list[str]:
    """Return names that are known and different; `what` is a word for one of them."""
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no {what}; expected {expected}{did_you_mean(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a {what} is given twice; expected {expected}")
    return names


def _known_branches(names: list[str]) -> list[str]:
    known = list(dict.fromkeys(branch for name in ADAPTERS.names() for branch in ADAPTERS[name].branches))
    return _some(names, known, "branch", f"some of {', '.join(known)}")


def _known_readouts(names: list[str]) -> list[str]:
    return _some(names, READOUTS, "readout", SOME_READOUTS)


def _for_timm(kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for kwarg in kwargs:
        if kwarg in NOT_FOR_TIMM:
            raise ValueError(f"{kwarg} is not passed on to timm; use {NOT_FOR_TIMM[kwarg]}")
    return kwargs


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it has a NUL character, which names and paths cannot have; expected text without it")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
PathText = Annotated[
    Text, AfterValidator(expanded), WithJsonSchema({"type": "string", "minLength": 1, "format": "path"})
]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # the range of numpy's RandomState
Seeds = Annotated[
    list[Seed],
    BeforeValidator(_as_list, json_schema_input_type=Seed | list[Seed]),
    AfterValidator(_without_repeats),
]
Class = Annotated[int, Field(ge=0, le=LARGEST)] | Text
ClassOrder = Annotated[
    list[Class], Field(min_length=1), BeforeValidator(_content, json_schema_input_type=Text | list[Class])
]
TaskList = Annotated[
    list[list[Class]],
    Field(min_length=1),
    BeforeValidator(_content, json_schema_input_type=Text | list[list[Class]]),
    AfterValidator(_none_empty),
]
TaskNumber = Annotated[int, Field(ge=1, le=LARGEST)]  # not 0, so that a class of another task is known before
TaskNumbers = Annotated[
    list[TaskNumber],
    BeforeValidator(_numbers, json_schema_input_type=TaskNumber | list[TaskNumber]),
    AfterValidator(_different),
]
Branches = Annotated[
    list[Text],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    AfterValidator(_known_branches),
]
Readouts = Annotated[
    list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str]), AfterValidator(_known_readouts)
]
Images = Annotated[
    list[PathText], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=PathText | list[PathText])
]
Device = Annotated[str, BeforeValidator(_device, json_schema_input_type=str | int | list[str | int])]
BackboneKwargs = Annotated[dict[str, JsonValue], AfterValidator(_for_timm)]

# The choices are looked up when a value is checked, as plug-ins can add some.
CHOICES: dict[str, Callable[[], list[str]]] = {
    "dataset": lambda: list(DATASETS),
    "model_name": LEARNERS.names,
    "ffn_adapter_type": ADAPTERS.names,
}


OF_YOUR_OWN = "; if it is one of your own, load its file with --plugin"


def _choice(key: str, otherwise: str = "") -> AfterValidator:
    def check(name: str) -> str:
        if name not in (known := CHOICES[key]()):
            raise ValueError(f"expected one of {', '.join(known)}{did_you_mean(name, known) or otherwise}")
        return name

    return AfterValidator(check)


Dataset = Annotated[str, _choice("dataset")]
ModelName = Annotated[str, _choice("model_name", OF_YOUR_OWN)]
AdapterType = Annotated[str, _choice("ffn_adapter_type", OF_YOUR_OWN)]
