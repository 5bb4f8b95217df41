"""Every key of a run: type, default, bound, meaning, and the checks between keys.

A run is described by one flat JSON file (`exps/*.json`) with SEMA's own keys, those of Nested LoRA and a few of ours.
Flags of the command line beat the file, and the file beats the defaults declared here; all is merged first and
validated once, so that one `ConfigError` lists every problem. This module never imports torch: a slip of the pen is
answered at once.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from utils.choices import ADAPTERS
from utils.config.values import (
    A_DEVICE,
    A_JSON_OBJECT,
    CHOICES,
    LARGEST,
    SEEDS,
    WIDEST,
    AdapterType,
    BackboneKwargs,
    Dataset,
    Device,
    ModelName,
    Seed,
    Seeds,
    Text,
)
from utils.errors import ConfigError as ConfigError
from utils.errors import UserError as UserError

DATA_ROOT_VARIABLE = "SEMA_DATA_ROOT"


def _key(
    group: str, default: Any, meaning: str, *, changes_results: bool = True, expected: str | None = None, **bounds: Any
) -> Any:
    """Declare one key.

    Args:
        group: heading in `--help`.
        default: `...` makes the key required.
        meaning: one line for `--help`, the JSON schema and the reader.
        changes_results: whether runs that differ in this key alone may end differently.
        expected: what a valid value is, in words; None: as type and bounds say.
        bounds: pydantic's (ge, gt, le, min_length).
    """
    extra: dict[str, JsonValue] = {"group": group, "changes_results": changes_results}
    if expected is not None:
        extra["expected"] = expected
    return Field(default, description=meaning, json_schema_extra=extra, **bounds)


_data = partial(_key, "Data")
_model = partial(_key, "Model")
_adapter = partial(_key, "Adapters")
_training = partial(_key, "Training")
_expansion = partial(_key, "Expansion")
_nested = partial(_key, "Nested LoRA")
_speed = partial(_key, "Speed")
_run = partial(_key, "Run", changes_results=False)
_unused = partial(_key, "Without effect", meaning="accepted because SEMA's files hold it", changes_results=False)


class Config(BaseModel):
    """One run, complete and checked. `Config(...)` raises pydantic's ValidationError; `load` words it for users."""

    # a bound on the length, even 0, makes pydantic refuse texts that are no Unicode and could never be written out
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, str_min_length=0)

    dataset: Dataset = _data(..., "name of the data set")
    data_root: Text = _data(
        "data",
        "folder of the data sets; for imagefolder the folder with train/ and test/, for npz the file or its folder"
        f"; the environment variable {DATA_ROOT_VARIABLE} beats the file, the flag beats both",
        changes_results=False,
    )
    shuffle: bool = _data(True, "draw the class order from the seed; false: classes in stored order")
    class_order_seed: Seed | None = _data(
        None, "seed of the class order, to keep the order while `seed` changes; null: the run's seed"
    )
    init_cls: int = _data(10, "classes in the first task", ge=1)
    increment: int = _data(10, "classes in each later task; the last takes what remains", ge=1)
    max_tasks: int | None = _data(None, "stop after this many tasks; null: all", ge=1)
    on_bad_image: Literal["error", "skip"] = _data(
        "error",
        "a file that cannot be read as an image: error stops and names it; skip names it, leaves it out and goes on "
        "with the others, for which every image is decoded once before anything trains",
    )
    num_workers: int = _data(2, "processes that load images; 0: the main process", ge=0, le=1024, changes_results=False)

    model_name: ModelName = _model("sema", "learner")
    backbone_type: Text = _model(
        "pretrained_vit_b16_224_adapter",
        "one of SEMA's names, pretrained_vit_b16_224_adapter or "
        "pretrained_vit_b16_224_in21k_adapter, or <name of a timm VisionTransformer>_adapter",
    )
    pretrained: bool = _model(
        True, "download timm's weights, unless backbone_checkpoint is given; false: random weights"
    )
    backbone_checkpoint: Text | None = _model(
        None,
        "file with the backbone's weights under timm's names (safetensors or torch), instead of a download",
    )
    backbone_kwargs: BackboneKwargs = _model(
        {}, "further arguments of timm.create_model (image size, depth, width)", expected=A_JSON_OBJECT
    )
    normalize: bool = _model(
        False, "normalise images by the mean and std of the weights; false, as SEMA: values in [0, 1]"
    )

    ffn_adapter_type: AdapterType = _adapter("adaptmlp", "adapter in every slot")
    ffn_num: int = _adapter(16, "bottleneck of adaptmlp", ge=1, le=WIDEST)
    adapt_start_layer: int = _adapter(9, "first expandable layer, counted from 0", ge=0)
    adapt_end_layer: int = _adapter(11, "last expandable layer", ge=0)

    func_epoch: int = _training(5, "epochs of a func phase (adapters, router, head)", ge=1)
    rd_epoch: int = _training(20, "epochs of an rd phase (representation descriptors)", ge=0)
    batch_size: int = _training(32, "images in a training step", ge=1)
    optimizer: Literal["sgd", "adam"] = _training("sgd", "SGD with momentum 0.9, or AdamW")
    init_lr: float = _training(0.005, "learning rate of the func phase; with nested_lora that of router and head", gt=0)
    rd_lr: float = _training(0.01, "learning rate of the rd phase", gt=0)
    min_lr: float = _training(0.0, "floor of the cosine schedules", ge=0)
    weight_decay: float = _training(5e-4, "weight decay of both phases", ge=0)

    on_nan: Literal["stop", "skip"] = _training(
        "stop",
        "what a loss that is NaN or infinite does; stop: it ends the run, the last good state kept; skip: the batch is "
        "left out (to know that, every step waits for its loss)",
        changes_results=False,  # in runs that come to their end under both, no loss was such
    )

    exp_threshold: float = _expansion(
        2.0, "a layer asks for an adapter when the batch's mean z-score is above this", ge=0
    )
    detect_batch_size: int = _expansion(128, "images in a batch of the scan", ge=1)
    rd_dim: int = _expansion(128, "inner width of a representation descriptor", ge=1, le=WIDEST)
    buffer_size: int = _expansion(500, "reconstruction losses a descriptor remembers; z-scores need 3", ge=3)

    nested_lora_rank: int = _nested(16, "bottleneck of each of slow and fast", ge=1, le=WIDEST)
    nested_lora_lr_fast: float = _nested(0.01, "learning rate of fast", gt=0)
    nested_lora_lr_slow: float = _nested(0.001, "learning rate of slow", gt=0)
    nested_lora_update_interval_slow: int = _nested(
        1, "slow moves on every k-th optimizer step of a func phase; 0 and 1: on every step", ge=0
    )
    nested_lora_slow_update: Literal["skip", "accumulate", "zero_grad"] = _nested(
        "skip",
        "skip: slow does not move between updates; accumulate: as skip, and an update uses the mean gradient of its "
        "interval; zero_grad: the gradient is zeroed and the optimizer steps anyway (momentum and decay move slow)",
    )
    nested_lora_use_consolidation: bool = _nested(False, "consolidate fast into slow at the end of a task")
    nested_lora_consolidation_alpha: float = _nested(0.1, "share of fast that goes into slow", ge=0, le=1)
    nested_lora_consolidation_mode: Literal["weights", "function"] = _nested(
        "weights",
        "weights: slow's tensors += alpha * fast's; function: slow's output += alpha * fast's, exactly "
        "(slow's rank grows by fast's)",
    )
    nested_lora_fast_reset: Literal["zero", "reinit", "keep"] = _nested(
        "zero",
        "fast after consolidation: all zero; reinit: zero output, fresh down-projection; keep: as it is",
    )
    nested_lora_lifetime: Literal["expansion", "continual"] = _nested(
        "expansion",
        "expansion: an adapter is frozen after the task that added it; continual: every task trains all",
    )

    precision: Literal["fp32", "bf16"] = _speed(
        "fp32",
        "fp32: everything in float32; bf16: the matrix products in bfloat16, while weights, losses, records, routers, "
        "descriptors and head stay float32",
    )
    rd_views: int = _speed(
        0,
        "views of every image that the descriptors' epochs see, in turn: those of the first epochs, whose token means "
        "are kept (images x views x layers x width x 4 bytes); 0: a new view in every epoch",
        ge=0,
    )
    compile: bool = _speed(
        False,
        "compile the frozen parts of the blocks (torch.compile; needs a C++ compiler); rounding differs",
    )
    grad_checkpointing: bool = _speed(
        False,
        "for a small GPU: compute the frozen parts of the blocks again in the backward pass instead of keeping them",
        changes_results=False,
    )
    augment_on: Literal["host", "device"] = _speed(
        "host",
        "where training images are resized; host: one by one, where they are loaded; device: a batch at once, from "
        "the same random parts, without the host's rounding to 8 bits (a value differs by 1/255 at most)",
    )
    image_cache_gib: float = _speed(
        2.0,
        "GiB for the pixels of the current task's training images, decoded once from their files; those that find no "
        "room are decoded whenever they are loaded; 0: all are (the pixels of cifar224 and npz are in memory anyway)",
        ge=0,
        changes_results=False,
    )
    eval_cache_gib: float = _speed(
        4.0,
        "GiB for test images half way through the network, from task 0 on: later evaluations run the layers from "
        "adapt_start_layer on alone; 0: nothing is kept",
        ge=0,
        changes_results=False,
    )
    eval_cache_on: Literal["memory", "disk"] = _speed(
        "memory",
        "where they are kept; disk: in the system's temporary folder, which TMPDIR names",
        changes_results=False,
    )
    eval_cache_bf16: bool = _speed(
        False,
        "keep them in bfloat16: half the room, and accuracies that can differ in rare images",
        changes_results=True,
    )

    seed: Seeds = _run([1993], "one run for each seed", expected=SEEDS, min_length=1)
    device: Device = _run("auto", "where to compute; auto: a GPU if there is one", expected=A_DEVICE)
    num_threads: int = _run(
        0,
        "CPU threads of the main process; 0: torch's choice, which suffers when other processes want the cores",
        ge=0,
        le=1024,
    )
    deterministic: bool = _run(
        False,
        "on a GPU use only algorithms that give the same bits every time, at some cost in speed; an operation without "
        "one ends the run (on the CPU runs repeat bit by bit without it)",
    )
    eval_batch_size: int = _run(128, "images in a batch of evaluation", ge=1, changes_results=True)
    branch_eval: bool = _run(
        True, "with nested_lora: after every task score slow + fast, slow only, fast only and neither"
    )
    telemetry_every: int = _run(
        0, "with nested_lora: measure the branches at every so many steps of a func phase; 0: once an epoch", ge=0
    )
    eval_every: int = _run(0, "score the test set every so many epochs of training; 0: never", ge=0)
    checkpoint_every: int = _run(
        1, "save the run's state every so many epochs, and between phases; 0: after each task", ge=0
    )
    resume: Text | None = _run(None, "run directory of an unfinished run to go on with")
    auto_resume: bool = _run(
        False,
        "go on with the newest unfinished run of this configuration and seed, if there is one; leave finished ones",
    )
    tensorboard: bool = _run(False, "write TensorBoard files into the run's directory; needs the package tensorboard")
    wandb: Text | None = _run(
        None, "project of Weights & Biases to show the run in, with TensorBoard files; needs tensorboard and wandb"
    )
    output_dir: Text = _run("logs", "folder that holds a directory for each run")
    overwrite: bool = _run(False, "replace a finished run of the same configuration and seed")
    eval: bool = _run(False, "evaluate checkpt_path instead of training")
    checkpt_path: Text | None = _run(None, "checkpoint to evaluate")
    prefix: str = _run("reproduce", "a label of your own")

    memory_size: int = _unused(0, ge=0)
    memory_per_class: int = _unused(0, ge=0)
    fixed_memory: bool = _unused(False)
    vpt_type: str | None = _unused("deep")
    prompt_token_num: int = _unused(5, ge=0)

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if broken := [check.reason for check in broken_checks(dict(self))]:
            raise ValueError("; ".join(broken))
        return self


class Check(NamedTuple):
    """A condition between keys, skipped while one of them is itself invalid."""

    keys: tuple[str, ...]
    holds: Callable[..., bool]
    reason: str


def _floor_check(rate: str) -> Check:
    return Check(("min_lr", rate), lambda floor, lr: floor <= lr, f"the cosine's floor min_lr would raise {rate}")


def _branch_floor_check(rate: str) -> Check:
    """The rates of time scales act with adapters that have branches; to know that, the adapter's file is imported."""
    keys = ("min_lr", rate, "ffn_adapter_type")
    return Check(keys, lambda floor, lr, kind: floor <= lr or not ADAPTERS[kind].branches, _floor_check(rate).reason)


def _size_check(key: str) -> Check:
    """Not in the schema, as nobody means such numbers and every line of `--help` would speak of them."""
    reason = f"expected at most {LARGEST}"
    return Check((key,), lambda value: not isinstance(value, int) or value <= LARGEST, reason)


CHECKS = (
    Check(
        ("adapt_start_layer", "adapt_end_layer"),
        lambda start, end: start <= end,
        "the first expandable layer lies behind the last; expected adapt_start_layer <= adapt_end_layer",
    ),
    _floor_check("init_lr"),
    _floor_check("rd_lr"),
    _branch_floor_check("nested_lora_lr_fast"),
    _branch_floor_check("nested_lora_lr_slow"),
    Check(("eval", "checkpt_path"), lambda wanted, path: not wanted or path is not None, "eval needs a checkpt_path"),
)


def broken_checks(values: Mapping[str, object]) -> Iterator[Check]:
    """The checks between keys that do not hold, of those whose keys are all among `values`."""
    yield from (check for key, value in values.items() if not (check := _size_check(key)).holds(value))
    for check in CHECKS:
        if values.keys() >= set(check.keys) and not check.holds(*(values[key] for key in check.keys)):
            yield check


def schemas() -> dict[str, dict[str, Any]]:
    """JSON schema of every key, by name, in the order of declaration; with the names that can be chosen now."""
    properties = {key: dict(schema) for key, schema in _declared().items()}
    for key, names in CHOICES.items():
        properties[key]["enum"] = names()
    return properties


@cache
def _declared() -> dict[str, dict[str, Any]]:
    declared: dict[str, dict[str, Any]] = Config.model_json_schema()["properties"]
    return declared


def defaults() -> dict[str, object]:
    """The default of every key that has one: all but `dataset`. Fresh objects at every call."""
    fields = Config.model_fields.items()
    return {name: field.get_default() for name, field in fields if not field.is_required()}
