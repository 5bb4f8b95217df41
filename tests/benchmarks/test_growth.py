"""Many tasks leave nothing behind, many adapters nothing but themselves; the command says so."""

import json

import pytest
import torch

from benchmarks import growth, timing
from benchmarks.growth_tables import tables
from benchmarks.measure import Timer
from benchmarks.workloads import Setting

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
SETTING = Setting("vit_tiny_patch16_224", 16, torch.device("cpu"), SHAPE)
MACHINE = {"kind": "cpu", "instructions": "AVX9", "threads": 1, "clock": "cpu", "torch": "9.0"}
IMAGE = 17 * 32 * 4  # bytes of an image half way


@pytest.fixture(scope="module")
def grown() -> dict[int, dict[str, float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(growth.KEYS, "eval_cache_gib", 32 * IMAGE / 2**30)  # two batches of 16
        return growth.of_tasks(SETTING, 2, Timer(SETTING.device), (2, 4, 6))


def test_nothing_but_test_images_up_to_the_bound_stays_after_a_task(grown):
    assert grown[2]["tensors"] == grown[4]["tensors"] == grown[6]["tensors"] > 0
    labels = 8
    # 16, 32 and 48 test images, of which two batches of 16 are kept at most.
    assert [grown[task]["cache"] for task in (2, 4, 6)] == [n * (IMAGE + labels) for n in (16, 32, 32)]
    assert all(row["training"] > 0 and row["evaluation"] > 0 for row in grown.values())


def test_what_a_learner_would_keep_is_seen():
    before = growth.alive()
    kept = torch.zeros(1000)
    assert growth.alive() - before == kept[:10].untyped_storage().nbytes() == 4000


def test_the_command_measures_tasks_and_adapters_and_writes_them(tmp_path, monkeypatch, grown):
    document, figures = tmp_path / "performance.md", tmp_path / "growth.json"
    marked = "before\n<!-- growth cpu begin -->\n<!-- growth cpu end -->\n"
    document.write_text(marked)
    monkeypatch.setattr(timing, "DOCUMENT", document)
    monkeypatch.setattr(growth, "of_tasks", lambda *_: grown)
    monkeypatch.setattr(growth.of_adapters, "__defaults__", ((1, 3),))
    options = ["--rounds", "1", "--device", "cpu", "--threads", "1", "--json", str(figures), "--write"]
    growth.main(["--kwargs", json.dumps(SHAPE), *options])
    measured = json.loads(figures.read_text())
    assert list(measured["adapters"]) == ["1", "3"]
    # By hand: 16 images, 17 tokens of width 32; three layers take two more adapters of bottleneck 16 with a router. In
    # the last layer they act on the class token, and the router needs the queries of the 16 others and their mean.
    costs = {n: found["evaluation"]["multiply_adds"] for n, found in measured["adapters"].items()}
    adapter, mixing = 2 * 32 * 16, 3 * 2 * 32
    mean = 16 * 32**2 + 2 * 16 * 17 * 32 + 32**2
    assert costs["3"] - costs["1"] == 16 * (2 * (2 * 17 * adapter + mixing) + mean + 2 * adapter + mixing)
    assert document.read_text() == marked.replace("begin -->\n", f"begin -->\n{tables(measured).rstrip()}\n")


def test_times_are_in_units_of_the_first_line():
    row = {"training": 1.0, "evaluation": 2.0, "peak": 3 * 2**20, "tensors": 2**20, "cache": 2**19}
    cost = {"seconds": 1.0, "memory": 2**20}
    report = {
        "setting": {"vit": "some_vit", "kwargs": {}, "batch": 2, "rounds": 1},
        "machine": MACHINE,
        "tasks": {"10": row, "20": {**row, "training": 1.5, "peak": None}},
        "adapters": {"1": {"func step": cost}, "4": {"func step": {"seconds": 1.25, "memory": None}}},
    }
    text = tables(report)
    assert text.startswith(
        "some_vit, batch 2, on a CPU with AVX9, 1 thread(s), torch 9.0; best of 1 rounds by the cpu clock. Times are"
    )
    assert "| 10 | 1.00 | 1.00 | 3 | 1.000 | 0.5 |" in text
    assert "| 20 | 1.50 | 1.00 |  | 1.000 | 0.5 |" in text
    assert "| 4 | 1.25 |  |" in text
