"""Sweep files: what they ask for, what is refused, and what the shipped ones hold."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tools.sweep.plan import PlannedRun, ignored, misplaced, read_plan
from utils.config.flags import parse
from utils.config.identity import result_hash
from utils.config.load import load
from utils.errors import ConfigError
from utils.runs.directory import run_name
from utils.runs.environment import PROJECT

EXPS = Path(__file__).parents[3] / "exps"
INTERVAL = "nested_lora_update_interval_slow"
SWITCH, MODE, ALPHA, RESET = (
    f"nested_lora_{key}" for key in ("use_consolidation", "consolidation_mode", "consolidation_alpha", "fast_reset")
)
LIFETIME = "adapter_lifetime"
SEEDS = [1993, 1994, 1995]
FIVE = [*SEEDS, 1996, 1997]  # of the sweeps whose tables are in the documents

OFF_AND_ON = {"off": {SWITCH: False, LIFETIME: "continual"}} | {
    f"{mode}, alpha {alpha:g}, fast {word}": {
        SWITCH: True, MODE: mode, ALPHA: alpha, RESET: reset, LIFETIME: "continual"
    }
    for mode, alpha in (("weights", 0.2), ("function", 0.2), ("function", 1.0))
    for word, reset in (("kept", "keep"), ("reset", "zero"))
}  # fmt: skip
# of every sweep on one base: what its members set, the first being the baseline
ON_ONE_BASE = {
    "interval": {f"update_interval_slow={k}": {INTERVAL: k} for k in (1, 5, 10)},
    "consolidation": OFF_AND_ON,
    "lifetime": {f"adapter_lifetime={kind}": {LIFETIME: kind} for kind in ("expansion", "continual")},
    "slow_update": {
        f"slow_update={kind}": {"nested_lora_slow_update": kind} for kind in ("skip", "accumulate", "zero_grad")
    },
}
SHIPPED = {
    f"{form}{name}": (base, members)
    for form, base in (("", "nested_lora_cifar"), ("quickstart_", "quickstart"))
    for name, members in ON_ONE_BASE.items()
}
GROUPS = {
    f"{form}matched_rank{rank}": (bases, rank, bottleneck)
    for rank, bottleneck in ((8, 16), (16, 32))
    for form, bases in (
        ("", [f"pair_rank{rank}_{kind}_cifar" for kind in ("adaptmlp", "equal_rates_nested_lora", "nested_lora")]),
        ("quickstart_", ["quickstart_adaptmlp", "quickstart", "quickstart"]),
    )
}


@pytest.fixture(autouse=True)
def no_data_root_variable(monkeypatch):
    monkeypatch.delenv("SEMA_DATA_ROOT", raising=False)


@pytest.fixture
def plan(tmp_path):
    """The plan of a sweep file with these keys, beside a base configuration base.json."""
    (tmp_path / "base.json").write_text('{"dataset": "cub", "ffn_adapter_type": "nested_lora"}')
    (tmp_path / "flat.json").write_text('{"dataset": "cub", "ffn_num": 8}')

    def read(seeds=None, **keys) -> list[PlannedRun]:
        (tmp_path / "s.json").write_text(json.dumps({"base": "base.json", "seeds": [1, 2], **keys}))
        return read_plan(tmp_path / "s.json", str(tmp_path / "runs"), seeds)

    return read


def problems(plan, **keys) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        plan(**keys)
    return str(refused.value).splitlines()


# ---- what is planned


def test_a_grid_is_every_combination_and_a_seed_of_all_comes_before_the_next(plan):
    runs = plan(grid={INTERVAL: [1, 5], "adapter_lifetime": ["expansion", "continual"]})
    names = [
        f"update_interval_slow={k}, adapter_lifetime={kind}" for k in (1, 5) for kind in ("expansion", "continual")
    ]
    assert [(run.member.name, run.seed) for run in runs] == [(name, seed) for seed in (1, 2) for name in names]
    assert runs[3].member.config.nested_lora_update_interval_slow == 5
    assert runs[3].member.config.adapter_lifetime == "continual"


def test_members_of_a_list_may_have_another_base_and_override_the_common_changes(plan):
    first, second = plan(
        seeds=[7],
        changes={"func_epoch": 2, "rd_epoch": 3},
        list=[{"name": "flat", "base": "flat.json"}, {"name": "nested", "changes": {"rd_epoch": 4}}],
    )
    assert (first.member.config.ffn_adapter_type, first.member.config.ffn_num) == ("adaptmlp", 8)
    assert (first.name.split("-")[0], second.name.split("-")[0]) == ("flat", "base")
    assert [(run.member.config.func_epoch, run.member.config.rd_epoch) for run in (first, second)] == [(2, 3), (2, 4)]
    assert first.seed == second.seed == 7


def test_a_list_with_a_grid_is_each_member_at_each_point(plan):
    runs = plan(
        seeds=[7],
        changes={"rd_epoch": 3},
        grid={"class_order_seed": [1, 2]},
        list=[{"name": "nested"}, {"name": "flat", "base": "flat.json", "changes": {"rd_dim": 4}}],
    )
    configs = [(run.member.name, run.member.config) for run in runs]
    assert [(name, c.ffn_adapter_type, c.class_order_seed, c.rd_dim, c.rd_epoch) for name, c in configs] == [
        (f"{name}, class_order_seed={seed}", kind, seed, rd_dim, 3)
        for name, kind, rd_dim in (("nested", "nested_lora", configs[0][1].rd_dim), ("flat", "adaptmlp", 4))
        for seed in (1, 2)
    ]


def test_keys_without_effect_in_a_member_are_said_once(plan):
    members = [{"name": name, "base": "flat.json", "changes": {"rd_dim": n}} for name, n in (("a", 8), ("b", 9))]
    runs = plan(changes={"nested_lora_rank": 4}, list=[*members, {"name": "nested"}])
    assert ignored(runs) == [
        "a | b: nested_lora_rank = 4 (flag --nested_lora_rank): ignored, as adapters of type adaptmlp do not have it"
    ]


ODD_VALUES = {
    "shuffle": False,
    "max_tasks": None,
    "backbone_kwargs": {"img_size": 96},
    "device": ["cpu"],
    "exp_threshold": 1e-05,
    "prefix": "-a label",
    "data_root": "a folder",
}


def test_a_base_may_be_named_like_a_flag(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("--seed.json").write_text('{"dataset": "cub"}')
    Path("s.json").write_text('{"base": "--seed.json", "seeds": [1], "list": [{"name": "a"}]}')
    (run,) = read_plan(Path("s.json"), "runs")
    assert parse(run.command()[2:]).path == Path("--seed.json")


@pytest.mark.parametrize(
    "name", ["with space", "v1.2.3", "größe", "~", "~tilde", ".hidden", "a[b]*?", "a$b", "n" * 236]
)
def test_a_base_may_have_any_name_that_main_takes(tmp_path, monkeypatch, name):
    """It begins the names of the run's directory and of its log's folder, which is the longest of all."""
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.json").write_text('{"dataset": "cub"}')
    Path("s.json").write_text(json.dumps({"base": f"{name}.json", "seeds": [1], "list": [{"name": "a"}]}))
    (run,) = read_plan(Path("s.json"), "runs")
    path, flags = parse(["--config", f"{name}.json", "--seed", "1"])
    assert run.name == run_name(load(path, flags), path.stem, 1)
    assert parse(run.command()[2:]).path.samefile(path)
    (tmp_path / "runs" / run.name).mkdir(parents=True)


def test_the_command_makes_the_run_that_was_planned(plan):
    (run,) = plan(seeds=[3], list=[{"name": "odd", "changes": ODD_VALUES}])
    path, flags = parse(run.command()[2:])
    config = load(path, flags)
    assert config == run.member.config.model_copy(update={"auto_resume": True})
    assert run_name(config, path.stem, config.seed[0]) == run.name


def test_a_change_can_set_one_entry_of_an_object(plan, tmp_path):
    (tmp_path / "base.json").write_text('{"dataset": "cub", "backbone_kwargs": {"depth": 12, "num_heads": 3}}')
    runs = plan(grid={"backbone_kwargs.img_size": [96, 224]}, seeds=[3])
    assert [run.member.name for run in runs] == ["backbone_kwargs.img_size=96", "backbone_kwargs.img_size=224"]
    for run, side in zip(runs, (96, 224), strict=True):
        config = load(*parse(run.command()[2:]))
        assert config.backbone_kwargs == {"depth": 12, "num_heads": 3, "img_size": side}


def test_paths_that_are_found_from_another_folder_only_are_told(plan, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "w.pth").touch()
    changes = {"data_root": "images", "backbone_checkpoint": "w.pth"}
    runs = plan(list=[{"name": "a", "changes": changes}, {"name": "b", "changes": {**changes, "init_lr": 0.1}}])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [line.split(" (")[0] for line in misplaced(runs)] == [
        'data_root = "images"',
        'backbone_checkpoint = "w.pth"',
    ]
    assert all(line.endswith(f"elsewhere; start the sweep in {tmp_path}") for line in misplaced(runs))
    (tmp_path / "w.pth").rename(tmp_path / "elsewhere" / "w.pth")
    (tmp_path / "images").rename(tmp_path / "elsewhere" / "images")
    assert misplaced(runs) == []
    monkeypatch.chdir(tmp_path)
    assert misplaced(runs) == []  # neither here nor above the base: the runs themselves say so


# ---- what is finished


def test_a_run_is_finished_by_its_results_under_any_configuration_s_name(plan, tmp_path):
    run, other, *_ = plan(grid={INTERVAL: [1, 5]})
    own = tmp_path / "runs" / run.name
    own.mkdir(parents=True)
    assert run.finished() is None
    equal = own.with_name(run.name.replace("base-", "elsewhere-"))
    equal.mkdir()
    (equal / "results.json").touch()
    assert run.finished() == equal
    (own / "results.json").touch()
    assert run.finished() == own
    assert other.finished() is None


# ---- what is refused


@pytest.mark.parametrize("name", ["flat.json", "a file.json"])
def test_a_configuration_is_not_taken_for_a_sweep_and_the_right_command_is_shown(plan, tmp_path, name):
    (tmp_path / name).write_text('{"dataset": "cub", "seed": 1}')
    with pytest.raises(ConfigError, match="the configuration of a run, not a sweep file") as refused:
        read_plan(tmp_path / name, "logs")
    assert str(refused.value).endswith(f"to train it: python main.py --config {shlex.quote(str(tmp_path / name))}")


def test_a_base_that_resumes_or_checks_is_refused(plan, tmp_path):
    (tmp_path / "odd.json").write_text('{"dataset": "cub", "resume": "logs/x", "dry_run": true}')
    assert [line.split(": ", 2)[2] for line in problems(plan, list=[{"name": "a", "base": "odd.json"}])] == [
        'resume = "logs/x": a sweep resumes unfinished runs',
        "dry_run = true: use the flag --dry-run of the sweep",
    ]


def test_every_problem_of_every_member_is_listed_once_with_the_nearest_key(plan):
    found = problems(plan, grid={"nested_lora_rnk": [1, 2], "batch_size": [0]}, seeds=[-1])
    both = "rnk=1, batch_size=0 | rnk=2, batch_size=0: "
    assert len(found) == 4
    assert {line.split(": ")[0] for line in found if line.startswith(both)} == {both.removesuffix(": ")}
    assert any("batch_size = 0" in line and "an integer >= 1" in line for line in found if line.startswith(both))
    assert any("seed" in line for line in found if line.startswith(both))
    unknown = [line for line in found if "nested_lora_rnk" in line]
    assert len(unknown) == 2
    assert all(line.endswith("unknown key; did you mean nested_lora_rank?") for line in unknown)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, 'expected "grid" or "list", or both'),
        (
            {"grid": {"ffn_num": [1]}, "list": [{"name": "a"}, {"name": "b", "changes": {"ffn_num": 2}}]},
            "list[1].changes.ffn_num: also in the grid; keep one",
        ),
        ({"grid": {"rd_dim": [*range(99)]}, "list": [{"name": f"{n}"} for n in range(99)]}, "9801 combinations"),
        ({"gird": {"ffn_num": [1]}}, "gird: unknown key; did you mean grid?"),
        ({"list": [{"nmae": "a"}]}, "list[0].nmae: unknown key; did you mean name?"),
        ({"list": [{"name": "a", "set": {}}]}, "list[0].set: unknown key; expected one of name, base, changes"),
        ({"list": [{"name": "a", "rd_lr": 1}]}, "list[0].rd_lr: unknown key; the keys of a configuration belong under"),
        ({"seed": 1, "grid": {"ffn_num": [1]}}, "seed: unknown key; did you mean seeds?"),
        (
            {"output_dir": "o", "grid": {"ffn_num": [1]}},
            "output_dir: unknown key; all runs of a sweep are in one folder",
        ),
        ({"list": [{}]}, "list[0].name: missing"),
        ({"grid": {"ffn_num": []}}, "grid.ffn_num = []"),
        ({"grid": {"ffn_num": 3}}, "grid.ffn_num = 3"),
        ({"grid": {}}, "grid = {}"),
        ({"list": []}, "list = []"),
        ({"list": [{"name": "a", "base": "bse.json"}]}, "no such file; did you mean base.json"),
        ({"base": "$NOT_SET/a.json", "list": [{"name": "a"}]}, "the environment variable NOT_SET is not set"),
        ({"list": [{"name": "a", "base": "$NOT_SET/a.json"}]}, "the environment variable NOT_SET is not set"),
        ({"grid": {"seed": [1, 2]}}, "seed: a sweep cannot change it"),
        ({"changes": {"output_dir": "x"}, "list": [{"name": "a"}]}, "output_dir: a sweep cannot change it"),
        ({"seeds": [1, 1], "list": [{"name": "a"}]}, "a seed is given twice"),
        ({"list": [{"name": "a"}, {"name": "a", "changes": {"ffn_num": 2}}]}, "a: 2 members have this name"),
        (
            {"grid": {"ffn_num": [*range(99)], "rd_dim": [*range(99)]}},
            "9801 combinations of values; expected at most 1000",
        ),
        ({"grid": {"num_workers": [0, 1]}}, "num_workers=1: the same runs as num_workers=0"),
    ],
)
def test_a_wrong_file_is_refused(plan, keys, words):
    assert any(words in line for line in problems(plan, **keys))


def test_a_missing_base_is_said_to_start_at_the_sweep_file(plan, tmp_path):
    missing = f"a: {tmp_path / 'exps/x.json'}: no such file (and no folder {tmp_path / 'exps'})"
    start = f'a: base = "exps/x.json": a base starts at the sweep file, in {tmp_path}'
    assert problems(plan, list=[{"name": "a", "base": "exps/x.json"}]) == [start, missing]


def test_the_example_of_the_documentation_is_a_sweep(tmp_path):
    page = (PROJECT / "docs" / "compare.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_sweep.json").write_text(example.replace("exps/", f"{PROJECT}/exps/"))
    planned = read_plan(tmp_path / "my_sweep.json", str(tmp_path))
    assert [(run.member.name, run.seed) for run in planned] == [
        (name, seed) for seed in (1, 2, 3) for name in ("adaptmlp", "equal rates", "two rates")
    ]
    assert {(run.member.config.dataset, run.member.config.data_root) for run in planned} == {
        ("imagefolder", "my_images")
    }
    flat, equal, _ = (run.member.config for run in planned[:3])
    assert [run.member.config.ffn_adapter_type for run in planned[:3]] == ["adaptmlp", "nested_lora", "nested_lora"]
    assert equal.nested_lora_lr_fast == equal.nested_lora_lr_slow == flat.init_lr
    assert equal.nested_lora_update_interval_slow == 1


def test_a_base_that_evaluates_is_refused(plan, tmp_path):
    (tmp_path / "eval.json").write_text('{"dataset": "cub", "eval": true, "checkpt_path": "x"}')
    assert "eval = true: a sweep trains" in problems(plan, list=[{"name": "a", "base": "eval.json"}])[0]


def test_a_key_given_twice_is_refused(tmp_path):
    (tmp_path / "s.json").write_text('{"base": "b", "seeds": [1], "seeds": [2], "list": [{"name": "a"}]}')
    with pytest.raises(ConfigError, match="seeds: given twice"):
        read_plan(tmp_path / "s.json", "logs")


# ---- the shipped files


def shipped(name: str) -> list[PlannedRun]:
    return read_plan(EXPS / "sweeps" / f"{name}.json", "logs")


def test_every_shipped_file_is_tested_below():
    elsewhere = {"quickstart_speed", "quickstart_transient", "quickstart_order"}  # in tests/benchmarks
    elsewhere |= {"quickstart_views_adaptmlp", "quickstart_views_nested_lora"}  # there, too
    elsewhere |= {"quickstart_baselines", "quickstart_controls", "quickstart_alignment"}  # there, and in test_exps.py
    elsewhere |= {"quickstart_search"}  # in test_search.py
    assert {path.stem for path in (EXPS / "sweeps").glob("*.json")} == SHIPPED.keys() | GROUPS.keys() | elsewhere


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_sweep_sets_what_its_name_says_and_nothing_else(name):
    base, members = SHIPPED[name]
    runs = shipped(name)
    seeds = FIVE if name == "quickstart_interval" else SEEDS
    assert [(run.member.name, run.seed) for run in runs] == [(member, seed) for seed in seeds for member in members]
    common = {"seed": seeds, "output_dir": "logs"}
    origin = load(EXPS / f"{base}.json").model_dump()
    for run in runs:
        assert run.member.config.model_dump() == origin | common | members[run.member.name]


@pytest.mark.parametrize("name", GROUPS)
def test_a_shipped_group_is_equal_in_parameters_and_each_member_differs_from_the_one_before_in_one_thing(name):
    """From adaptmlp to nested_lora the structure, from there to the last member the time scales."""
    bases, rank, bottleneck = GROUPS[name]
    runs = shipped(name)
    members = [run.member for run in runs[:3]]
    names = [
        f"adaptmlp, bottleneck {bottleneck}",
        *(f"nested_lora, rank {rank}, {how} rates" for how in ("equal", "two")),
    ]
    seeds = FIVE if name.startswith("quickstart") else SEEDS
    assert [(run.member.name, run.seed) for run in runs] == [(member, seed) for seed in seeds for member in names]
    assert [member.base.stem for member in members] == bases
    flat, equal, two = (member.config.model_dump() for member in members)
    assert (flat["ffn_adapter_type"], flat["ffn_num"]) == ("adaptmlp", bottleneck)
    assert (equal["ffn_adapter_type"], equal["nested_lora_rank"]) == ("nested_lora", rank)
    structure = {key for key in flat if flat[key] != equal[key]}
    assert {key for key in structure if not key.startswith("nested_lora_")} <= {"ffn_adapter_type", "ffn_num"}
    assert equal["nested_lora_lr_fast"] == equal["nested_lora_lr_slow"] == flat["init_lr"]
    assert equal[INTERVAL] == 1
    assert two == equal | {"nested_lora_lr_fast": 0.01, "nested_lora_lr_slow": 0.001, INTERVAL: 5}


@pytest.mark.parametrize("name", [*SHIPPED, *GROUPS])
def test_main_given_the_command_makes_the_run_of_the_dry_run(name):
    runs = shipped(name)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs[:: len(SEEDS) + 1]:
        path, flags = parse(run.command()[2:])
        config = load(path, flags)
        assert f"{path.stem}-{result_hash(config)}-s{config.seed[0]}" == run.name
