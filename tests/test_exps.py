"""Every shipped experiment: what the files hold, against the pages that ask for them."""

import json
from pathlib import Path

import pytest
import torch

from tools.sweep.plan import ignored, plan_of, read_sweep
from utils.config.load import load
from utils.inc_net import SEMAVitNet

EXPS = Path(__file__).parents[1] / "exps"
NAMES = sorted(path.stem for path in EXPS.glob("*.json"))

SEMA_COMMON = {
    "backbone_type": "pretrained_vit_b16_224_adapter", "optimizer": "sgd", "batch_size": 32, "weight_decay": 5e-4,
    "min_lr": 0, "ffn_adapter_type": "adaptmlp", "ffn_num": 16, "rd_epoch": 20, "init_lr": 0.005, "rd_lr": 0.01,
    "rd_dim": 128, "buffer_size": 500, "detect_batch_size": 128, "adapt_start_layer": 9, "adapt_end_layer": 11,
    "seed": [1993], "device": ["0"], "memory_size": 0, "memory_per_class": 0, "fixed_memory": False,
    "model_name": "sema",
}  # fmt: skip
SEMA_COLUMNS = ("dataset", "init_cls", "increment", "func_epoch", "exp_threshold", "shuffle")
SEMA_ROWS = {
    "sema_cifar": ("cifar224", 10, 10, 5, 2, True),
    "sema_inr_5task": ("imagenetr", 40, 40, 20, 2, True),
    "sema_inr_10task": ("imagenetr", 20, 20, 20, 2, True),
    "sema_inr_20tasks": ("imagenetr", 10, 10, 20, 2, True),
    "sema_ina": ("imageneta", 10, 10, 20, 1, False),
    "sema_vtab": ("vtab", 10, 10, 20, 1, False),
}
NESTED = {
    "ffn_adapter_type": "nested_lora", "nested_lora_rank": 16, "nested_lora_lr_fast": 0.01,
    "nested_lora_lr_slow": 0.001,
    "nested_lora_update_interval_slow": 5, "nested_lora_use_consolidation": False,
}  # fmt: skip
EQUAL_RATES = {
    "nested_lora_lr_fast": 0.005, "nested_lora_lr_slow": 0.005, "nested_lora_update_interval_slow": 1,
}  # fmt: skip
# each as what it changes in another
VARIANTS = {
    "nested_lora_cifar": ("sema_cifar", NESTED),
    "nested_lora_cifar_2task": ("nested_lora_cifar", {"init_cls": 50, "increment": 10, "max_tasks": 2}),
    "nested_lora_inr_10task": ("sema_inr_10task", NESTED),
    "nested_lora_cifar_consolidate_weights": ("nested_lora_cifar", {"nested_lora_use_consolidation": True}),
    "nested_lora_cifar_consolidate_function": (
        "nested_lora_cifar",
        {
            "nested_lora_use_consolidation": True,
            "nested_lora_consolidation_mode": "function",
            "nested_lora_consolidation_alpha": 1.0,
        },
    ),
    "nested_lora_cifar_continual": ("nested_lora_cifar", {"adapter_lifetime": "continual"}),
    **{
        f"nested_lora_cifar_continual_consolidate_{name}": (
            "nested_lora_cifar_continual",
            {
                "nested_lora_use_consolidation": True,
                "nested_lora_consolidation_mode": mode,
                "nested_lora_consolidation_alpha": alpha,
                "nested_lora_fast_reset": reset,
            },
        )
        for name, mode, alpha, reset in (
            ("weights", "weights", 0.2, "keep"),
            ("function", "function", 1.0, "zero"),
            ("function_share", "function", 0.2, "keep"),
        )
    },
    "pair_rank8_nested_lora_cifar": ("nested_lora_cifar", {"nested_lora_rank": 8}),
    "pair_rank8_equal_rates_nested_lora_cifar": ("pair_rank8_nested_lora_cifar", EQUAL_RATES),
    "pair_rank8_adaptmlp_cifar": ("sema_cifar", {"ffn_num": 16}),
    "pair_rank16_nested_lora_cifar": ("nested_lora_cifar", {"nested_lora_rank": 16}),
    "pair_rank16_equal_rates_nested_lora_cifar": ("pair_rank16_nested_lora_cifar", EQUAL_RATES),
    "pair_rank16_adaptmlp_cifar": ("sema_cifar", {"ffn_num": 32}),
}

WITHOUT_EFFECT = {"memory_size", "memory_per_class", "fixed_memory", "vpt_type", "prompt_token_num"}
EXPANSION = {
    "adapt_start_layer", "adapt_end_layer", "rd_epoch", "rd_lr", "rd_dim", "buffer_size", "detect_batch_size",
    "exp_threshold",
}  # fmt: skip
ADAPTER = {"ffn_adapter_type", "ffn_num"}
TRAINING = {"batch_size", "optimizer", "func_epoch", "init_lr", "min_lr", "weight_decay"}
# what each baseline changes in SEMA's file, and the keys of that file that it does not read
BASELINES: dict[str, tuple[dict[str, object], set[str]]] = {
    "finetune": ({"model_name": "finetune"}, EXPANSION),
    "linear": ({"model_name": "linear"}, EXPANSION | ADAPTER),
    "joint": ({"model_name": "joint"}, EXPANSION),
    **{
        f"{name}{suffix}": ({"model_name": name} | changes, EXPANSION | unread)
        for name in ("simplecil", "ranpac")
        for suffix, changes, unread in (
            ("", {}, ADAPTER | TRAINING),
            ("_first_session", {"first_session_adaptation": True}, set[str]()),
        )
    },
}
CONTINUAL = {"adapter_lifetime": "continual"}
CONSOLIDATION = {f"nested_lora_{key}" for key in ("consolidation_alpha", "consolidation_mode", "fast_reset")}
NOT_NESTED = WITHOUT_EFFECT | CONSOLIDATION | {"ffn_num"}
SLOW_UPDATE = {"nested_lora_slow_update"}
CONTROLS: dict[str, tuple[dict[str, object], set[str]]] = {  # of files with nested_lora
    "equal_rates": (EQUAL_RATES, NOT_NESTED | SLOW_UPDATE),
    "equal_rates_continual": (EQUAL_RATES | CONTINUAL, NOT_NESTED | SLOW_UPDATE),
    "continual": (CONTINUAL, NOT_NESTED),
    "fast_only": (
        {"nested_lora_train": ["fast"]},
        NOT_NESTED | SLOW_UPDATE | {"nested_lora_lr_slow", "nested_lora_update_interval_slow"},
    ),
    "slow_only": ({"nested_lora_train": ["slow"]}, NOT_NESTED | {"nested_lora_lr_fast"}),
}
# each as (file that it is made from, what it changes there, keys that it leaves out as nothing reads them)
SHORTENED = {
    **{
        name.format(baseline): (origin, changes, unread | WITHOUT_EFFECT)
        for baseline, (changes, unread) in BASELINES.items()
        for name, origin in (
            ("baseline_{}_cifar", "sema_cifar"),
            ("baseline_{}_inr_10task", "sema_inr_10task"),
            ("quickstart_{}", "quickstart_adaptmlp"),
        )
    },
    **{f"quickstart_{control}": ("quickstart", *CONTROLS[control]) for control in CONTROLS},
    **{
        f"control_{control}_nested_lora_{stream}": (f"nested_lora_{stream}", *CONTROLS[control])
        for control, stream in (
            *((control, "cifar") for control in ("equal_rates_continual", "fast_only", "slow_only")),
            *((control, "inr_10task") for control in CONTROLS if control != "continual"),
        )
    },
    "control_adaptmlp_continual_cifar": ("pair_rank16_adaptmlp_cifar", CONTINUAL, WITHOUT_EFFECT),
    "control_adaptmlp_inr_10task": ("sema_inr_10task", {"ffn_num": 32}, WITHOUT_EFFECT),
    "control_adaptmlp_continual_inr_10task": ("sema_inr_10task", {"ffn_num": 32} | CONTINUAL, WITHOUT_EFFECT),
    "quickstart_adaptmlp_continual": ("quickstart_adaptmlp", CONTINUAL, WITHOUT_EFFECT),
}


@pytest.fixture(autouse=True)
def no_data_root_variable(monkeypatch):
    monkeypatch.delenv("SEMA_DATA_ROOT", raising=False)


def settings(name: str) -> dict[str, object]:
    return load(EXPS / f"{name}.json").model_dump(exclude={"device"})


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_a_valid_configuration_without_a_key_that_is_ignored(name):
    ignored_keys: list[str] = []
    load(EXPS / f"{name}.json", warn=ignored_keys.append)
    assert ignored_keys == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (EXPS / "sweeps").glob("*.json")))
def test_no_sweep_sets_a_key_that_is_ignored(name):
    path = EXPS / "sweeps" / f"{name}.json"
    sweep = read_sweep(path)
    assert ignored(plan_of(path, sweep, sweep.members(), "logs/sweeps", sweep.seeds)) == []


@pytest.mark.parametrize("name", SEMA_ROWS)
def test_sema_files_hold_the_published_settings(name):
    file = json.loads((EXPS / f"{name}.json").read_text())
    expected = SEMA_COMMON | dict(zip(SEMA_COLUMNS, SEMA_ROWS[name], strict=True))
    assert {key: file[key] for key in expected} == expected
    assert set(file) - set(expected) == {"prefix", "vpt_type", "prompt_token_num"}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_change_what_their_names_say_and_nothing_else(name):
    origin, changes = VARIANTS[name]
    assert settings(name) == settings(origin) | changes


@pytest.mark.parametrize("name", SHORTENED)
def test_baselines_and_controls_hold_what_they_change_and_no_key_that_nothing_reads(name):
    origin, changes, unread = SHORTENED[name]
    file, whole = (json.loads((EXPS / f"{of}.json").read_text()) for of in (name, origin))
    expected = {key: value for key, value in (whole | changes).items() if key not in unread}
    assert {**file, "device": None} == {**expected, "device": None}


def test_the_quickstart_s_baseline_differs_in_the_adapter_alone():
    nested, baseline = settings("quickstart"), settings("quickstart_adaptmlp")
    assert (nested["ffn_adapter_type"], baseline["ffn_adapter_type"]) == ("nested_lora", "adaptmlp")
    differing = {key for key in nested if nested[key] != baseline[key]}
    assert {key for key in differing if not key.startswith("nested_lora_")} <= {"ffn_adapter_type", "ffn_num"}


STRUCTURE = (
    "backbone_type", "backbone_kwargs", "ffn_adapter_type", "ffn_num", "nested_lora_rank", "nested_lora_train",
    "adapt_start_layer", "adapt_end_layer", "rd_dim", "rd_epoch",
)  # fmt: skip


def structure(name: str) -> str:
    file = json.loads((EXPS / f"{name}.json").read_text())
    return json.dumps([file.get(key) for key in STRUCTURE])


@pytest.mark.parametrize("name", {structure(name): name for name in NAMES}.values())
def test_the_network_of_a_file_is_built(name):
    """At a twelfth of the width and with random weights: the published ones are a download."""
    config = load(EXPS / f"{name}.json")
    narrow = {**config.backbone_kwargs, "embed_dim": 24, "num_heads": 2}
    keys = {"pretrained": False, "backbone_checkpoint": None, "backbone_kwargs": narrow}
    network = SEMAVitNet(config.model_copy(update=keys), 10).eval()
    size = network.input_spec(normalize=False).size
    assert network(torch.zeros(1, 3, size, size))["logits"].shape == (1, 10)
    expansion = config.model_name == "sema"
    layers = range(config.adapt_start_layer, config.adapt_end_layer + 1) if expansion else ()
    assert [slot.layer for slot in network.expandable] == list(layers)
    kinds = {"adaptmlp": {"adapter"}, "nested_lora": {"slow", "fast"}}[config.ffn_adapter_type]
    expected = {*kinds, "router", "head"} | ({"descriptor"} if expansion else set())
    assert {role for role, _ in network.roles()} == expected
