"""The search of a sweep: what is tried, what is chosen, how that is said, and that test images have no part in it."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import timm
import torch
from finished_runs import write_run

from main import main as train
from tools.compare.comparison import Comparison
from tools.compare.tables import markdown
from tools.report.sections import summary
from tools.sweep import __main__ as sweep
from tools.sweep.failures import Failure
from tools.sweep.launch import Job
from tools.sweep.outcome import edges, read_outcome, write_outcome
from tools.sweep.plan import PlannedRun, read_plan
from tools.sweep.search import Search, choose, read_search
from utils.errors import AFTER_DIVERGENCE, ConfigError, UserError

RATES = [0.1, 0.2, 0.3, 0.4, 0.5]
SEARCH: dict[str, Any] = {"seeds": [1, 2], "changes": {"val_fraction": 0.2}, "grid": {"init_lr": RATES}}
FILE: dict[str, Any] = {"base": "base.json", "seeds": [7, 8], "list": [{"name": "a"}, {"name": "b"}]}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Search]:
    """Read a search; the keys given beat those above, and make the members differ."""
    (tmp_path / "base.json").write_text('{"dataset": "cub"}')

    def read(sweep: Mapping[str, Any] | None = None, **keys: Any) -> Search:
        entries = [{"name": "a"}, {"name": "b", "changes": {"ffn_num": 8}}]
        values = {**FILE, "list": entries, **(sweep or {}), "search": {**SEARCH, **keys}}
        (tmp_path / "s.json").write_text(json.dumps(values))
        return read_search(tmp_path / "s.json", str(tmp_path / "search"), str(tmp_path))

    return read


def values_of(search: Search) -> dict[str, list[Any]]:
    return {name: [point.values for point in points] for name, points in search.points.items()}


# ---- what is tried


def test_every_member_tries_its_grid_on_validation_images_with_the_changes_of_each_rung(read) -> None:
    own = {"search": {"grid": {"ffn_num": [4, 8, 16, 32, 64]}}}
    search = read({"list": [{"name": "a"}, {"name": "b", **own}]}, rungs=[{"max_tasks": 2}, {}])
    assert values_of(search) == {
        "a": [{"init_lr": rate} for rate in RATES],
        "b": [{"ffn_num": width} for width in (4, 8, 16, 32, 64)],
    }
    for points in search.points.values():
        for point in points:
            configs = [[run.member.config for run in rung] for rung in point.runs]
            assert [[config.max_tasks for config in rung] for rung in configs] == [[2, 2], [None, None]]
            assert [[run.seed for run in rung] for rung in point.runs] == [[1, 2], [1, 2]]
            for config in chain(*configs):
                assert (config.evaluate_on, config.val_fraction) == ("val", 0.2)
                assert {key: getattr(config, key) for key in point.values} == point.values


def test_all_members_get_as_many_points_and_more_points_add_to_fewer(read) -> None:
    own = {"search": {"grid": {"ffn_num": [4, 8, 16], "init_lr": [1.0, 2.0]}}}
    members = {"list": [{"name": "a"}, {"name": "b", **own}]}
    with pytest.raises(ConfigError, match=r"equally many combinations of .* every member, found 5 for a, 6 for b"):
        read(members)
    with pytest.raises(ConfigError, match="found 5 for a, 6 for b"):
        read(members, points=6)
    five, three = (values_of(read(members, points=count)) for count in (5, 3))
    assert [len(points) for points in five.values()] == [5, 5]
    for name in "ab":
        assert [point for point in five[name] if point in three[name]] == three[name]
    search = read(members, points=3)
    assert values_of(search) == three
    assert "They are drawn at random from the combinations in the grid: 5 of a, 6 of b." in search.announcement()
    assert values_of(read(points=3))["a"] == three["a"]  # whatever the others try
    assert three["a"] != five["a"][:3]


@pytest.mark.parametrize(
    ("sweep_keys", "keys", "words"),
    [
        ({}, {"changes": {}}, "search: changes: expected a val_fraction above 0, such as 0.2"),
        ({}, {"changes": {"val_fraction": 0.0}}, "search: changes: expected a val_fraction above 0"),
        ({}, {"grid": None}, "search: a has no grid; expected one in the search, or in a search of each member"),
        ({}, {"gird": {}}, "search.gird: unknown key; did you mean grid?"),
        ({}, {"init_lr": 1}, "search.init_lr: unknown key; the keys of a configuration belong under changes"),
        ({"list": [{"name": "a", "search": {"rungs": []}}]}, {}, "list[0].search.rungs: unknown key; expected one of"),
        ({}, {"points": 0}, "search.points = 0"),
        ({}, {"keep": 1}, "search.keep = 1"),
        ({}, {"rungs": []}, "search.rungs = []"),
        ({}, {"measure": "forgetting"}, "search.measure = \"forgetting\": input should be 'avg_inc_acc' or 'last_acc'"),
        ({}, {"rungs": [{"init_lr": 1}]}, "search: init_lr: is in a grid and in the changes of all runs; keep one"),
        ({}, {"grid": {"val_fraction": [0.1, 0.2]}}, 'search: val_fraction: expected under "changes" of the search'),
        ({}, {"rungs": [{"evaluate_on": "test"}]}, "search: evaluate_on: the search sets it"),
        ({}, {"changes": {"evaluate_on": "test", "val_fraction": 0.1}}, "search: evaluate_on: the search sets it"),
        ({"changes": {"evaluate_on": "val", "val_fraction": 0.1}}, {}, "evaluate_on: the search sets it; leave it out"),
        ({}, {"grid": {"init_lr": [0.1, -1]}}, "init_lr = -1"),
        ({}, {"grid": {"init_lt": [0.1]}}, "init_lt = 0.1 (flag --init_lt): unknown key; did you mean init_lr?"),
        ({}, {"grid": {"seed": [1]}}, "seed: a sweep cannot change it"),
        ({}, {"grid": {"init_lr": [0.1, 0.1]}}, "a: init_lr=0.1: 2 members have this name"),
        ({}, {"seeds": [-1]}, "seed"),
        ({}, {"grid": {"init_lr": [*range(99)], "rd_dim": [*range(99)]}}, "9801 combinations of values; expected at"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_search_is_said_before_anything_runs(read, sweep_keys, keys, words) -> None:
    with pytest.raises(ConfigError) as refused:
        read(sweep_keys, **keys)
    assert words in str(refused.value)


def test_a_search_and_the_flag_need_each_other(read, tmp_path: Path, capsys) -> None:
    read()
    with pytest.raises(ConfigError, match=r"s\.json: it has a search; add --select val, which chooses its values"):
        read_plan(tmp_path / "s.json", "logs")
    (tmp_path / "s.json").write_text(json.dumps(FILE))
    assert sweep.main([str(tmp_path / "s.json"), "--select", "val", "--output_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip().endswith("search: missing; --select val needs it, see docs/search.md")


# ---- what is chosen


class Accuracies:
    """Stands in for the runs of a search: writes finished runs with given right answers, of 100 images of one task."""

    def __init__(self, right: Callable[[Any, int], int | str]) -> None:
        self.right, self.rungs = right, list[list[tuple[str, int]]]()

    def __call__(self, number: int, runs: Sequence[PlannedRun]) -> dict[str, Failure]:
        assert number == len(self.rungs) + 1
        self.rungs.append([(run.member.name, run.seed) for run in runs])
        failures = {}
        for run in runs:
            config, found = run.member.config, self.right(run.member.config, run.seed)
            if isinstance(found, str):
                log = Path(config.output_dir) / f"{run.name}.log"
                log.parent.mkdir(exist_ok=True)
                log.write_text(found)
                failures[run.name] = Failure(run.member.name, run.seed, "exit code 4", "", str(log))
            elif not run.finished():
                keys = config.model_dump(exclude={"seed"}, exclude_defaults=True)
                write_run(Path(config.output_dir), run.member.base.stem, run.seed, [[found]], **keys)
        return failures


def by_rate(right: Mapping[float, int | str]) -> Callable[[Any, int], int | str]:
    return lambda config, seed: right[config.init_lr]


def test_the_best_mean_over_the_seeds_is_chosen_and_of_equal_ones_the_first(read) -> None:
    right = {0.1: (10, 50), 0.2: (41, 41), 0.3: (80, 1), 0.4: (40, 42), 0.5: (0, 0)}
    execute = Accuracies(lambda config, seed: right[config.init_lr][seed - 1])
    search = read()
    outcome = choose(search, execute)
    assert outcome is not None
    assert outcome.chosen == {"a": {"init_lr": 0.2}, "b": {"init_lr": 0.2}}
    assert [seed for _, seed in execute.rungs[0]] == [1] * 10 + [2] * 10
    assert outcome.rungs["b"][0][2].scores == {"1": 0.8, "2": 0.01}
    judged = search.judged(outcome)
    assert [(run.member.name, run.seed) for run in judged] == [("a", 7), ("b", 7), ("a", 8), ("b", 8)]
    configs = [run.member.config for run in judged]
    assert {(c.evaluate_on, c.val_fraction, c.init_lr) for c in configs} == {("test", 0.0, 0.2)}


def test_successive_halving_lets_the_best_share_go_on(read) -> None:
    def right(config: Any, seed: int) -> int:
        last = {0.2: 60, 0.4: 20, 0.5: 30}  # the best of the first rung is the worst of the second
        return int(100 * config.init_lr) if config.max_tasks == 1 else last[config.init_lr]

    execute = Accuracies(right)
    search = read(rungs=[{"max_tasks": 1}, {}], keep=0.4, seeds=[1])
    outcome = choose(search, execute)
    assert outcome is not None
    assert [len(rung) for rung in execute.rungs] == [10, 4]
    assert [tried.values["init_lr"] for tried in outcome.rungs["a"][1]] == [0.4, 0.5]
    assert outcome.chosen["a"] == {"init_lr": 0.5}
    followed = [row[-1] for row in outcome.rows() if row[0] == "a"]
    assert followed == ["-", "-", "-", "next rung", "next rung", "-", "chosen"]
    said = " ".join(search.sentences(outcome))
    assert "The best 40 % go on to the next rung; rung 1: max_tasks=1; rung 2: no change." in said
    assert "on validation images of the last rung." in said


def test_a_point_that_diverged_is_the_worst_and_named_and_other_failures_leave_the_search_open(read, tmp_path) -> None:
    nan = f"the loss is nan; {AFTER_DIVERGENCE}"
    outcome = choose(read(), Accuracies(by_rate({0.1: 0, 0.2: 7, 0.3: 6, 0.4: nan, 0.5: nan})))
    assert outcome is not None
    assert outcome.chosen["a"] == {"init_lr": 0.2}
    (line,) = [line for line in outcome.sentences() if line.startswith("a: training diverged")]
    assert line == "a: training diverged, which counts as worst, with init_lr=0.4; init_lr=0.5."
    assert ["a", "init_lr=0.5", "1", "diverged, diverged", "diverged", "-"] in outcome.rows()
    shutil.rmtree(tmp_path / "search")
    assert choose(read(), Accuracies(by_rate({0.1: 0, 0.2: 7, 0.3: 6, 0.4: nan, 0.5: "no space left"}))) is None
    shutil.rmtree(tmp_path / "search")
    with pytest.raises(UserError, match="a: training diverged with all values of the search"):
        choose(read(), Accuracies(by_rate(dict.fromkeys(RATES, nan))))


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.1, "init_lr=0.1 is the smallest value tried"), (0.5, "init_lr=0.5 is the largest"), (0.3, None), ("x", None)],
)  # fmt: skip
def test_a_chosen_value_at_the_edge_of_its_grid_is_named(value, words) -> None:
    found = edges({"init_lr": value}, [{"init_lr": rate} for rate in [0.5, 0.1, 0.3, "x"]])
    assert [line[: len(words)] for line in found] == [words] if words else found == []
    assert edges({"use": True, "one": 1}, [{"use": True, "one": 1}, {"use": False, "one": 1}]) == []


def test_the_record_is_of_one_search(read, tmp_path: Path) -> None:
    rates = {rate: int(100 * rate) for rate in RATES}
    search = read()
    outcome = choose(search, Accuracies(by_rate(rates)))
    assert outcome is not None
    file = tmp_path / "chosen.json"
    write_outcome(file, search.record, outcome)
    assert read_outcome(file, search.key) == outcome
    assert read_outcome(file, read({"seeds": [9]}).key) == outcome
    for other in ({"measure": "last_acc"}, {"keep": 0.5}, {"seeds": [1]}, {"grid": {"init_lr": [0.1]}}):
        assert read_outcome(file, read(**other).key) is None
    file.write_text(file.read_text().replace("0.5", "half"))
    assert read_outcome(file, search.key) is None


def test_a_seed_of_both_parts_is_named(read) -> None:
    assert not [line for line in read().announcement() if "prefer other" in line]
    lines = read(seeds=[8, 3]).announcement()
    assert "Seed 8 is one of the search and of the runs with the chosen values; prefer other ones." in lines


def test_tables_and_page_say_how_the_values_were_chosen(read) -> None:
    search = read()
    outcome = choose(search, Accuracies(by_rate({rate: int(100 * rate) for rate in RATES})))
    assert outcome is not None
    whole = Comparison([], None, [], chosen=search.sentences(outcome), searched=outcome.rows())
    text = markdown(whole)
    assert "scored validation images alone" in text
    assert re.search(r"\| a +\| init\\_lr=0.5 \| 1 +\| 50.00, 50.00 \| 50.00 \| chosen", text)
    part = summary(whole).parts[0]
    assert part.title == "How the values were chosen"
    assert [len(table.rows) for table in part.tables] == [10]


def test_the_shipped_search_is_of_equal_budget_and_small() -> None:
    path = Path(__file__).parents[3] / "exps" / "sweeps" / "quickstart_search.json"
    search = read_search(path, "logs/search", "logs")
    assert [len(points) for points in search.points.values()] == [6, 6]
    assert not set(search.seeds) & {1993, 1994, 1995}
    kinds = [points[0].runs[0][0].member.config.ffn_adapter_type for points in search.points.values()]
    assert kinds == ["adaptmlp", "nested_lora"]


# ---- with real runs

TINY = {
    "dataset": "npz",
    "data_root": "images.npz",
    "backbone_type": "vit_tiny_patch16_224_adapter",
    "backbone_checkpoint": "vit.pth",
    "backbone_kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "device": "cpu",
    "num_workers": 0,
    "num_threads": 1,
    "init_cls": 2,
    "increment": 2,
    "ffn_adapter_type": "adaptmlp",
    "ffn_num": 2,
    "adapt_start_layer": 1,
    "adapt_end_layer": 1,
    "batch_size": 8,
    "func_epoch": 6,
    "rd_epoch": 0,
    "rd_dim": 4,
    "readouts": [],
}
REAL = {
    "base": "tiny.json",
    "seeds": [1],
    "list": [{"name": "narrow"}],
    "search": {
        "seeds": [2],
        "changes": {"val_fraction": 0.25},
        "grid": {"init_lr": [1e-5, 0.1]},
    },
}


def in_this_process(threads: int, gpus: Sequence[str]) -> Callable[[Sequence[str], Path, int], Job]:
    """Start nothing: train at once, which takes less time than a new process."""

    def start(command: Sequence[str], log: Path, slot: int) -> Job:
        with log.open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = train(command[2:])
        return Job(lambda: f"exit code {code}", lambda: None, lambda: None)

    return start


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMA_DATA_ROOT", raising=False)
    monkeypatch.setattr(sweep, "local", in_this_process)
    monkeypatch.setattr("tools.sweep.run.POLL", 0.0)
    monkeypatch.setattr(sweep, "write_page", lambda comparison, target: None)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / "s.json").write_text(json.dumps(REAL))
    write_images(tmp_path / "images.npz", noise=False)
    write_backbone(tmp_path / "vit.pth")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def write_backbone(path: Path) -> None:
    """Random weights, so large that features depend on the images."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY["backbone_kwargs"])
    scales = {name: 40 if name == "patch_embed.proj.weight" else 4 for name, _ in vit.named_parameters()}
    values = vit.state_dict().items()
    torch.save(
        {name: value * (scales[name] if name.endswith("weight") and value.ndim > 1 else 1) for name, value in values},
        path,
    )


def write_images(path: Path, noise: bool) -> None:
    """Four classes, each of one colour plus noise; or test images that are nothing but noise."""
    rng, labels = np.random.RandomState(0), np.repeat(np.arange(4), 8)
    colours = rng.randint(0, 200, size=(4, 1, 1, 3))
    arrays = {part: colours[labels] + rng.randint(0, 50, size=(32, 20, 20, 3)) for part in ("train", "test")}
    if noise:
        arrays["test"] = np.random.RandomState(1).randint(0, 255, size=(32, 20, 20, 3))
    pixels = {f"x_{part}": values.astype(np.uint8) for part, values in arrays.items()}
    np.savez(path, y_train=labels, y_test=labels, **pixels)


def select(*options: str) -> int:
    return sweep.main(["s.json", "--output_dir", "runs", "--jobs", "1", "--select", "val", *options])


def by_counts(folder: Path) -> dict[float, float]:
    """Average incremental accuracy by rate, from the counts in results.json alone."""
    found = {}
    for run in folder.glob("*-s2"):
        config, results = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "results"))
        correct, count = results["accuracy"]["correct"], results["accuracy"]["count"]
        assert set(count) == {4}  # two classes with a quarter of 8 images each
        found[config["init_lr"]] = fmean(sum(row) / sum(count[: len(row)]) for row in correct)
    return found


def test_a_real_search_chooses_by_validation_images_whatever_the_test_images_are(folder: Path, capsys) -> None:
    assert select() == 0
    told = capsys.readouterr()
    assert "The search tries 2 combinations of values for each of narrow, with seed 2." in told.err
    scores = by_counts(folder / "runs" / "s" / "search")
    assert scores[1e-5] < scores[0.1]
    record = json.loads((folder / "runs" / "s" / "chosen.json").read_text())
    assert record["chosen"] == {"narrow": {"init_lr": max(scores, key=lambda rate: scores[rate])}}
    tried = {one["values"]["init_lr"]: one["scores"]["2"] for one in record["rungs"]["narrow"][0]}
    assert tried == pytest.approx(scores)
    (judged,) = (folder / "runs").glob("*-s1")
    config = json.loads((judged / "config.json").read_text())
    assert (config["evaluate_on"], config["val_fraction"]) == ("test", 0.0)
    assert {"init_lr": config["init_lr"]} == record["chosen"]["narrow"]
    page = (folder / "runs" / "s" / "table.md").read_text()
    assert page.index("How the values were chosen") < page.index("**Runs**")

    shutil.rmtree(folder / "runs" / "s" / "search")  # chosen.json is enough
    assert select() == 0
    assert "1 runs, 1 finished already" in capsys.readouterr().err

    write_images(folder / "images.npz", noise=True)
    search = read_search(Path("s.json"), "noise", "runs")
    outcome = choose(search, lambda number, runs: {run.name: train(run.command()[2:]) for run in runs} and {})
    assert outcome is not None
    assert outcome.chosen == record["chosen"]
    assert by_counts(folder / "noise") == scores


def test_a_search_goes_on_where_it_was_stopped_and_tries_failed_runs_again(folder: Path, monkeypatch, capsys) -> None:
    broken = [["--eval=true"], ["--eval=true"]]  # both attempts of the first run fail

    def fails(threads: int, gpus: Sequence[str]) -> Callable[[Sequence[str], Path, int], Job]:
        start = in_this_process(threads, gpus)
        return lambda command, log, slot: start(
            [*command, *(broken.pop() if broken and "0.1" in " ".join(command) else [])], log, slot
        )

    monkeypatch.setattr(sweep, "local", fails)
    assert select() == 1
    assert "nothing is chosen yet, as runs of the search failed" in capsys.readouterr().err
    assert not (folder / "runs" / "s" / "chosen.json").exists()
    monkeypatch.setattr("tools.sweep.__main__.refusals", lambda runs, processes: [])  # would start processes
    assert select("--dry-run") == 0
    listed = capsys.readouterr()
    assert re.findall(r"^(\w+)", listed.out, re.MULTILINE) == ["finished", "start"]
    assert "the runs that follow are known when these have finished" in listed.err
    assert select() == 0
    assert "2 runs, 1 finished already, 1 failed before: tried again" in capsys.readouterr().err
    assert select("--dry-run") == 0
    assert re.findall(r"^(\w+)", capsys.readouterr().out, re.MULTILINE) == ["finished"] * 3
    monkeypatch.setattr(sweep, "local", None)  # nothing is trained when the file asks for less
    lower = {**REAL["search"], "measure": "last_acc"}
    (folder / "s.json").write_text(json.dumps({**REAL, "search": lower}))
    assert select() == 0
    assert "search, rung 1 of 1\n2 runs, 2 finished already" in capsys.readouterr().err
    assert json.loads((folder / "runs" / "s" / "chosen.json").read_text())["measure"] == "last_acc"
