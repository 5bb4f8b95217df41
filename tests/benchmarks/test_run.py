"""The command puts whole runs together from what it measured, on a tiny ViT, and writes what it is asked to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backbone.frozen import packs
from benchmarks import measure, profiles, run, timing
from benchmarks.composition import Run, plain_counts
from benchmarks.measure import Timer
from benchmarks.run_tables import MODES, PLAIN, bound, counts, ratio, ratio_beside, seconds, tables

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
OPTIONS = ["--vit", "vit_tiny_patch16_224", "--kwargs", json.dumps(SHAPE), "--keys", '{"ffn_num": 4}', "--batch", "2"]
ONCE = ["--rounds", "1", "--device", "cpu", "--threads", "1", "--write"]
MARKED = "before\n<!-- run cpu begin -->\n<!-- run cpu end -->\n<!-- profile cpu begin -->\n<!-- profile cpu end -->\n"


def written(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """What the command measured, and the document after it."""
    document, figures = folder / "performance.md", folder / "run.json"
    document.write_text(MARKED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "DOCUMENT", document)
        patch.setitem(measure.LARGEST, "cpu", 256)
        run.main([*OPTIONS, *ONCE, "--json", str(figures), *options])
    return json.loads(figures.read_text()), document.read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return written(tmp_path_factory.mktemp("run"))


@pytest.fixture
def fixed(whole) -> dict[str, Any]:
    """Figures from which ratios can be worked out by hand; a batch holds two images."""
    measured = json.loads(json.dumps(whole[0]))
    of_a_batch = {"reference": 8.0, "exact": 2.0, "bf16": 1.0}
    measured["seconds"] = {v: dict.fromkeys(found, of_a_batch[v]) for v, found in measured["seconds"].items()}
    measured["multiply_adds"] = dict.fromkeys(measured["multiply_adds"], 10)
    measured["peaks"] = {"float32": 10.0, "bfloat16": 20.0}
    return measured


def test_every_phase_that_a_run_counts_is_measured(whole):
    measured, _ = whole
    for mode in (PLAIN, *MODES):
        assert counts(measured, mode, Run()).keys() <= measured["seconds"][mode.variant].keys()
    assert all(taken > 0 for found in measured["seconds"].values() for taken in found.values())
    assert all(number > 0 for number in measured["multiply_adds"].values())
    assert measured["passes"].keys() == {"timm", "exact", "bf16"}


def test_kept_test_images_are_the_size_of_the_residual_stream(whole):
    assert whole[0]["cache"]["image_bytes"] == 17 * 32 * 4


def test_ratios_are_those_of_times_by_counts(fixed):
    small = Run(expands=(True,), train_images=10, test_images=4, func_epochs=1, rd_epochs=2)
    exact, bf16, *_, views = MODES
    assert sum(plain_counts(small).values()) == 80 + 4 * 4 + 4 * 8
    assert seconds(fixed, PLAIN, small) == 128 * 8.0 / 2
    fixed["cache"] = {"gib": 1.0, "image_bytes": 1, "batch": 4}
    assert seconds(fixed, exact, small) == (80 + 8 + 4) * 2.0 / 2
    assert ratio(fixed, bf16, small) == pytest.approx(128 * 8.0 / 92)
    # Two tasks: 10 training images twice and 4 test images once more, each at 2 s for a batch of two.
    assert ratio_beside(fixed, exact, small) == pytest.approx(128 * 8.0 / (92 * 2.0 + 2 * 24 * 2.0))
    assert bound(fixed, exact, small) == pytest.approx(512 / (92 * 10 / 2 / 10.0))
    assert bound(fixed, bf16, small) == pytest.approx(512 / (92 * 10 / 2 / 20.0))
    for phase in fixed["multiply_adds"]:
        if phase.endswith("kept"):
            fixed["seconds"]["bf16"][phase] = 0.0
    one_view = type(views)(views.title, "bf16", views.targets, views=1)
    # In task 0 one func and one of two rd epochs; in task 1 one view is made, and everything else reads it.
    assert seconds(fixed, one_view, small) == (10 + 10 + 10 + 8 + 4) * 1.0 / 2


def test_the_table_says_which_targets_are_kept(fixed):
    ours, bf16 = (
        line for line in tables(fixed).splitlines() if line.startswith(("| exact | ", "| bf16 | ")) and ">=" in line
    )
    assert "| >= 2.6 | yes |" in ours
    assert "| >= 4.8 | yes |" in bf16
    fixed["seconds"]["exact"] = dict.fromkeys(fixed["seconds"]["exact"], 8.0)
    assert "| >= 2.6 | no |" in tables(fixed)


def test_the_document_gets_the_tables_of_its_device_and_nothing_else(whole):
    measured, document = whole
    assert document == MARKED.replace("run cpu begin -->\n", f"run cpu begin -->\n{tables(measured).rstrip()}\n")


def test_figures_of_another_machine_are_written_without_measuring(tmp_path, monkeypatch, whole):
    document, figures = tmp_path / "performance.md", tmp_path / "figures.json"
    document.write_text(MARKED.replace("cpu", "cuda"))
    machine = {**whole[0]["machine"], "kind": "cuda", "device": "Some GPU"}
    figures.write_text(json.dumps({**whole[0], "machine": machine}))
    monkeypatch.setattr(timing, "DOCUMENT", document)
    monkeypatch.setattr(run, "report", None)  # to call it would fail
    run.main(["--from", str(figures), "--write"])
    assert "on a Some GPU, 1 thread(s)" in document.read_text()
    assert "| >= 30 |" in document.read_text()


# ---- by operator


def test_a_profile_names_the_operators_of_both_number_formats(tmp_path):
    measured, document = written(tmp_path, "--profile")
    for found in measured["parts"].values():
        for variant in profiles.VARIANTS:
            assert all(found[variant][kind] > 0 for kind in ("matrix products", "fused attention", "GELU", "LayerNorm"))
    ways = measured["kernels"]["mlp.fc1"]
    assert ("bfloat16, packed" in ways) == packs()
    assert min(seconds for found in measured["kernels"].values() for seconds in found.values()) > 0
    assert measured["kernels"]["attention and its gradient"].keys() == {
        f"{way} {dtype}" for way in ("fused", "plain") for dtype in ("float32", "bfloat16")
    }
    assert f"begin -->\n{profiles.tables(measured).rstrip()}\n<!-- profile cpu end" in document


def test_every_operator_is_timed_once_forwards_and_backwards():
    layer, x = torch.nn.Linear(8, 8), torch.rand(4, 8)
    readings: list[object] = []

    def second(work: Callable[[], object]) -> float:
        readings.append(work())
        return 1.0

    watch = profiles.Stopwatch(Timer(torch.device("cpu")))
    watch.timer = second
    with watch:
        torch.nn.functional.gelu(layer(x)).sum().backward()
    assert watch.spent["matrix products"] == 2  # of the layer, and towards its weight; the input asks for no gradient
    assert watch.spent["GELU"] == 2
    assert sum(watch.spent.values()) == len(readings)


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "fused attention"),
        ("aten::native_layer_norm_backward", "LayerNorm"),
        ("aten::topk", profiles.REST),
    ],
)
def test_operators_go_by_kind(operator, kind):
    assert profiles.kind_of(operator) == kind


def test_shares_and_speedups_are_of_the_figures():
    parts = {"matrix products": 3.0, "GELU": 1.0}
    report = {
        "setting": {"vit": "some_vit", "kwargs": {"depth": 3}, "batch": 2, "rounds": 1},
        "machine": {"kind": "cuda", "device": "Some GPU", "threads": 1, "clock": "wall", "torch": "9.0"},
        "parts": {"forward": {"exact": parts, "bf16": {"matrix products": 1.0, "GELU": 1.0}}},
        "kernels": {"attn.qkv": {"float32": 2.0, "bfloat16": 0.5}},
    }
    text = profiles.tables(report)
    assert text.startswith("some_vit, depth 3, batch 2, on a Some GPU, 1 thread(s), torch 9.0; best of 1 rounds")
    assert "| attn.qkv | bfloat16 | 4.00 |" in text
    assert "| matrix products | 75.0 % | 50.0 % | 3.00 |" in text
    assert "| all | 100.0 % | 100.0 % | 2.00 |" in text


def test_the_shipped_document_has_a_place_for_both_kinds_of_device():
    shipped = (Path(__file__).resolve().parents[2] / timing.DOCUMENT).read_text(encoding="utf-8")
    for name in (f"{part} {kind}" for part in ("run", "profile", "growth") for kind in ("cpu", "cuda")):
        assert shipped.count(f"<!-- {name} begin -->") == shipped.count(f"<!-- {name} end -->") == 1
