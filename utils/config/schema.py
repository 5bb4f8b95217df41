"""The configuration keys: type, default, bounds and meaning of each, and the checks between keys.

A run is described by one flat JSON file (`exps/*.json`) with SEMA's keys, those of Nested LoRA and a few more. Flags
override the file, and the file the defaults. The merged result is validated once, see `utils.config.load`. This module
never imports torch, so that configuration errors are reported at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from utils.choices import ADAPTERS
from utils.config.values import (
    A_DEVICE,
    A_JSON_OBJECT,
    CHOICES,
    LARGEST,
    SEEDS,
    SOME_BRANCHES,
    SOME_CLASSES,
    SOME_IMAGES,
    SOME_READOUTS,
    SOME_TASKS,
    SOME_TASKS_LATER,
    WIDEST,
    AdapterType,
    BackboneKwargs,
    Branches,
    ClassOrder,
    Dataset,
    Device,
    Images,
    ModelName,
    PathText,
    Readouts,
    Seed,
    Seeds,
    TaskList,
    TaskNumbers,
    Text,
)

DATA_ROOT_VARIABLE = "SEMA_DATA_ROOT"
NESTED = "nested_lora"  # the adapter type that owns the keys of time scales and consolidation
OLD_NAMES = {"nested_lora_lifetime": "adapter_lifetime"}  # keys of earlier versions
COMMANDS = "What to do"  # group of the keys that say what to do, not how; `--help` has all of them
USES = ("eval", "predict", "export")  # keys that use a checkpoint instead of training


def _key(
    group: str,
    default: Any,
    meaning: str,
    *,
    changes_results: bool = True,
    first: bool = False,
    expected: str | None = None,
    owner: str | None = None,
    of_branch: bool = False,
    unread_by: Sequence[str] = (),
    idle_if: Mapping[str, JsonValue] | None = None,
    idle_beside: Sequence[str] = (),
    **bounds: Any,
) -> Any:
    """Declare one key.

    Args:
        group: Heading in `--help`.
        default: `...` makes the key required.
        meaning: Description in `--help`, the JSON schema and docs/keys.md.
        changes_results: Whether runs that differ only in this key can have different results.
        first: Whether it is one of the twenty keys of `--help`, which people use first; `--help all` has the others.
        expected: Description of valid values; None: made from type and bounds.
        owner: The adapter type whose key it is; see `utils.config.identity.idle_keys`.
        of_branch: Whether it acts on the branch alone that is a word of its name.
        unread_by: Learners of the project, see `utils.config.identity.learner`, for which the key has no effect.
        idle_if: The key has no effect if another key has one of these values.
        idle_beside: The key has no effect if one of these keys is given.
        bounds: Those of pydantic (ge, gt, le, min_length).
    """
    extra: dict[str, JsonValue] = {"group": group, "changes_results": changes_results, "first": first}
    given: dict[str, JsonValue] = {"expected": expected, "owner": owner, "idle_if": dict(idle_if or {})}
    given |= {"of_branch": of_branch, "idle_beside": list(idle_beside), "unread_by": list(unread_by)}
    extra |= {name: value for name, value in given.items() if value}
    return Field(default, description=meaning, json_schema_extra=extra, **bounds)


STATISTICS = ("simplecil", "ranpac")  # learners whose head is computed from class statistics
WITH_ADAPTER = tuple(f"{name} with first_session_adaptation" for name in STATISTICS)
NO_TRAINING = STATISTICS
NO_ADAPTERS = (*STATISTICS, "linear")
NO_EXPANSION = (*NO_ADAPTERS, *WITH_ADAPTER, "finetune", "joint")

_data = partial(_key, "Data")
_model = partial(_key, "Model")
_adapter = partial(_key, "Adapters", unread_by=NO_ADAPTERS)
_training = partial(_key, "Training", unread_by=NO_TRAINING)
_expansion = partial(_key, "Expansion", unread_by=NO_EXPANSION)
_nested = partial(_key, "Nested LoRA", owner=NESTED, unread_by=NO_ADAPTERS)
_branch = partial(_nested, of_branch=True)
_consolidation = partial(_nested, idle_if={"nested_lora_use_consolidation": [False]})
_alignment = partial(
    _key,
    "Classifier alignment",
    unread_by=(*STATISTICS, *WITH_ADAPTER, "joint"),
    idle_if={"classifier_alignment": [False]},
)
_speed = partial(_key, "Speed")
_run = partial(_key, "Run", changes_results=False)
_command = partial(_key, COMMANDS, changes_results=False)
_trained = partial(_key, "Trained models", changes_results=False)
_unused = partial(_key, "Without effect", meaning="accepted because SEMA's files have it", changes_results=False)


class Config(BaseModel):
    """The validated configuration of a run. `Config(...)` raises pydantic's ValidationError, `load` a ConfigError."""

    # with a minimum length, even 0, pydantic refuses text that is not valid Unicode and could not be written to a file
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, str_min_length=0)

    dataset: Dataset = _data(..., "name of the data set", first=True)
    data_root: PathText = _data(
        "data",
        "folder of the data sets; for imagefolder the folder with train/ and test/, for npz the file or its folder; "
        f"the environment variable {DATA_ROOT_VARIABLE} overrides the file, the flag overrides both",
        changes_results=False,
        first=True,
    )
    shuffle: bool = _data(
        True, "shuffle the classes with the seed; false: keep the stored order", idle_beside=["class_order", "tasks"]
    )
    class_order_seed: Seed | None = _data(
        None,
        "seed of the class order, to keep the order for several values of `seed`; null: use `seed`",
        idle_if={"shuffle": [False]},
        idle_beside=["class_order", "tasks"],
    )
    class_order: ClassOrder | None = _data(
        None, "all classes in the order in which they are learned, instead of shuffle", expected=SOME_CLASSES
    )
    tasks: TaskList | None = _data(
        None,
        "the classes of every task, instead of shuffle, init_cls and increment; classes of no task are not learned",
        expected=SOME_TASKS,
    )
    init_cls: int = _data(10, "classes in the first task", ge=1, first=True, idle_beside=["tasks"])
    increment: int = _data(
        10,
        "classes in each later task; the last task has the remaining classes",
        ge=1,
        first=True,
        idle_beside=["tasks"],
    )
    max_tasks: int | None = _data(None, "stop after this many tasks; null: learn all tasks", ge=1)
    transient: TaskNumbers = _data(
        [],
        "tasks, counted from 0, whose classes are not asked for later: the averages of the run are over the other "
        "classes, the core classes",
        expected=SOME_TASKS_LATER,
    )
    leave_out_transient: bool = _data(
        False,
        "do not learn the transient tasks, to compare with; the others keep their random streams",
        idle_if={"transient": [[]]},
    )
    val_fraction: float = _data(
        0.0,
        "share of each class's training images that is set aside, not trained on, and scored after each task beside "
        "the test images; drawn from the seed; 0: none",
        ge=0,
        lt=1,
    )
    evaluate_on: Literal["test", "val"] = _data(
        "test",
        "images that all accuracies of the run are of; val: the validation images, and no test image is scored, so "
        "that values can be chosen by them; needs val_fraction",
    )
    on_bad_image: Literal["error", "skip"] = _data(
        "error", "unreadable images; error: stop and name them; skip: decode all images first and leave these out"
    )
    num_workers: int = _data(
        2, "processes that load images; 0: load in the main process", ge=0, le=1024, changes_results=False, first=True
    )

    model_name: ModelName = _model(
        "sema",
        "name of the learner; sema; or a baseline, see docs/baselines.md: finetune: one adapter a layer, trained in "
        "every task; linear: the head alone; joint: all classes seen, trained together; simplecil: nearest class mean; "
        "ranpac: ridge regression on a random projection",
    )
    first_session_adaptation: bool = _model(
        False,
        "with simplecil and ranpac: train the adapters in the first task, then freeze them; false: frozen features",
        unread_by=("sema", "finetune", "linear", "joint"),
    )
    backbone_type: Text = _model(
        "pretrained_vit_b16_224_adapter",
        "pretrained_vit_b16_224_adapter or pretrained_vit_b16_224_in21k_adapter, as in SEMA, or the name of any "
        "VisionTransformer of timm followed by _adapter",
        first=True,
    )
    pretrained: bool = _model(
        True, "download timm's weights, unless backbone_checkpoint is given; false: use random weights"
    )
    backbone_checkpoint: PathText | None = _model(
        None,
        "file with the backbone's weights in timm's format (safetensors or torch), used instead of a download",
        first=True,
    )
    backbone_kwargs: BackboneKwargs = _model(
        {},
        "further arguments of timm.create_model, such as image size, depth and width; "
        "--backbone_kwargs.img_size 224 sets one entry and keeps the others",
        expected=A_JSON_OBJECT,
    )
    normalize: bool = _model(
        False, "normalise images with the mean and std of the weights; false: keep values in [0, 1], as in SEMA"
    )

    ffn_adapter_type: AdapterType = _adapter("adaptmlp", "type of the adapters", first=True)
    ffn_num: int = _adapter(16, "bottleneck of adaptmlp", owner="adaptmlp", ge=1, le=WIDEST, first=True)
    adapter_lifetime: Literal["expansion", "continual"] = _adapter(
        "expansion",
        "expansion: an adapter is trained in the task that adds it; continual: in every task from then on",
        unread_by=NO_EXPANSION,
    )
    nested_lora_continual_layers: Literal["all", "expandable"] = _adapter(
        "all",
        "layers whose adapters, of any type, learn in every task with adapter_lifetime continual; expandable: the "
        "adapters of all other layers are trained in the first task only, so that what those before "
        "adapt_start_layer compute can be kept",
        idle_if={"adapter_lifetime": ["expansion"]},
        unread_by=NO_EXPANSION,
    )
    adapt_start_layer: int = _adapter(9, "first expandable layer, counted from 0", ge=0, unread_by=NO_EXPANSION)
    adapt_end_layer: int = _adapter(11, "last expandable layer", ge=0, unread_by=NO_EXPANSION)

    func_epoch: int = _training(5, "epochs of a func phase, which trains adapters, router and head", ge=1, first=True)
    rd_epoch: int = _training(
        20, "epochs of an rd phase, which trains representation descriptors", ge=0, unread_by=NO_EXPANSION
    )
    batch_size: int = _training(32, "images in a training batch", ge=1, first=True)
    optimizer: Literal["sgd", "adam"] = _training("sgd", "sgd: SGD with momentum 0.9; adam: AdamW")
    init_lr: float = _training(
        0.005, "learning rate of the func phase; with nested_lora, of router and head only", gt=0, first=True
    )
    rd_lr: float = _training(
        0.01, "learning rate of the rd phase", gt=0, idle_if={"rd_epoch": [0]}, unread_by=NO_EXPANSION
    )
    min_lr: float = _training(0.0, "final learning rate of the cosine schedules", ge=0)
    weight_decay: float = _training(5e-4, "weight decay of both phases", ge=0)
    on_nan: Literal["stop", "skip"] = _training(
        "stop",
        "a loss that is NaN or infinite; stop: end the run and keep its last state; skip: leave out the batch (slower)",
        changes_results=False,  # a run that finishes under both had no such loss
    )

    exp_threshold: float = _expansion(
        2.0, "a layer requests an adapter when the mean z-score of a batch is above this value", ge=0, first=True
    )
    detect_batch_size: int = _expansion(128, "images in a batch of the scan", ge=1)
    rd_dim: int = _expansion(128, "inner width of a representation descriptor", ge=1, le=WIDEST)
    buffer_size: int = _expansion(500, "reconstruction losses that a descriptor stores; z-scores need at least 3", ge=3)

    nested_lora_rank: int = _nested(16, "bottleneck of slow, and of fast", ge=1, le=WIDEST, first=True)
    nested_lora_lr_fast: float = _branch(0.01, "learning rate of fast", gt=0)
    nested_lora_lr_slow: float = _branch(0.001, "learning rate of slow", gt=0)
    nested_lora_update_interval_slow: int = _branch(
        1, "update slow at every k-th optimizer step of a func phase; 0 and 1: at every step", ge=0, first=True
    )
    nested_lora_slow_update: Literal["skip", "accumulate", "zero_grad"] = _branch(
        "skip",
        "skip: slow does not change between updates; accumulate: as skip, but an update uses the mean gradient of its "
        "interval; zero_grad: its gradient is zero between updates, but momentum and weight decay still change slow",
        idle_if={"nested_lora_update_interval_slow": [0, 1]},
    )
    nested_lora_use_consolidation: bool = _nested(
        False, "consolidate fast into slow at the end of each task", first=True
    )
    nested_lora_consolidation_alpha: float = _consolidation(0.1, "fraction of fast that is added to slow", ge=0, le=1)
    nested_lora_consolidation_mode: Literal["weights", "function"] = _consolidation(
        "weights",
        "weights: add alpha times fast's tensors to those of slow; function: add alpha times fast's output to that of "
        "slow, exactly (slow's rank grows by fast's rank)",
    )
    nested_lora_fast_reset: Literal["zero", "reinit", "keep"] = _consolidation(
        "zero", "fast after consolidation; zero: all zero; reinit: new down-projection, zero output; keep: unchanged"
    )
    nested_lora_train: Branches | None = _nested(
        None, "the branches that learn; the others keep their zero output; null: all", expected=SOME_BRANCHES
    )

    classifier_alignment: bool = _alignment(
        False,
        "after each task but the first, train the head on samples of a Gaussian for each class seen, as SLCA does",
        idle_if=None,
    )
    classifier_alignment_epochs: int = _alignment(5, "epochs of this training", ge=1)
    classifier_alignment_samples: int = _alignment(256, "samples of each class in an epoch, and of a batch", ge=1)
    classifier_alignment_lr: float = _alignment(0.01, "its learning rate, with a cosine schedule", gt=0)

    precision: Literal["fp32", "bf16"] = _speed(
        "fp32",
        "fp32: everything in float32; bf16: matrix products in bfloat16; weights, losses, records, routers, "
        "descriptors and head stay in float32",
        first=True,
    )
    views: int = _speed(
        0,
        "after the first task, augmented views of each training image: epoch e uses view e mod views, and what the "
        "frozen blocks make of a view is computed once a task and kept; 0: a new view in every epoch, as in SEMA",
        ge=0,
        unread_by=(*STATISTICS, *WITH_ADAPTER, "finetune", "joint"),
    )
    views_gib: float = _speed(
        4.0,
        "GiB of memory for these activations: that of the GPU, where at most half of what is free is used, or else of "
        "the host",
        ge=0,
        changes_results=False,
    )
    views_disk_gib: float = _speed(
        0.0, "GiB of the disk of the run directory, used if views_gib is too little", ge=0, changes_results=False
    )
    views_bf16: bool = _speed(
        False, "round these activations to bfloat16: half the size, other last digits", idle_if={"views": [0]}
    )
    rd_views: int = _speed(
        0,
        "augmented views of each image in an rd phase: epoch e uses view e mod rd_views, whose token means are kept "
        "(images x rd_views x layers x width x 4 bytes); 0: a new view in every epoch",
        ge=0,
        idle_if={"rd_epoch": [0]},
        idle_beside=["views"],
        unread_by=NO_EXPANSION,
    )
    compile: bool = _speed(
        False, "compile the frozen parts of the blocks (torch.compile; needs a C++ compiler); changes rounding"
    )
    grad_checkpointing: bool = _speed(
        False, "save GPU memory: recompute the frozen blocks in the backward pass", changes_results=False
    )
    augment_on: Literal["host", "device"] = _speed(
        "host",
        "where training images are resized; host: one by one, where they are loaded; device: as a batch, from the same "
        "random parts, without rounding to 8 bits (values differ by at most 1/255)",
        unread_by=NO_TRAINING,
    )
    image_cache_gib: float = _speed(
        2.0,
        "GiB for decoded training images of the current task; files that do not fit are decoded each time they are "
        "loaded; 0: no cache (cifar224 and npz are in memory anyway)",
        ge=0,
        changes_results=False,
    )
    eval_cache_gib: float = _speed(
        4.0,
        "GiB for the activations of test images before adapt_start_layer; later evaluations then compute only the "
        "layers from there on; 0: no cache",
        ge=0,
        changes_results=False,
    )
    eval_cache_on: Literal["memory", "disk"] = _speed(
        "memory", "where to keep these activations; disk: the temporary folder (TMPDIR)", changes_results=False
    )
    eval_cache_bf16: bool = _speed(
        False, "round these activations to bfloat16, cached or not: half the size, but a few predictions may differ"
    )

    seed: Seeds = _run(
        [1993], "seed of the run; several seeds: one run for each", expected=SEEDS, min_length=1, first=True
    )
    device: Device = _run("auto", "device of the run; auto: a GPU if there is one", expected=A_DEVICE, first=True)
    num_threads: int = _run(
        0,
        "CPU threads of the main process, whose number changes last digits; 0: torch's choice, slow if other processes "
        "need the cores",
        ge=0,
        le=1024,
    )
    deterministic: bool = _run(
        False, "on a GPU, use only deterministic algorithms, which are slower; an operation without one ends the run"
    )
    eval_batch_size: int = _run(128, "images in an evaluation batch", ge=1, changes_results=True)
    branch_eval: bool = _run(
        True, "with nested_lora: after each task, also evaluate slow + fast, slow only, fast only and neither"
    )
    readouts: Readouts = _run(
        ["ncm"],
        "classifiers computed from class statistics of the features, whose accuracies are reported beside those of the "
        "head; ncm: nearest class mean; lda: linear discriminant analysis; ranpac: ridge regression on a random "
        "projection; an empty list: none",
        expected=SOME_READOUTS,
    )
    telemetry_every: int = _run(
        0, "with nested_lora: measure the branches every this many steps of a func phase; 0: once per epoch", ge=0
    )
    eval_every: int = _run(
        0, "evaluate every this many epochs of training, on the images of evaluate_on; 0: never", ge=0
    )
    checkpoint_every: int = _run(
        1, "save the run's state every this many epochs, and between phases; 0: only after each task", ge=0
    )
    accept_changed_data: bool = _run(
        False, "continue or evaluate although images were changed, added or removed; the run's record says so"
    )
    resume: PathText | None = _command(None, "directory of an unfinished run to continue")
    auto_resume: bool = _command(
        False, "continue the newest unfinished run of this configuration and seed, if there is one; skip finished runs"
    )
    tensorboard: bool = _run(False, "write TensorBoard files to the run directory; needs the package tensorboard")
    wandb: Text | None = _run(
        None, "Weights & Biases project of the run; also writes TensorBoard files; needs tensorboard and wandb"
    )
    output_dir: PathText = _run("logs", "folder of the run directories", first=True)
    overwrite: bool = _command(
        False, "replace a finished run of the same configuration and seed, or the file of export"
    )
    dry_run: bool = _command(False, "check everything that is checked before training, and end")
    plan: bool = _command(
        False,
        "say what the run will take (images, steps, time, memory, disk) from about ten seconds of its work, and end",
    )
    prefix: str = _run("reproduce", "a label of your own")

    checkpt_path: PathText | None = _command(
        None, "checkpoint to evaluate, to predict with or to export; of a run directory its last checkpoint is taken"
    )
    eval: bool = _command(False, "evaluate checkpt_path on the test images")
    predict: Images | None = _command(
        None, "predict the classes of these images, or of all images in these folders", expected=SOME_IMAGES
    )
    top_k: int = _trained(5, "classes to print for each image, the most probable first", ge=1)
    predict_format: Literal["table", "json", "csv"] = _trained("table", "how predictions are printed")
    export: PathText | None = _command(None, "write a network that needs no other file to this file, NAME.safetensors")
    export_form: Literal["network", "merged", "timm"] = _trained(
        "network",
        "network: backbone, adapters and head as they are; merged: the branches of each adapter merged into one "
        "adaptmlp adapter, an equal function; timm: a plain timm model, possible only if no adapter has an effect "
        "that depends on the image",
    )

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
    """A condition between keys. It is skipped if one of the keys is invalid itself."""

    keys: tuple[str, ...]
    holds: Callable[..., bool]
    reason: str


TOO_HIGH = "min_lr, the end of the cosine schedule, would raise {}".format
CHECKS = (
    Check(
        ("adapt_start_layer", "adapt_end_layer"),
        lambda start, end: start <= end,
        "the first expandable layer lies behind the last; expected adapt_start_layer <= adapt_end_layer",
    ),
    Check(
        ("class_order", "tasks"),
        lambda order, tasks: order is None or tasks is None,
        "give only one of them; the order of tasks is the class order",
    ),
    Check(
        ("evaluate_on", "val_fraction"),
        lambda part, fraction: part == "test" or fraction > 0,
        "there are no validation images to evaluate on; expected val_fraction above 0, such as 0.2",
    ),
    *(Check(("min_lr", rate), lambda floor, lr: floor <= lr, TOO_HIGH(rate)) for rate in ("init_lr", "rd_lr")),
    *(  # used only by adapters with branches
        Check(
            ("min_lr", rate, "ffn_adapter_type"),
            lambda floor, lr, kind: floor <= lr or not ADAPTERS[kind].branches,
            TOO_HIGH(rate),
        )
        for rate in ("nested_lora_lr_fast", "nested_lora_lr_slow")
    ),
    *(
        Check(
            (use, "checkpt_path"),
            lambda wanted, path: not wanted or path is not None,
            f"{use} needs a checkpt_path: a checkpoint or a run directory",
        )
        for use in USES
    ),
    Check(
        (*USES, "dry_run", "plan"),
        lambda *wanted: sum(map(bool, wanted)) <= 1,
        f"give only one of {', '.join(USES)}, dry_run and plan",
    ),
    Check(
        ("export",),
        lambda path: path is None or path.endswith(".safetensors"),
        "expected the name of a file that ends in .safetensors",
    ),
)


def broken_checks(values: Mapping[str, object]) -> Iterator[Check]:
    """Yield the checks that fail, among those whose keys are all in `values`."""
    for key, value in values.items():
        if isinstance(value, int) and value > LARGEST:  # not a bound of the keys, to keep `--help` short
            yield Check((key,), lambda _: False, f"expected at most {LARGEST}")
    for check in CHECKS:
        if values.keys() >= set(check.keys) and not check.holds(*(values[key] for key in check.keys)):
            yield check


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with the current names of keys.

    What an old name says of an adapter type that did not have the key is left out.
    """
    kind = values.get("ffn_adapter_type")
    others = kind is not None and ADAPTERS.ships(kind) and kind != NESTED
    current = {key: value for key, value in values.items() if key not in OLD_NAMES}
    old = {} if others else {new: values[key] for key, new in OLD_NAMES.items() if key in values}
    return {**old, **current}


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of every key in the order of declaration, with the current choices."""
    properties = {key: dict(schema) for key, schema in _declared().items()}
    for key, names in CHOICES.items():
        properties[key]["enum"] = names()
    return properties


@cache
def _declared() -> dict[str, dict[str, Any]]:
    declared: dict[str, dict[str, Any]] = Config.model_json_schema()["properties"]
    return declared


def defaults() -> dict[str, object]:
    """Return the default of every key but `dataset`, which has none. The values are new objects at every call."""
    fields = Config.model_fields.items()
    return {name: field.get_default() for name, field in fields if not field.is_required()}
