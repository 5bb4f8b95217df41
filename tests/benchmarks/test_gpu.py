"""One command measures all that a GPU's tables need; on a CPU here, with tiny shapes and in this process."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_runs, gpu_steps, gpu_tables, growth, measure, timing
from benchmarks.workloads import VARIANTS, Setting, Workshop, noise
from utils.errors import ConfigError

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
CPU = torch.device("cpu")
TINY = ["--vit", "vit_tiny_patch16_224", "--kwargs", json.dumps(SHAPE), "--keys", '{"ffn_num": 4}', "--batch", "2"]
ONCE = ["--sizes", "2", "3", "--images", "5", "--rounds", "1", "--device", "cpu", "--threads", "1"]
CARD = "NVIDIA H100 80GB HBM3"
FINISHED = {
    "last_acc": 0.5, "avg_inc_acc": 0.625, "tasks": [{"adapters": [1, 1]}, {"adapters": [1, 2]}],
}  # fmt: skip
RUNS = {name: {"seconds": 1.0, "results": FINISHED} for name in gpu_runs.CASES}


def document(kind: str) -> str:
    return "before\n" + "".join(f"<!-- {part} {kind} begin -->\n<!-- {part} {kind} end -->\n" for part in gpu.PARTS)


def here(arguments: list[str], log: Path, limit: float) -> str:
    """Measure a part in this process."""
    gpu.main(arguments)
    return gpu.DONE


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    shorten(monkeypatch)
    return monkeypatch


def shorten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gpu, "in_process", here)
    patch.setitem(measure.LARGEST, "cpu", 256)
    patch.setattr(growth, "SMALL", SHAPE)
    patch.setattr(growth.of_tasks, "__defaults__", ((1, 2),))
    patch.setattr(growth.of_adapters, "__defaults__", ((1, 2),))
    patch.setitem(VARIANTS, "bf16 compile", VARIANTS["bf16"])
    patch.setattr(gpu_steps, "check_compiler", lambda device: None)
    patch.setattr(gpu_runs, "report", lambda *given: {**given[3], "config": "some", "runs": RUNS})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with everything measured, and the document after it."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "performance.md").write_text(document("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr(timing, "DOCUMENT", folder / "performance.md")
        assert gpu.main([*TINY, *ONCE, "--json", str(folder), "--write"]) == 0
    return folder, (folder / "performance.md").read_text()


def figures(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / f"{part}.json").read_text())


def test_every_part_is_measured_and_written(measured):
    folder, text = measured
    for name, part in gpu.PARTS.items():
        tables = part.tables(figures(folder, name)).rstrip()
        assert f"<!-- {name} cpu begin -->\n{tables}\n<!-- {name} cpu end -->" in text
    assert figures(folder, "profile")["setting"]["batch"] == 3
    assert figures(folder, "growth")["setting"]["batch"] == 16


def test_steps_have_all_sizes_and_passes_the_middle_one(measured):
    rows = figures(measured[0], "steps")["rows"]
    assert {row["batch"] for row in rows if "step" in row["phase"]} == {2, 3}
    assert {row["batch"] for row in rows if "step" not in row["phase"]} == {3}
    assert all(row["seconds"] > 0 and row["multiply_adds"] > 0 for row in rows)
    by_hand = {r["batch"]: r["multiply_adds"] for r in rows if (r["phase"], r["variant"]) == ("func step", "exact")}
    assert by_hand[3] == 1.5 * by_hand[2]
    assert figures(measured[0], "steps")["waits"]["func step, nested"] is None
    compiled = {(row["phase"], row["variant"]) for row in figures(measured[0], "compile")["rows"]}
    assert compiled == set(gpu_steps.COMPILED)


def test_views_are_fetched_from_every_place(measured):
    rows = figures(measured[0], "views")["rows"]
    assert {(row["place"], row["variant"]) for row in rows} == {
        (place, variant) for place in gpu_steps.places(CPU, Path()) for variant in ("exact", "bf16")
    }
    assert all(0 < row["fetch"] < row["both"] for row in rows)


def test_a_pass_over_the_stand_in_has_every_image_once():
    source = gpu_steps.Labels(torch.arange(10, 17), CPU)
    batches = list(source.epoch("func", 0, batch_size=3, shuffle=True))
    assert [len(indices) for indices, _, _ in batches] == [3, 3, 1]
    assert source.batches(3) == 3
    indices, numbers, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    assert sorted(indices.tolist()) == list(range(7))
    assert (labels == indices + 10).all()
    assert (numbers == indices).all()


# ---- robustness


def test_a_part_that_fails_is_one_line_and_the_others_go_on(tmp_path, tiny, capsys):
    def broken(arguments: list[str], log: Path, limit: float) -> str:
        return "failed: CUDA error" if arguments[-1] == "run" else here(arguments, log, limit)

    tiny.setattr(gpu, "in_process", broken)
    assert gpu.main([*TINY, *ONCE, "--json", str(tmp_path), "--parts", "run", "views"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("run: failed: CUDA error, after 0 s\nrun: no figures\nviews: done, after ")
    assert (tmp_path / "views.json").exists()


def test_what_a_part_measured_before_it_failed_is_kept(tmp_path, tiny):
    def first_size_alone(work: Callable[[], object], device: torch.device) -> int:
        if tried.append(work) or len(tried) > len(gpu_steps.EAGER):
            raise RuntimeError("illegal memory access")
        return 1

    tried: list[object] = []
    tiny.setattr(gpu_steps, "_peak", first_size_alone)
    given = [*TINY, *ONCE, "--json", str(tmp_path), "--part", "steps"]
    with pytest.raises(RuntimeError, match="illegal"):
        gpu.main(given)
    assert {row["batch"] for row in figures(tmp_path, "steps")["rows"]} == {2}
    assert "The data sheet" not in gpu_tables.steps(figures(tmp_path, "steps"))


def test_figures_of_an_earlier_try_are_not_taken_for_a_part_that_fails(tmp_path, tiny, capsys):
    (tmp_path / "run.json").write_text("{}")
    tiny.setattr(gpu, "in_process", lambda *_: "failed")
    assert gpu.main([*TINY, *ONCE, "--json", str(tmp_path), "--parts", "run"]) == 1
    assert "run: no figures" in capsys.readouterr().out


def test_nothing_is_measured_when_the_minutes_are_used_up(tmp_path, tiny, capsys):
    tiny.setattr(gpu, "in_process", None)  # to call it would fail
    assert gpu.main([*TINY, *ONCE, "--json", str(tmp_path), "--minutes", "0.1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{part}: left out, as the 0.1 minutes are used up" for part in gpu.PARTS]


def test_a_part_gets_what_is_left_of_the_minutes_and_its_own_limit_at_most(tmp_path, tiny):
    limits: list[float] = []

    def noted(arguments: list[str], log: Path, limit: float) -> str:
        limits.append(limit)
        return gpu.DONE

    tiny.setattr(gpu, "in_process", noted)
    gpu.main([*TINY, *ONCE, "--json", str(tmp_path), "--parts", "views", "compile", "--minutes", "2"])
    assert limits[0] == gpu.PARTS["views"].seconds
    assert limits[1] == pytest.approx(120 - gpu.RESERVE, abs=5)


@pytest.mark.slow
def test_the_process_of_a_part_ends_at_its_limit_and_its_last_line_says_why_it_failed(tmp_path):
    log = tmp_path / "a.log"
    assert gpu.in_process([*TINY, "--json", str(tmp_path), "--part", "run"], log, 0.2).startswith("stopped, as it took")
    ended = gpu.in_process([*TINY, *ONCE, "--vit", "vit_none", "--json", str(tmp_path), "--part", "run"], log, 100)
    assert ended.startswith("failed: ")
    assert "vit_none" in ended
    assert "Traceback" in log.read_text()


def test_without_a_compiler_the_part_says_so(tmp_path, tiny):
    def missing(device: torch.device) -> None:
        raise ConfigError("no compiler")

    tiny.setattr(gpu_steps, "check_compiler", missing)
    with pytest.raises(ConfigError, match="no compiler"):
        gpu.main([*TINY, *ONCE, "--json", str(tmp_path), "--part", "compile"])


def test_memory_that_runs_out_leaves_out_that_work_alone():
    def greedy() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu_steps._peak(greedy, CPU) == gpu_steps.OUT_OF_MEMORY
    assert gpu_steps._peak(lambda: None, CPU) != gpu_steps.OUT_OF_MEMORY


# ---- --from


def test_figures_of_another_machine_are_written_without_measuring(tmp_path, monkeypatch, measured, capsys):
    for name in gpu.PARTS:
        found = figures(measured[0], name)
        found["machine"] |= {"kind": "cuda", "device": CARD}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "phases.json").unlink()
    written = tmp_path / "performance.md"
    written.write_text(document("cuda"))
    monkeypatch.setattr(timing, "DOCUMENT", written)
    monkeypatch.setattr(gpu, "in_process", None)  # to call it would fail
    assert gpu.main(["--from", str(tmp_path), "--write"]) == 1
    said, text = capsys.readouterr().out, written.read_text()
    assert "run: no tables: KeyError" in said
    assert "phases: no figures" in said
    assert "Traceback" in (tmp_path / "run.tables.log").read_text()
    for name in gpu.PARTS:
        empty = f"<!-- {name} cuda begin -->\n<!-- {name} cuda end -->" in text
        assert empty == (name in ("run", "phases"))
    assert text.count(f"on a {CARD}") == len(gpu.PARTS) - 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_begun(tmp_path):
    with pytest.raises(ConfigError, match="this machine has no GPU 0"):
        gpu.main(["--json", str(tmp_path)])


def test_a_folder_is_needed(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "one of --json and --from is needed" in capsys.readouterr().err


# ---- tables


def report(card: str = CARD) -> dict[str, Any]:
    """A bf16 step that does half of what the data sheet has, on a card that was measured at three quarters of it."""
    row = {"batch": 32, "phase": "func step", "memory": 2**21, "format": "bfloat16", "multiply_adds": 989e12 / 4}
    machine = {"kind": "cuda", "device": card, "threads": 1, "clock": "wall", "torch": "9.0"}
    return {
        "setting": {"vit": "some_vit", "kwargs": {}, "batch": 32, "rounds": 1},
        "machine": machine,
        "peaks": {"bfloat16": 989e12 * 3 / 8},
        "rows": [
            {**row, "variant": "reference", "format": "float32", "seconds": 2.0},
            {**row, "variant": "bf16", "seconds": 1.0},
            {**row, "batch": 256, "variant": "bf16", "memory": gpu_steps.OUT_OF_MEMORY, "seconds": None},
        ],
        "waits": {"func step, exact": {}, "rd step, exact": {"losses.py:87": 2}},
    }


def test_utilisation_is_of_the_measured_peak_and_of_the_data_sheet():
    text = gpu_tables.steps(report())
    assert "| 32 | func step | bf16 | 1,000.00 | 32 | 2.00 | 0.67 | 0.50 | 2 |" in text
    assert "| 256 | func step | bf16 | out of memory |  |  |  |  |  |" in text
    assert f"The data sheet of a {CARD} has 67 in float32, 989 in bfloat16 TFLOP/s." in text
    assert "reaches at most 0.50 of the data sheet (bf16, batch 32); the target of 0.4 is kept." in text
    assert "| func step, exact | no |" in text
    assert "| rd step, exact | 2 x losses.py:87 |" in text


def test_without_a_data_sheet_the_measured_peak_counts():
    text = gpu_tables.steps(report("Some GPU"))
    assert "| 32 | func step | bf16 | 1,000.00 | 32 | 2.00 | 0.67 |  | 2 |" in text
    assert "reaches at most 0.67 of the measured peak" in text
    slow = report()
    slow["rows"][1]["seconds"] = 1.5
    assert "0.33 of the data sheet (bf16, batch 32); the target of 0.4 is not kept" in gpu_tables.steps(slow)


@pytest.mark.parametrize(
    ("card", "peak"),
    [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 PCIe", None), ("Some GPU", None)],
)
def test_data_sheets_are_by_the_name_of_the_card(card, peak):
    assert gpu_tables.data_sheet(card).get("bfloat16") == peak


# ---- waiting


def test_every_wait_of_a_step_is_found_with_its_line(monkeypatch):
    modes: list[str] = []

    def mode(name: str) -> None:
        modes.append(name)
        warnings.warn("Synchronization debug mode does not yet detect all synchronizing operations", stacklevel=2)

    def step() -> None:
        steps.append(1)
        if modes == ["warn"]:
            for _ in range(2):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    steps: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode)
    monkeypatch.setattr(gpu_steps, "finish", lambda device: None)
    line = step.__code__.co_firstlineno + 4
    assert gpu_steps.waits(step, torch.device("cuda")) == {f"test_gpu.py:{line}": 2}
    assert modes == ["warn", "default"]
    assert len(steps) == 3
    assert gpu_steps.waits(step, CPU) is None


# ---- whole runs


def test_a_run_that_was_resumed_is_compared_with_the_whole_one():
    where = {"machine": {"device": CARD}, "config": "quickstart"}
    assert "| fp32, stopped and resumed | 50.00 | 62.50 | 1-2 | 1 | the same as without the stop |" in gpu_runs.tables(
        {**where, "runs": RUNS}
    )
    other = {**RUNS, gpu_runs.RESUMED: {"seconds": 1.0, "results": {**FINISHED, "last_acc": 0.25}}}
    assert "| 25.00 | 62.50 | 1-2 | 1 | others as without the stop |" not in gpu_runs.tables({**where, "runs": other})
    assert "| 25.00 | 62.50 | 1-2 | 1 | not those without the stop |" in gpu_runs.tables({**where, "runs": other})
    failed = {**RUNS, gpu_runs.RESUMED: {"failed": "a | b"}}
    assert "| fp32, stopped and resumed | failed: a / b |  |  |  |  |" in gpu_runs.tables({**where, "runs": failed})


@pytest.mark.slow
def test_runs_on_the_device_are_those_on_the_cpu_and_resume_exactly(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, number in (("train", 160), ("test", 16)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(number) % 4
    np.savez(tmp_path / "images.npz", **arrays)
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    config = {
        "dataset": "npz", "data_root": str(tmp_path / "images.npz"), "init_cls": 2, "increment": 2, "batch_size": 2,
        "backbone_type": "vit_tiny_patch16_224_adapter", "backbone_kwargs": shape, "pretrained": False, "ffn_num": 4,
        "adapt_start_layer": 1, "adapt_end_layer": 2, "num_workers": 0, "detect_batch_size": 8,
    }  # fmt: skip
    (tmp_path / "small.json").write_text(json.dumps(config))
    monkeypatch.setattr(gpu_runs, "LONGEST", 100.0)
    cases = {name: gpu_runs.CASES[name] for name in ("fp32 on the CPU", gpu_runs.RESUMED)}
    monkeypatch.setattr(gpu_runs, "CASES", cases)
    found = gpu_runs.report(tmp_path / "small.json", CPU, tmp_path / "runs", {"machine": {"device": "cpu"}})
    whole, resumed = found["runs"].values()
    assert resumed["results"] == whole["results"]
    assert len(whole["results"]["tasks"]) == 2
    assert "continues in task " in (tmp_path / "runs" / "1.log").read_text()


def test_a_run_that_fails_or_takes_too_long_is_one_line(tmp_path, monkeypatch):
    case = gpu_runs.Case()
    assert (
        "no.json: no such file"
        in gpu_runs._run(case, [str(tmp_path / "no.json"), "--device", "cpu"], tmp_path / "0")["failed"]
    )
    monkeypatch.setattr(gpu_runs, "LONGEST", 0.1)
    ended = gpu_runs._run(case, ["exps/quickstart.json", "--device", "cpu"], tmp_path / "1")
    assert ended == {"failed": "it took longer than 0.1 s"}


# ---- batches


def test_a_workshop_prepares_works_for_the_batch_it_has():
    shop = Workshop(Setting("vit_tiny_patch16_224", 2, CPU, SHAPE, {"ffn_num": 4}))
    assert len(shop.work(("evaluation", "exact"))()[0]) == 2
    shop.batch = noise(shop.setting, 5)
    assert len(shop.work(("evaluation", "exact"))()[0]) == 5


def test_the_shipped_document_has_a_place_for_every_part():
    shipped = (Path(__file__).resolve().parents[2] / timing.DOCUMENT).read_text(encoding="utf-8")
    for name in gpu.PARTS:
        assert shipped.count(f"<!-- {name} cuda begin -->") == shipped.count(f"<!-- {name} cuda end -->") == 1
