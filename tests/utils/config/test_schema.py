import contextlib
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from adapter_cases import registered
from hypothesis import given
from hypothesis import strategies as st

from utils.choices import ADAPTERS, LEARNERS
from utils.config.flags import parse
from utils.config.identity import content, counted, digests, idle_keys, on_record, result_hash, without_idle_keys
from utils.config.load import load, resolve
from utils.config.schema import USES, Config, defaults, schemas
from utils.datasets import DATASETS
from utils.errors import ConfigError, UserError

# Defaults as sema.md and nested_lora.md state them.
SEMA_DEFAULTS = {
    "backbone_type": "pretrained_vit_b16_224_adapter", "optimizer": "sgd", "batch_size": 32, "weight_decay": 5e-4,
    "min_lr": 0.0, "ffn_num": 16, "rd_epoch": 20, "init_lr": 0.005, "rd_lr": 0.01, "rd_dim": 128, "buffer_size": 500,
    "detect_batch_size": 128, "adapt_start_layer": 9, "adapt_end_layer": 11, "seed": [1993], "model_name": "sema",
    "normalize": False, "checkpt_path": None, "eval": False,
}  # fmt: skip
NESTED_DEFAULTS = {
    "ffn_adapter_type": "adaptmlp", "nested_lora_rank": 16, "nested_lora_lr_fast": 0.01, "nested_lora_lr_slow": 0.001,
    "nested_lora_update_interval_slow": 1, "nested_lora_slow_update": "skip", "nested_lora_use_consolidation": False,
    "nested_lora_consolidation_alpha": 0.1, "nested_lora_consolidation_mode": "weights",
    "nested_lora_fast_reset": "zero", "adapter_lifetime": "expansion", "nested_lora_train": None,
}  # fmt: skip
NO_INFLUENCE = {
    "tensorboard", "wandb",
    "seed", "device", "num_workers", "output_dir", "overwrite", "data_root", "prefix", "checkpt_path", "eval",
    "predict", "top_k", "predict_format", "export", "export_form",
    "eval_every", "branch_eval", "readouts", "telemetry_every", "num_threads", "deterministic",
    "views_gib", "views_disk_gib",
    "eval_cache_gib", "eval_cache_on", "grad_checkpointing", "resume", "auto_resume", "dry_run", "plan",
    "checkpoint_every", "on_nan", "image_cache_gib", "accept_changed_data",
    "memory_size", "memory_per_class", "fixed_memory", "vpt_type", "prompt_token_num",
}  # fmt: skip

# A file of the public implementation, key by key.
PUBLIC_FILE = """{
    "prefix": "reproduce", "dataset": "cifar224", "memory_size": 0, "memory_per_class": 0, "fixed_memory": false,
    "shuffle": true, "init_cls": 10, "increment": 10, "model_name": "sema",
    "backbone_type": "pretrained_vit_b16_224_adapter", "device": ["0"], "seed": [1993], "batch_size": 32,
    "weight_decay": 0.0005, "min_lr": 0, "ffn_adapter_type": "adaptmlp", "ffn_num": 16, "optimizer": "sgd",
    "vpt_type": "deep", "prompt_token_num": 5, "func_epoch": 5, "rd_epoch": 20, "init_lr": 0.005, "rd_lr": 0.01,
    "rd_dim": 128, "buffer_size": 500, "detect_batch_size": 128, "exp_threshold": 2, "adapt_start_layer": 9,
    "adapt_end_layer": 11
}"""


@pytest.fixture(autouse=True)
def no_data_root_variable(monkeypatch):
    monkeypatch.delenv("SEMA_DATA_ROOT", raising=False)


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "x.json") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def problems(path=None, **flags) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, flags)
    return str(caught.value).splitlines()


def the_problem(path=None, **flags) -> str:
    (line,) = problems(path, **flags)
    return line


def test_defaults_are_those_of_the_specification():
    config = load(None, {"dataset": "cub"}).model_dump()
    expected = SEMA_DEFAULTS | NESTED_DEFAULTS
    assert {key: config[key] for key in expected} == expected


def test_every_key_says_what_it_means():
    assert [key for key, schema in schemas().items() if len(schema.get("description", "")) < 5] == []


def test_a_file_of_the_public_implementation_loads_as_it_is(write):
    config = load(write(PUBLIC_FILE))
    assert (config.device, config.seed, config.exp_threshold, config.min_lr) == ("0", [1993], 2.0, 0.0)


def test_flags_beat_file_beats_defaults(write):
    path = write('{"dataset": "cub", "batch_size": 64, "ffn_num": 8}')
    config = load(path, {"ffn_num": 4})
    assert (config.ffn_num, config.batch_size, config.func_epoch) == (4, 64, 5)


def test_file_and_flags_are_merged_before_they_are_judged(write):
    path = write('{"dataset": "cub", "adapt_start_layer": 3, "batch_size": -1}')
    assert load(path, {"adapt_end_layer": 3, "batch_size": 1}).adapt_start_layer == 3


def test_data_root_flag_beats_environment_beats_file_beats_default(write, monkeypatch):
    path, bare = write('{"dataset": "cub", "data_root": "file"}'), write('{"dataset": "cub"}', "bare.json")
    assert load(bare).data_root == "data"
    assert load(path).data_root == "file"
    monkeypatch.setenv("SEMA_DATA_ROOT", "environment")
    assert load(path).data_root == "environment"
    assert load(path, {"data_root": "flag"}).data_root == "flag"
    monkeypatch.setenv("SEMA_DATA_ROOT", "")
    assert load(path).data_root == "file"


def test_a_resolved_configuration_loads_again_unchanged(write):
    config = load(None, {"dataset": "cub", "seed": [1, 2], "device": -1, "backbone_kwargs": {"depth": 2}})
    assert load(write(json.dumps(config.model_dump(mode="json")))) == config


def test_config_is_frozen():
    config = load(None, {"dataset": "cub"})
    with pytest.raises(ValueError, match="frozen"):
        config.batch_size = 1


# ---------------------------------------------------------------- messages


def test_all_problems_at_once_one_line_each(write):
    path = write('{"dataset": "cifar10", "nested_lora_ranks": 8, "batch_size": 0, "optimizer": "SGD", "eval": true}')
    lines = problems(path, init_lr="fast", rd_dim=0)
    assert len(lines) == 7
    found = {line.split(" = ")[0]: line for line in lines}
    assert set(found) == {"dataset", "nested_lora_ranks", "batch_size", "optimizer", "eval", "init_lr", "rd_dim"}
    assert found["dataset"].startswith(f'dataset = "cifar10" ({path}): expected one of cifar224, imagenetr, ')
    assert found["dataset"].endswith("; did you mean cifar224?")
    assert found["nested_lora_ranks"] == f"nested_lora_ranks = 8 ({path}): unknown key; did you mean nested_lora_rank?"
    assert found["batch_size"] == f"batch_size = 0 ({path}): expected an integer >= 1"
    assert found["optimizer"].endswith("expected one of sgd, adam; did you mean sgd?")
    assert found["init_lr"] == 'init_lr = "fast" (flag --init_lr): expected a finite number > 0'
    assert "flag --rd_dim" in found["rd_dim"]
    assert "checkpt_path" in found["eval"]


@pytest.mark.parametrize(
    ("key", "text", "meant"),
    [
        ("init_lr", "1e-3", "; did you mean 0.001, without quotes?"),
        ("batch_size", "32", "; did you mean 32, without quotes?"),
        ("normalize", "true", "; did you mean true, without quotes?"),
        ("max_tasks", "null", "; did you mean null, without quotes?"),
        ("init_lr", "nan", ""),
        ("batch_size", "many", ""),
    ],
)
def test_text_that_a_flag_would_take_as_a_number_is_told_to_lose_its_quotes(write, key, text, meant):
    (line,) = problems(write(json.dumps({"dataset": "npz", key: text})))
    assert line.startswith(f'{key} = "{text}" (')
    assert line.partition("expected ")[2].partition(";")[1:] == (meant[:1], meant[1:])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0), ("batch_size", 32.0), ("batch_size", "32"), ("batch_size", True), ("batch_size", None),
        ("init_cls", 0), ("increment", 0), ("max_tasks", 0), ("num_workers", -1), ("eval_batch_size", 0),
        ("eval_every", -1), ("func_epoch", 0), ("rd_epoch", -1), ("buffer_size", 2), ("detect_batch_size", 0),
        ("rd_dim", 0), ("ffn_num", 0), ("adapt_start_layer", -1), ("adapt_end_layer", -1), ("weight_decay", -1e-9),
        ("min_lr", -1e-9), ("init_lr", 0), ("rd_lr", 0), ("init_lr", float("nan")), ("init_lr", float("inf")),
        ("init_lr", 10**400), ("init_lr", True), ("exp_threshold", -1), ("exp_threshold", float("inf")),
        ("nested_lora_rank", 0), ("nested_lora_lr_fast", 0), ("nested_lora_lr_slow", 0),
        ("nested_lora_update_interval_slow", -1), ("nested_lora_consolidation_alpha", -0.1),
        ("nested_lora_consolidation_alpha", 1.1), ("nested_lora_consolidation_mode", "weight"),
        ("nested_lora_slow_update", "skipping"), ("nested_lora_fast_reset", "zeros"),
        ("adapter_lifetime", "continuous"), ("nested_lora_use_consolidation", 1), ("ffn_adapter_type", "lora"),
        ("shuffle", "true"), ("eval", 0), ("overwrite", "False"), ("pretrained", 1), ("normalize", None),
        ("optimizer", "adamw"), ("model_name", "der"), ("dataset", "CIFAR"), ("backbone_type", ""), ("output_dir", ""),
        ("checkpt_path", ""), ("data_root", None), ("prefix", 3), ("prefix", "\udcff"), ("memory_size", -1),
        ("image_cache_gib", -0.1),
        ("backbone_kwargs", []), ("backbone_kwargs", {"a": float("inf")}),
        ("backbone_kwargs", {"a": [{"b": float("nan")}]}),
        ("batch_size", 2**31), ("buffer_size", 10**400), ("max_tasks", 10**30), ("ffn_num", 8193), ("rd_dim", 8193),
        ("nested_lora_rank", 8193), ("num_workers", 1025), ("num_threads", 1025), ("data_root", "a\0b"),
        ("output_dir", "\0"), ("checkpt_path", "a\0"), ("backbone_checkpoint", "\0a"), ("backbone_type", "a\0_adapter"),
        ("seed", []), ("seed", -1), ("seed", 2**32), ("seed", [1, True]), ("seed", "1"), ("seed", [1, 2, 1]),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named_with_what_was_expected(key, value):
    line = the_problem(**{"dataset": "cub", key: value})
    assert line.startswith(f"{key} = ")
    assert f"(flag --{key}): " in line
    assert "expected " in line


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("nested_lora_ranks", "nested_lora_rank"), ("batch-size", "batch_size"), ("learning_rate_slow", None),
        ("Dataset_", "dataset"), ("checkpoint_path", "checkpt_path"), ("func_epochs", "func_epoch"),
    ],
)  # fmt: skip
def test_unknown_key_gets_the_nearest_known_one(typo, meant):
    line = the_problem(**{"dataset": "cub", typo: 1})
    assert line == f"{typo} = 1 (flag --{typo}): unknown key" + (f"; did you mean {meant}?" if meant else "")


def test_missing_dataset_says_where_it_is_missing(write):
    path = write("{}")
    assert the_problem(path).startswith(f"dataset: missing in {path}; expected one of cifar224, ")
    assert "no --config given" in the_problem()


def test_the_environment_variable_is_named_as_the_source(monkeypatch):
    monkeypatch.setenv("SEMA_DATA_ROOT", "\udc80")
    assert "(environment variable SEMA_DATA_ROOT): " in the_problem(dataset="cub")


@pytest.mark.parametrize("key", ["dataset", "nested", "line\nbreak\x1b", "y" * 5000])
def test_a_message_stays_one_short_line_whatever_key_and_value(write, key):
    line = the_problem(write(json.dumps({"dataset": "cub", key: "line\nbreak\x1b[31m" + "x" * 5000})))
    assert len(line) < 500
    assert "\x1b" not in line


# ---------------------------------------------------------------- choices that can be added to


def test_a_registered_adapter_type_is_a_choice_as_long_as_it_is_registered():
    with registered("gain"):
        assert load(None, {"dataset": "cub", "ffn_adapter_type": "gain"}).ffn_adapter_type == "gain"
        assert schemas()["ffn_adapter_type"]["enum"] == ["adaptmlp", "nested_lora", "gain"]
        line = the_problem(dataset="cub", ffn_adapter_type="gian")
    assert line.endswith("expected one of adaptmlp, nested_lora, gain; did you mean gain?")
    assert the_problem(dataset="cub", ffn_adapter_type="gain").endswith(
        "expected one of adaptmlp, nested_lora; if it is one of your own, load its file with --plugin"
    )


def test_the_rates_of_time_scales_are_checked_for_every_type_with_branches():
    keys = {"dataset": "cub", "min_lr": 0.002}
    with registered("gain", "three_branches"):
        assert load(None, {**keys, "ffn_adapter_type": "gain"}).min_lr == 0.002
        line = the_problem(**keys, ffn_adapter_type="three_branches")
    assert "min_lr = 0.002" in line
    assert "nested_lora_lr_slow = 0.001" in line


def test_a_check_between_keys_ignores_an_adapter_type_that_is_unknown():
    assert the_problem(dataset="cub", min_lr=0.002, ffn_adapter_type="lora").startswith("ffn_adapter_type = ")


# ---------------------------------------------------------------- between keys


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"adapt_start_layer": 5, "adapt_end_layer": 4}, ["adapt_start_layer = 5", "adapt_end_layer = 4"]),
        ({"min_lr": 0.006}, ["min_lr = 0.006", "init_lr = 0.005 (default)"]),
        ({"min_lr": 0.05, "init_lr": 1.0}, ["min_lr = 0.05", "rd_lr = 0.01 (default)"]),
        ({"min_lr": 0.002, "ffn_adapter_type": "nested_lora"}, ["min_lr = 0.002", "nested_lora_lr_slow = 0.001"]),
        (
            {"min_lr": 0.004, "ffn_adapter_type": "nested_lora", "nested_lora_lr_slow": 1, "nested_lora_lr_fast": 1e-3},
            ["min_lr = 0.004", "nested_lora_lr_fast = 0.001"],
        ),
        ({"eval": True}, ["eval = true", "checkpt_path = null (default)"]),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_both_named(keys, named):
    line = the_problem(dataset="cub", **keys)
    assert [text for text in named if text not in line] == []
    with pytest.raises(ValueError, match=r"would raise|lies behind|needs"):
        Config(dataset="cub", **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"adapt_start_layer": 4, "adapt_end_layer": 4},
        {"min_lr": 0.005},
        {"min_lr": 0.001, "ffn_adapter_type": "nested_lora"},
        {"min_lr": 0.002, "ffn_adapter_type": "adaptmlp"},
        {"eval": True, "checkpt_path": "x.safetensors"},
        {"checkpt_path": "x.safetensors"},
        {"ffn_adapter_type": "adaptmlp", "nested_lora_rank": 3, "nested_lora_update_interval_slow": 7},
        {"pretrained": True, "backbone_checkpoint": "x.safetensors"},
    ],
)
def test_combinations_that_are_fine(keys):
    assert load(None, {"dataset": "cub", **keys}).model_dump(include=set(keys)) == keys


def test_a_check_between_keys_waits_for_valid_keys():
    assert the_problem(dataset="cub", adapt_start_layer="x", adapt_end_layer=1).startswith("adapt_start_layer = ")


def test_an_empty_text_may_be_an_argument_of_timm():
    assert load(None, {"dataset": "cub", "backbone_kwargs": {"global_pool": ""}}).backbone_kwargs == {"global_pool": ""}


def test_weights_are_not_named_twice():
    assert "backbone_checkpoint" in the_problem(dataset="cub", backbone_kwargs={"checkpoint_path": "x.pth"})
    for kwarg in ("pretrained_cfg", "pretrained_cfg_overlay"):
        assert "backbone_checkpoint" in the_problem(dataset="cub", backbone_kwargs={kwarg: {"hf_hub_id": "a/b"}})


def test_no_key_makes_timm_write_where_no_run_writes():
    assert "cache_dir is not passed on" in the_problem(dataset="cub", backbone_kwargs={"cache_dir": "/etc"})


# ---------------------------------------------------------------- device and seed


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("auto", "auto"), ("cpu", "cpu"), ("cuda", "cuda"), ("0", "0"), (0, "0"), (3, "3"), (-1, "cpu"), ("-1", "cpu"),
        (["0"], "0"), ([-1], "cpu"), (["auto"], "auto"),
    ],
)  # fmt: skip
def test_device_has_one_name(value, name):
    assert load(None, {"dataset": "cub", "device": value}).device == name


def test_several_devices_are_refused_for_now():
    assert "for now" in the_problem(dataset="cub", device=["0", "1"])


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("cuda:2", "2"),
        ("CPU", "cpu"),
        ("aut", "auto"),
        ("tpu", "cpu"),
        (-2, None),
        (True, None),
        (None, None),
        ("", None),
    ],
)
def test_device_that_is_none(value, meant):
    line = the_problem(dataset="cub", device=value)
    assert '"auto", "cpu", "cuda"' in line
    assert line.endswith(f'did you mean "{meant}"?') == (meant is not None)


@pytest.mark.parametrize(("value", "seeds"), [(3, [3]), ([1, 2], [1, 2]), (0, [0]), (2**32 - 1, [2**32 - 1])])
def test_seed_is_a_list(value, seeds):
    assert load(None, {"dataset": "cub", "seed": value}).seed == seeds


# ---------------------------------------------------------------- files


def test_syntax_error_names_line_and_column(write):
    path = write('{\n    "dataset": "cub",\n    "batch_size" 32\n}')
    assert the_problem(path).startswith(f"{path}: line 3, column 18: ")


def test_missing_file_suggests_those_with_similar_names(write, tmp_path):
    write("{}", "nested_lora_cifar.json")
    write("{}", "sema_vtab.json")
    line = the_problem(tmp_path / "nested_lora_cifr.json")
    assert line.endswith("no such file; did you mean nested_lora_cifar.json?")


def test_a_missing_file_by_a_relative_path_is_said_to_start_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        the_problem(Path("c.json"))
        == f"c.json: no such file (a relative path starts at the working directory, {tmp_path})"
    )


def test_missing_folder_is_named(tmp_path):
    assert str(tmp_path / "nowhere") in the_problem(tmp_path / "nowhere" / "x.json")


def test_a_repeated_key_is_an_error_by_itself(write):
    path = write('{"dataset": "cub", "ffn_num": 4, "ffn_num": 4}')
    assert the_problem(path) == f"ffn_num: given twice in {path}; keep one"


def test_repeated_keys_are_errors_listed_with_the_others(write):
    path = write(
        '{"dataset": "cub", "ffn_num": 4, "ffn_num": 8, "backbone_kwargs": {"depth": 2, "depth": 3}, "rd_dim": 0}'
    )
    assert {line.split(":")[0].split(" =")[0] for line in problems(path)} == {"ffn_num", "depth", "rd_dim"}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b'"cub"', b"null", b"\xff\xfe", b'{"dataset": "cub"', b"{'dataset': 'cub'}", b'{"dataset": "cub",}',
        b"[" * 100_000, b'{"dataset": "cub", "seed": ' + b"1" * 5000 + b"}", b'{"dataset": "cub", "prefix": "\\ud800"}',
        b'{"dataset": "cub", "backbone_kwargs": {"a": "\\ud800"}}',
        b'{"dataset": "cub", "init_lr": NaN}', b'{"dataset": "cub", "init_lr": 1e999}',
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_refused_by_name(write, content):
    path = write(content)
    assert str(path) in the_problem(path)


def test_a_folder_is_no_configuration(tmp_path):
    assert str(tmp_path) in the_problem(tmp_path)


def test_a_byte_order_mark_is_harmless(write):
    assert load(write(b'\xef\xbb\xbf{"dataset": "cub"}')).dataset == "cub"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(schemas())) | st.text(max_size=8), JSON_VALUES, max_size=6))
def test_any_values_give_a_config_or_a_config_error(values):
    with contextlib.suppress(ConfigError):
        json.dumps(resolve({"dataset": "cub", **values}, "values").model_dump(mode="json"), allow_nan=False)


def test_config_error_is_a_user_error_and_a_value_error():
    assert issubclass(ConfigError, UserError)
    assert issubclass(ConfigError, ValueError)


# ---------------------------------------------------------------- defaults and the hash


def test_defaults_share_nothing_between_calls():
    first = defaults()
    assert {key: first[key] for key in NESTED_DEFAULTS} == NESTED_DEFAULTS
    assert set(first) == set(Config.model_fields) - {"dataset"}
    first["backbone_kwargs"]["depth"] = 2
    first["seed"].append(1)
    assert (defaults()["backbone_kwargs"], defaults()["seed"]) == ({}, [1993])
    assert load(None, {"dataset": "cub"}).backbone_kwargs == {}


OTHER_VALUES = {
    "dataset": "vtab", "model_name": None, "shuffle": False, "on_bad_image": "skip", "optimizer": "adam",
    "ffn_adapter_type": "nested_lora",
    "backbone_kwargs": {"depth": 2}, "nested_lora_slow_update": "accumulate", "nested_lora_use_consolidation": True,
    "nested_lora_consolidation_mode": "function", "nested_lora_fast_reset": "keep", "adapter_lifetime": "continual",
    "nested_lora_continual_layers": "expandable", "nested_lora_train": ["fast"], "first_session_adaptation": True,
    "pretrained": False, "normalize": True, "overwrite": True, "auto_resume": True, "dry_run": True, "plan": True,
    "on_nan": "skip",
    "resume": "r", "deterministic": True, "eval_cache_on": "disk", "eval_cache_bf16": True,
    "precision": "bf16", "compile": True, "grad_checkpointing": True, "augment_on": "device",
    "class_order_seed": 3, "class_order": ["b", 0], "tasks": [["b"], [0]], "transient": [1],
    "leave_out_transient": True, "val_fraction": 0.1, "classifier_alignment": True,
    "views_bf16": True, "evaluate_on": "val",
    "fixed_memory": True, "branch_eval": False, "accept_changed_data": True,
    "max_tasks": 3, "seed": [7],
    "tensorboard": True, "wandb": "a project",
    "device": "cpu", "backbone_checkpoint": "a.pth", "checkpt_path": "b.pth", "nested_lora_consolidation_alpha": 0.2,
    "readouts": ["lda"], "min_lr": 0.0001, "adapt_start_layer": 8, "predict_format": "csv", "export_form": "timm",
}  # fmt: skip


NESTED = {"ffn_adapter_type": "nested_lora"}
OF_NESTED = [key for key in NESTED_DEFAULTS if key.startswith("nested_lora")]
OF_CONSOLIDATION = [f"nested_lora_{name}" for name in ("consolidation_alpha", "consolidation_mode", "fast_reset")]
OF_ALIGNMENT = [f"classifier_alignment_{name}" for name in ("epochs", "samples", "lr")]
ACTS_WITH = {  # by the keys that act only together with others
    **dict.fromkeys(OF_NESTED, NESTED),
    **{key: {**NESTED, "nested_lora_use_consolidation": True} for key in OF_CONSOLIDATION},
    "nested_lora_slow_update": {**NESTED, "nested_lora_update_interval_slow": 2},
    "nested_lora_continual_layers": {"adapter_lifetime": "continual"},
    "leave_out_transient": {"transient": [2]},
    "views_bf16": {"views": 2},
    **{key: {"classifier_alignment": True} for key in OF_ALIGNMENT},
    "first_session_adaptation": {"model_name": "ranpac"},
    "evaluate_on": {"val_fraction": 0.2},
}
UNUSED = [
    "nested_lora_continual_layers",
    "leave_out_transient",
    "first_session_adaptation",
    *OF_ALIGNMENT,
    "views_bf16",
]  # by default
NOT_READ = {  # some of the keys that a learner does not use
    "linear": ["ffn_num", "exp_threshold", "adapter_lifetime", "adapt_end_layer", "rd_epoch", "rd_views"],
    "finetune": [
        "views",
        "exp_threshold",
        "adapter_lifetime",
        "rd_lr",
        "first_session_adaptation",
        "nested_lora_continual_layers",
    ],
    "joint": ["classifier_alignment", "buffer_size", "adapt_start_layer", "rd_dim"],
    "simplecil": ["init_lr", "func_epoch", "optimizer", "ffn_num", "augment_on"],
    "ranpac": ["batch_size", "weight_decay", "adapter_lifetime"],
}
OLD, NEW = "nested_lora_lifetime", "adapter_lifetime"
SF = ("slow", "fast")
IDLE = [  # keys without effect, and beside what
    *((key, {}) for key in OF_NESTED),
    *((key, NESTED) for key in ["ffn_num", "nested_lora_slow_update", *OF_CONSOLIDATION]),
    ("nested_lora_slow_update", {**NESTED, "nested_lora_update_interval_slow": 0}),
    ("class_order_seed", {"shuffle": False}),
    *((key, {"class_order": [1, 0]}) for key in ("shuffle", "class_order_seed")),
    *((key, {"tasks": [["b"], [0]]}) for key in ("shuffle", "class_order_seed", "init_cls", "increment")),
    *((key, {}) for key in UNUSED),
    *((key, {"rd_epoch": 0}) for key in ("rd_lr", "rd_views")),
    ("rd_views", {"views": 2}),
    *((key, {"model_name": name}) for name, keys in NOT_READ.items() for key in keys),
    ("exp_threshold", {"model_name": "ranpac", "first_session_adaptation": True}),
    *((f"nested_lora_lr_{name}", {**NESTED, "nested_lora_train": [other]}) for name, other in (SF, SF[::-1])),
]


def other_value(key: str, value: object) -> object:
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    return value + "x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("key", sorted(set(Config.model_fields) - {"model_name", *USES}))
def test_hash_changes_with_every_key_that_changes_results_and_with_no_other(key):
    beside = {"dataset": "cub", **ACTS_WITH.get(key, {})}
    plain = load(None, beside)
    other = load(None, {**beside, key: other_value(key, getattr(plain, key))})
    assert getattr(other, key) != getattr(plain, key)
    assert (result_hash(other) != result_hash(plain)) == (key not in NO_INFLUENCE)


@pytest.mark.parametrize(("key", "others"), IDLE)
def test_a_key_without_effect_is_ignored_with_a_word_and_changes_no_hash(key, others, write):
    beside = {"dataset": "cub", **others}
    value = other_value(key, defaults()[key])
    said = []
    plain, other = (load(write(json.dumps(beside | more)), warn=said.append) for more in ({}, {key: value}))
    (text,) = said
    assert text.startswith(f"{key} = {json.dumps(value)} (") if not isinstance(value, str) else key in text
    assert ": ignored, as " in text
    assert result_hash(other) == result_hash(plain)
    values = other.model_dump(mode="json")
    assert (key in counted(values), key in on_record(other)) == (False, False)
    assert without_idle_keys(other) == without_idle_keys(plain)
    text = json.dumps({**beside, {NEW: OLD}.get(key, key): value}, sort_keys=True, separators=(",", ":"))
    assert hashlib.blake2b(text.encode(), digest_size=4).hexdigest() in digests(values)


def test_keys_without_effect_are_named_with_their_place_and_the_reason(write):
    said = []
    path = write('{"dataset": "cub", "nested_lora_rank": 4, "nested_lora_lr_fast": 0.01, "shuffle": false}')
    config = load(path, {"nested_lora_lr_slow": 0.5, "class_order_seed": 3}, said.append)
    assert said == [
        f"nested_lora_lr_slow = 0.5 (flag --nested_lora_lr_slow), nested_lora_rank = 4 ({path}): ignored, as adapters "
        "of type adaptmlp do not have it",
        "class_order_seed = 3 (flag --class_order_seed): ignored, as shuffle is false",
    ]
    assert config.nested_lora_rank == 4  # runs of earlier versions are found by it
    load(None, {"dataset": "cub", "nested_lora_rank": 16, **NESTED, "ffn_num": 16}, said.append)  # the defaults
    assert len(said) == 2


def test_a_type_of_a_plug_in_has_its_width_the_keys_of_its_branches_and_those_it_declares(monkeypatch):
    keys = {"dataset": "cub", "ffn_num": 4, "nested_lora_rank": 4, "nested_lora_lr_fast": 0.5}
    consolidation = {"nested_lora_consolidation_alpha": 0.5}  # may act in another way than in nested_lora
    with registered("gain", "three_branches"):
        assert {"nested_lora_rank", "nested_lora_lr_fast"} <= idle_keys({**keys, "ffn_adapter_type": "gain"}).keys()
        assert set(idle_keys({**keys, **consolidation, "ffn_adapter_type": "three_branches"})) == {*UNUSED, "ffn_num"}
        monkeypatch.setattr(ADAPTERS["gain"], "keys", ("nested_lora_rank",))
        kept = on_record(load(None, {**keys, "ffn_adapter_type": "gain"}))
        assert (kept["ffn_num"], kept["nested_lora_rank"]) == (4, 4)
        here = counted(kept)
    assert counted(kept) == here  # where the plug-in is not loaded
    assert "nested_lora_lr_fast" not in here


@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora"])
def test_shipped_types_have_the_keys_that_their_classes_declare(kind):
    cls, idle = ADAPTERS[kind], idle_keys({"dataset": "cub", "ffn_adapter_type": kind})
    assert cls.width_key not in idle
    assert ("nested_lora_lr_slow" in idle) == (not cls.branches)


def test_first_session_adaptation_lets_the_keys_of_training_act():
    keys = {"dataset": "cub", "model_name": "simplecil"}
    assert {"init_lr", "ffn_num"} <= idle_keys(keys).keys()
    assert not {"init_lr", "ffn_num"} & idle_keys({**keys, "first_session_adaptation": True}).keys()


# ---- the old name of a key


def test_an_old_name_of_a_key_means_the_key_in_files_flags_and_records(write):
    beside = {"dataset": "cub", **NESTED}
    by_file = load(write(json.dumps({**beside, OLD: "continual"})))
    by_flag = load(None, {**beside, OLD: "continual"})
    new = load(None, {**beside, NEW: "continual"})
    assert by_file == by_flag == new
    assert load(write(json.dumps({**beside, OLD: "expansion"})), {NEW: "continual"}) == new  # flags over the file
    assert load(write(json.dumps({**beside, NEW: "expansion"})), {OLD: "continual"}) == new
    recorded = {**beside, OLD: "continual"}
    assert counted(recorded)[NEW] == "continual"
    text = json.dumps(recorded, sort_keys=True, separators=(",", ":"))  # as a version with the old name hashed it
    assert result_hash(new) == hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def test_an_old_name_beside_the_new_one_is_refused(write):
    with pytest.raises(ConfigError, match=f"{OLD}: the old name of {NEW}, which is given too; keep one"):
        load(write(json.dumps({"dataset": "cub", OLD: "continual", NEW: "continual"})))


def test_an_old_name_has_no_effect_on_adapters_that_did_not_have_the_key(write):
    said = []
    path = write(json.dumps({"dataset": "cub", "ffn_adapter_type": "adaptmlp", OLD: "continual"}))
    assert load(path, warn=said.append).adapter_lifetime == "expansion"
    assert said == [f'{OLD} = "continual" ({path}): ignored, as it was always for these adapters; see {NEW}']
    assert counted({"dataset": "cub", "ffn_adapter_type": "adaptmlp", OLD: "continual"})[NEW] == "expansion"


def test_a_learner_of_a_plug_in_may_read_every_key():
    assert idle_keys({"dataset": "cub", "model_name": "mine", "nested_lora_rank": 4}) == {}


@pytest.mark.parametrize("use", [{"eval": True}, {"predict": ["a.png"]}, {"export": "a.safetensors"}])
def test_using_a_checkpoint_does_not_change_the_hash(use):
    trained, evaluated = {"dataset": "cub"}, {"dataset": "cub", **use, "checkpt_path": "x"}
    assert result_hash(load(None, trained)) == result_hash(load(None, evaluated))


def test_hash_is_blake2b_of_the_canonical_json_of_what_is_not_default():
    config = load(None, {"dataset": "cub", "func_epoch": 3, "seed": 7, "prefix": "x"})
    assert result_hash(config) == hashlib.blake2b(b'{"dataset":"cub","func_epoch":3}', digest_size=4).hexdigest()


def test_equal_hashes_go_with_equal_counted_keys():
    config = Config(dataset="cub", seed=[1], output_dir="a", prefix="b")
    other = Config(dataset="cub", seed=[2], output_dir="c", prefix="d", num_workers=0, data_root="/x")
    assert counted(config.model_dump(mode="json")) == counted(other.model_dump(mode="json"))
    assert set(counted({"dataset": "cub"})) == set(Config.model_fields) - NO_INFLUENCE - {*OF_NESTED, *UNUSED}
    assert counted({"dataset": "npz", "data_root": "/x/y"})["data_root"] == "y"


def test_hash_does_not_depend_on_how_a_value_is_written(write):
    one = write('{"dataset": "cub", "exp_threshold": 2, "min_lr": 0}')
    other = write('{"min_lr": 0.0, "exp_threshold": 2.0, "dataset": "cub"}', "y.json")
    assert result_hash(load(one)) == result_hash(load(other)) == result_hash(load(None, {"dataset": "cub"}))


@pytest.mark.parametrize("dataset", ["imagefolder", "npz"])
def test_data_root_counts_where_it_is_the_data_set(dataset):
    one, other = (load(None, {"dataset": dataset, "data_root": root}) for root in "ab")
    assert result_hash(one) != result_hash(other)


def test_the_folder_of_data_and_weights_does_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"dataset": "npz", "data_root": "d.npz", "backbone_checkpoint": "w.pth"}
    here = load(None, values)
    there = load(None, {**values, "data_root": "/far/d.npz", "backbone_checkpoint": str(tmp_path / "w.pth")})
    assert result_hash(here) == result_hash(there)
    assert content(here.model_dump()) == content({**values, "data_root": "other", "backbone_checkpoint": None})
    assert digests({**values, "data_root": "/far/d.npz"}) == (  # the last is of earlier versions
        result_hash(here),
        result_hash(here),
        hashlib.blake2b(
            b'{"backbone_checkpoint":"w.pth","data_root":"/far/d.npz","dataset":"npz"}', digest_size=4
        ).hexdigest(),
    )


def test_paths_on_record_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(None, {"dataset": "npz", "data_root": "d.npz", "output_dir": "/logs"})
    changed = {"data_root": str(tmp_path / "d.npz")}
    idle = {*OF_NESTED, *UNUSED}
    kept = {key: value for key, value in config.model_dump(mode="json").items() if key not in idle}
    assert on_record(config) == {**kept, **changed}


def test_listed_classes_count_by_content_wherever_they_are_written(tmp_path, monkeypatch, write):
    monkeypatch.setenv("LISTS", str(tmp_path))
    order, tasks = ["b", 0, "a c"], [["b"], [0, "a c"]]
    write("b\n\n 0 \na c\n", "order.txt")
    write(json.dumps(order), "order.json")
    write(json.dumps(tasks), "tasks.json")
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfb\r\n0\r\na c\r\n")
    assert load(None, {"dataset": "cub", "class_order": "$LISTS/windows.txt"}).class_order == ["b", "0", "a c"]
    beside = {"dataset": "cub"}
    listed = [load(None, {**beside, "class_order": given}) for given in (order, json.dumps(order), "$LISTS/order.json")]
    assert {result_hash(config) for config in listed} == {result_hash(listed[0])}
    assert load(None, {**beside, "class_order": "$LISTS/order.txt"}).class_order == ["b", "0", "a c"]
    given = parse(["--tasks", "$LISTS/tasks.json", "--dataset", "cub"]).flags
    assert load(None, given) == load(None, parse(["--tasks", json.dumps(tasks), "--dataset", "cub"]).flags)
    assert load(None, given).tasks == tasks
    before = result_hash(load(None, given))
    write("[[0]]", "tasks.json")
    assert result_hash(load(None, given)) != before


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("class_order", "order.jsn", "no such file"),
        ("class_order", "order.jsn", "did you mean order.json?"),
        ("class_order", ".", "a folder; expected a file"),
        ("class_order", " ", "expected a list of labels or class names, or a file"),
        ("class_order", "empty.txt", "the file is empty; expected classes in it"),
        ("class_order", "latin.txt", "the file cannot be read: its text is not UTF-8"),
        ("class_order", "object.json", "expected a list of labels or class names, or a file"),
        ("tasks", '{"a": [1]}', "expected a list of tasks, each a list of labels"),
        ("class_order", "[1, 2", "not a JSON list: line 1, column 6: expecting"),
        ("tasks", '["a", "b"]', "expected a list of tasks, each a list of labels or class names; or a JSON file"),
        ("tasks", "order.json", "expected a list of tasks"),
        ("tasks", [["a"], []], "task 1 is empty; expected at least one class in every task"),
        ("tasks", [], "expected a list of tasks"),
        ("transient", 0, "expected the number of a task from 1 on, or a list of different ones"),
        ("transient", "[2, 2]", "a task is given twice"),
        ("transient", ["a"], "expected the number of a task from 1 on"),
        ("class_order", [1.5], "expected a list of labels or class names, or a file"),
        ("class_order", [-1], "expected a list of labels or class names, or a file"),
    ],
)
def test_lists_that_cannot_be_read_are_named_with_the_reason(key, text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, written in (("order.json", b"[1, 2]"), ("object.json", b'{"order": [1, 2]}'), ("empty.txt", b"\r\n")):
        (tmp_path / name).write_bytes(written)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    line = the_problem(dataset="cub", **{key: text})
    assert line.startswith(f"{key} = ")
    assert words in line


def test_a_class_order_and_tasks_are_not_given_together():
    assert the_problem(dataset="cub", class_order=[1, 0], tasks=[[0], [1]]).endswith(
        "give only one of them; the order of tasks is the class order"
    )


PATHS = ["data_root", "backbone_checkpoint", "checkpt_path", "resume", "output_dir"]


@pytest.mark.parametrize("key", PATHS)
def test_home_and_variables_are_expanded_in_every_path(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/scratch")
    for text, path in {"~/a": "/home/me/a", "$DISK/b": "/scratch/b", "${DISK}/b": "/scratch/b", "a~b": "a~b"}.items():
        assert getattr(load(None, {"dataset": "cub", key: text}), key) == path
        assert parse([f"--{key}={text}"]).flags[key] == path


@pytest.mark.parametrize("key", PATHS)
def test_a_variable_that_is_not_set_is_refused_unless_a_file_has_that_name(key, monkeypatch, tmp_path):
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{key} = .*variable NOWHERE is not set"):
        load(None, {"dataset": "cub", key: "$NOWHERE/a"})
    with pytest.raises(ConfigError, match="no home directory ~nobody-of-that-name"):
        load(None, {"dataset": "cub", key: "~nobody-of-that-name/a"})
    (tmp_path / "$NOWHERE").mkdir()
    assert getattr(load(None, {"dataset": "cub", key: "$NOWHERE"}), key) == "$NOWHERE"


def test_every_key_that_names_a_path_is_declared_as_one():
    found = [key for key, schema in schemas().items() if "'path'" in str(schema)]
    assert sorted(found) == sorted([*PATHS, "predict", "export"])


# ---------------------------------------------------------------- the module itself


@pytest.mark.parametrize("module", ["utils.config.schema", "utils.config.flags", "utils.choices", "main"])
def test_import_brings_no_torch(module):
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'torchvision')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_schema_for_editors_knows_every_key():
    command = [sys.executable, "-W", "error", "-m", "utils.config", "--schema"]
    schema = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    names = {"dataset": list(DATASETS), "model_name": LEARNERS.names(), "ffn_adapter_type": ADAPTERS.names()}
    assert {key: schema["properties"][key]["enum"] for key in names} == names
