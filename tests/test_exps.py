"""Every shipped experiment: what the files hold, against the pages that ask for them."""

import json
from pathlib import Path

import pytest
import torch

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


@pytest.fixture(autouse=True)
def no_data_root_variable(monkeypatch):
    monkeypatch.delenv("SEMA_DATA_ROOT", raising=False)


def settings(name: str) -> dict[str, object]:
    return load(EXPS / f"{name}.json").model_dump(exclude={"device"})


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_a_valid_configuration(name):
    load(EXPS / f"{name}.json")


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


def test_the_quickstart_s_baseline_differs_in_the_adapter_alone():
    nested, baseline = settings("quickstart"), settings("quickstart_adaptmlp")
    assert (nested["ffn_adapter_type"], baseline["ffn_adapter_type"]) == ("nested_lora", "adaptmlp")
    differing = {key for key in nested if nested[key] != baseline[key]}
    assert {key for key in differing if not key.startswith("nested_lora_")} <= {"ffn_adapter_type", "ffn_num"}


@pytest.mark.parametrize("name", NAMES)
def test_the_network_of_a_file_is_built(name):
    """At a twelfth of the width and with random weights: the published ones are a download."""
    config = load(EXPS / f"{name}.json")
    narrow = {**config.backbone_kwargs, "embed_dim": 24, "num_heads": 2}
    keys = {"pretrained": False, "backbone_checkpoint": None, "backbone_kwargs": narrow}
    network = SEMAVitNet(config.model_copy(update=keys), 10).eval()
    size = network.input_spec(normalize=False).size
    assert network(torch.zeros(1, 3, size, size))["logits"].shape == (1, 10)
    layers = range(config.adapt_start_layer, config.adapt_end_layer + 1)
    assert [slot.layer for slot in network.expandable] == list(layers)
    kinds = {"adaptmlp": {"adapter"}, "nested_lora": {"slow", "fast"}}[config.ffn_adapter_type]
    assert {role for role, _ in network.roles()} == {*kinds, "router", "descriptor", "head"}
