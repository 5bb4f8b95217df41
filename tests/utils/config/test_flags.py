import json
import re
from pathlib import Path

import pytest
from adapter_cases import registered

from utils.config.flags import parse, plugins
from utils.config.load import load
from utils.config.schema import COMMANDS, schemas
from utils.errors import ConfigError

IN_JSON = {"True": "true", "False": "false", "None": "null"}


def flags(*argv: str) -> dict[str, object]:
    path, given = parse(argv)
    assert path is None
    return given


def test_only_the_flags_that_were_given():
    assert parse([]) == (None, {})
    assert parse(["--config", "exps/x.json", "--ffn_num", "8"]) == (Path("exps/x.json"), {"ffn_num": 8})


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--batch_size", "3"], {"batch_size": 3}),
        (["--batch-size", "3"], {"batch_size": 3}),
        (["--batch_size=3"], {"batch_size": 3}),
        (["--batch_size", "3", "--batch_size", "4"], {"batch_size": 4}),
        (["--init_lr", ".5", "--rd_lr", "1e-3", "--min_lr", "0"], {"init_lr": 0.5, "rd_lr": 1e-3, "min_lr": 0.0}),
        (["--seed", "1", "2", "3"], {"seed": [1, 2, 3]}),
        (["--seed", "7", "--shuffle", "false"], {"seed": [7], "shuffle": False}),
        (["--device", "-1"], {"device": ["-1"]}),
        (["--device", "0", "1"], {"device": ["0", "1"]}),
        (["--eval"], {"eval": True}),
        (["--eval", "--overwrite"], {"eval": True, "overwrite": True}),
        (["--eval", "--ffn_num", "2"], {"eval": True, "ffn_num": 2}),
        (["--eval", "true"], {"eval": True}),
        (["--eval", "True"], {"eval": True}),
        (["--eval", "1"], {"eval": True}),
        (["--eval", "False"], {"eval": False}),
        (["--eval=false"], {"eval": False}),
        (["--eval", "0"], {"eval": False}),
        (["--nested-lora-use-consolidation"], {"nested_lora_use_consolidation": True}),
        (["--backbone_kwargs", '{"depth": 2}'], {"backbone_kwargs": {"depth": 2}}),
        (["--max_tasks", "none"], {"max_tasks": None}),
        (["--backbone_checkpoint", "null"], {"backbone_checkpoint": None}),
        (["--prefix", "none"], {"prefix": "none"}),
        (["--prefix", "12"], {"prefix": "12"}),
        (["--optimizer", "adam"], {"optimizer": "adam"}),
        (["--backbone_kwargs.img_size", "224"], {"backbone_kwargs.img_size": 224}),
        (["--backbone-kwargs.img-size=[32, 32]"], {"backbone_kwargs.img_size": [32, 32]}),
        (["--backbone_kwargs.qk_norm=True"], {"backbone_kwargs.qk_norm": True}),
        (["--backbone_kwargs.init_values", "none"], {"backbone_kwargs.init_values": None}),
        (["--backbone_kwargs.act_layer", "gelu"], {"backbone_kwargs.act_layer": "gelu"}),
        (["--batch_size.x", "3"], {"batch_size.x": "3"}),
    ],
)
def test_a_flag_has_its_key_s_type(argv, expected):
    given = flags(*argv)
    assert given == expected
    assert [type(given[key]) for key in given] == [type(expected[key]) for key in given]


def test_flag_values_that_fit_pass_the_configuration():
    given = flags(
        "--dataset", "cub", "--seed", "1", "2", "--device", "cpu", "--eval", "--checkpt_path", "x", "--rd_lr", "1"
    )
    config = load(None, given)
    assert (config.seed, config.device, config.eval, config.rd_lr) == ([1, 2], "cpu", True, 1.0)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--batch_size", "many"], 'batch_size = "many" (flag --batch_size): expected an integer >= 1'),
        (["--batch_size", "-1"], "batch_size = -1 (flag --batch_size): expected an integer >= 1"),
        (["--batch_size", "1.5"], 'batch_size = "1.5" (flag --batch_size): expected an integer >= 1'),
        (["--init_lr", "nan"], "init_lr = NaN (flag --init_lr): expected a finite number > 0"),
        (["--val_fraction", "1"], "val_fraction = 1.0 (flag --val_fraction): expected a finite number >= 0 and < 1"),
        (["--shuffle", "no"], 'shuffle = "no" (flag --shuffle): expected true or false'),
        (["--batch_sise", "3"], 'batch_sise = "3" (flag --batch_sise): unknown key; did you mean batch_size?'),
        (["--batch-sise=3"], 'batch_sise = "3" (flag --batch_sise): unknown key; did you mean batch_size?'),
        (["--evall"], "evall = true (flag --evall): unknown key; did you mean eval?"),
        (["--optimizer", "sgdm"], "did you mean sgd?"),
        (["--seed"], "seed = [] (flag --seed): expected an integer"),
        (["--seed", "1", "x"], 'seed = [1, "x"] (flag --seed): expected an integer'),
        (["--backbone_kwargs", '{"depth": 2'], "expected a JSON object"),
        (["--backbone_kwargs", "[" * 100_000], "expected a JSON object"),
    ],
)
def test_what_does_not_fit_is_for_the_configuration_to_word(argv, line):
    with pytest.raises(ConfigError) as caught:
        load(None, {"dataset": "cub", **flags(*argv)})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['["ncm", "lda"]', "[]"])
def test_a_list_as_json_is_the_values_of_a_flag_that_takes_several(text):
    assert load(None, {"dataset": "cub", **flags(f"--readouts={text}")}).readouts == json.loads(text)


def test_an_argument_without_a_flag_is_an_error():
    with pytest.raises(ConfigError, match='"4": belongs to no flag'):
        parse(["--batch_size", "3", "4"])
    with pytest.raises(ConfigError, match=r'"exps/x\.json": belongs to no flag; did you mean --config exps/x\.json\?'):
        parse(["exps/x.json"])


def test_a_flag_without_its_value_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--batch_size"])
    assert ended.value.code == 2
    assert "--batch_size" in capsys.readouterr().err


def test_a_value_that_begins_with_a_hyphen_follows_an_equals_sign(capsys):
    for argv in (["--data_root", "-photos"], ["--config", "-a.json"], ["--plugin", "-b.py"]):
        with pytest.raises(SystemExit):
            parse(argv)
        assert f"if its value begins with a hyphen: {argv[0]}=-value" in capsys.readouterr().err
    assert parse(["--data-root=-photos", "--config=-a.json"]) == (Path("-a.json"), {"data_root": "-photos"})


def help_of(capsys, *argv: str) -> str:
    """What `--help` prints on a console of 80 columns."""
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    return out


def test_help_all_lists_every_key_with_meaning_default_and_choices(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = "".join(help_of(capsys, "--help", "all").split())
    for key, schema in schemas().items():
        default = str(schema["default"]).replace("'", '"') if "default" in schema else ""
        expected = [f"--{key}", schema["description"], *schema.get("enum", [])]
        expected += [f"default: {IN_JSON.get(default, default)}"] if default else ["required"]
        assert [text for text in expected if "".join(text.split()) not in page] == []
    assert "--config" in page
    assert "--plugin" in page


def test_help_lists_twenty_keys_and_those_that_say_what_to_do_and_how_to_see_the_others(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = help_of(capsys, "--help")
    first = {key for key, schema in schemas().items() if schema["first"]}
    commands = {key for key, schema in schemas().items() if schema["group"] == COMMANDS}
    assert len(first) == 20
    assert commands >= {"resume", "eval", "checkpt_path", "dry_run"}
    assert set(re.findall(r"^  --(\w+)", page, re.M)) == first | commands | {"config", "plugin"}
    more = " ".join(page.split("\n\n")[-1].split())
    assert more.startswith(f"These are {len(first | commands)} of {len(schemas())} keys. `main.py --help all`")
    assert page == help_of(capsys, "-h") == help_of(capsys, "--config", "x.json", "--help", "--batch_size", "many")


def test_help_of_a_key_says_all_about_it(capsys):
    told = help_of(capsys, "--help", "batch-size")
    assert told.splitlines() == [
        "--batch_size",
        "  meaning: images in a training batch",
        "  expected: an integer >= 1",
        "  default: 32",
        "  group: Training",
        "  can change a result: yes",
    ]
    assert "default: none, it is required" in help_of(capsys, "--help=dataset")
    with pytest.raises(ConfigError, match=r"^--help batch_sise: unknown key; did you mean batch_size"):
        parse(["--help", "batch_sise"])
    with pytest.raises(ConfigError, match=r"^--help rank: unknown key; keys with it in their name: nested_lora_rank$"):
        parse(["--help", "rank"])


def test_help_lists_the_choices_that_a_plugin_has_added(capsys):
    with registered("gain"):
        assert "{adaptmlp,nested_lora,gain}" in help_of(capsys, "--help")


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ([], []),
        (["--config", "a.json", "--batch_size", "3"], []),
        (["--plugin", "a.py"], ["a.py"]),
        (["--plugin=a.py", "--eval", "--plugin", "b-c.py", "--ffn-num", "2"], ["a.py", "b-c.py"]),
    ],
)
def test_plugins_are_found_among_the_flags(argv, found):
    assert plugins(argv) == [Path(name) for name in found]


def test_a_plugin_flag_without_its_file_ends_with_code_2_and_the_commands_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        plugins(["--plugin"])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("usage: main.py --config FILE")
    assert "main.py: error: argument --plugin: expected one argument" in shown


def test_the_plugins_are_no_keys():
    assert parse(["--plugin", "a.py", "--ffn_num", "8", "--plugin=b.py"]) == (None, {"ffn_num": 8})


def test_hyphens_stand_for_underscores_in_flags_and_nowhere_else():
    assert flags("--output-dir=my-runs", "--prefix", "a-b") == {"output_dir": "my-runs", "prefix": "a-b"}


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        (["--nested_lora_train", "fast"], {"nested_lora_train": ["fast"]}),
        (["--nested_lora_train", "slow", "fast"], {"nested_lora_train": ["slow", "fast"]}),
        (['--nested_lora_train=["slow", "fast"]'], {"nested_lora_train": ["slow", "fast"]}),
        (["--nested_lora_train=null"], {"nested_lora_train": None}),
        (["--readouts=[]"], {"readouts": []}),
        (["--readouts"], {"readouts": []}),
        (["--seed=[1, 2]"], {"seed": [1, 2]}),
        (["--predict=[a].jpg"], {"predict": ["[a].jpg"]}),
    ],
)
def test_a_flag_of_several_values_takes_them_one_by_one_or_as_a_json_list(argv, flags):
    assert parse(argv).flags == flags
