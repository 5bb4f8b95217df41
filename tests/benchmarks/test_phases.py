"""The command measures everything, on a tiny ViT, and writes what it is asked to."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure, phases, timing
from benchmarks.phase_tables import TARGETS, tables
from benchmarks.timing import NEEDS_UNITS
from benchmarks.workloads import PHASES
from utils.runs.environment import processor

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
MARKED = "before\n<!-- phases cpu begin -->\n<!-- phases cpu end -->\nafter\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the command measured, and the document after it."""
    folder = tmp_path_factory.mktemp("phases")
    document, figures = folder / "performance.md", folder / "phases.json"
    document.write_text(MARKED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "DOCUMENT", document)
        patch.setitem(measure.LARGEST, "cpu", 256)
        tiny = ["--vit", "vit_tiny_patch16_224", "--kwargs", json.dumps(SHAPE), "--keys", '{"ffn_num": 4}']
        options = ["--batch", "2", "--rounds", "1", "--device", "cpu", "--threads", "1", "--bf16", "--write"]
        phases.main([*tiny, *options, "--json", str(figures)])
    return json.loads(figures.read_text()), document.read_text()


def test_every_phase_is_measured_in_the_reference_way_and_ours(written):
    measured, _ = written
    kept = ("kept", "view", "features")  # of the keys rd_views and views
    phases_here = {phase for phase in PHASES if not phase.endswith(kept)}
    assert measured["costs"].keys() == phases_here
    compared = {phase for phase, variants in measured["costs"].items() if {"reference", "exact"} <= variants.keys()}
    assert compared == {phase for phase in phases_here if "adapter" not in phase}
    for variants in measured["costs"].values():
        assert all(cost["seconds"] > 0 and cost["multiply_adds"] > 0 for cost in variants.values())
    assert measured["peaks"].keys() == {"float32", "bfloat16"}
    assert min(measured["peaks"].values()) > 0
    assert measured["setting"]["batch"] == 2
    assert measured["machine"]["kind"] == "cpu"


def test_multiply_adds_are_those_of_the_computation(written):
    """By hand: two images, 17 tokens of width 32, four layers with a bottleneck of 4; lone adapters are not mixed."""
    costs = written[0]["costs"]
    tokens, width = 17, 32
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    mlp, adapter = 8 * tokens * width**2, 2 * tokens * width * 4
    keys_and_values = 2 * tokens * width**2 + 2 * tokens * width  # of all tokens, and the query of one at them
    last = keys_and_values + (2 + 8) * width**2 + 2 * width * 4  # the class token alone
    patches, head = 16 * 3 * 64 * width, 100 * width
    descriptors, towards_input = 3 * 2 * 128 * width, 3 * 128 * width
    timms = patches + 4 * (attention + mlp) + head
    cut = patches + 4 * attention + 3 * (mlp + adapter)
    whole = patches + 3 * (attention + mlp + adapter) + last + head
    by_hand = {
        ("forward", "timm"): timms,
        ("forward", "exact"): whole,
        ("evaluation", "exact"): whole,
        ("evaluation, seen before", "exact"): 2 * (attention + mlp + adapter) + last + head,
        ("scan", "exact"): cut + descriptors,
        ("rd step", "exact"): cut + 3 * descriptors - towards_input,  # of the token mean no gradient is asked
    }
    assert {(p, v): costs[p][v]["multiply_adds"] for p, v in by_hand} == {k: 2 * n for k, n in by_hand.items()}
    assert costs["rd step"]["reference"]["multiply_adds"] > 1.8 * costs["rd step"]["exact"]["multiply_adds"]


def test_tables_hold_every_ratio_and_every_work(written):
    measured, _ = written
    text = tables(measured)
    assert all(f"| {target.title} |" in text for target in TARGETS)
    for phase, variants in measured["costs"].items():
        assert all(f"| {phase} | {variant} |" in text for variant in variants)


def test_ratios_and_shares_are_of_the_figures(written):
    measured, _ = written
    fixed = json.loads(json.dumps(measured))
    for variants in fixed["costs"].values():
        for variant, cost in variants.items():
            cost |= {"seconds": {"reference": 4.0}.get(variant, 2.0), "multiply_adds": 10**9, "memory": 3 * 2**20}
    fixed["peaks"] = {"float32": 1e9, "bfloat16": 1e9}
    text = tables(fixed)
    assert "| rd step: reference / exact | 2.00 | >= 2 | yes |" in text
    assert "| func step: nested / adaptmlp | 1.00 | <= 1.05 | yes |" in text
    assert "| rd step | reference | 4,000.0 | 0.50 | 1.00 | 1.0 | 25 % | 3 |" in text
    assert "| rd step | exact | 2,000.0 | 1.00 | 2.00 | 1.0 | 50 % | 3 |" in text
    fixed["costs"]["rd step"]["exact"] |= {"seconds": 2.5, "memory": None}
    assert "| rd step: reference / exact | 1.60 | >= 2 | no |" in tables(fixed)
    assert "| rd step | exact | 2,500.0 | 0.80 | 1.60 | 1.0 | 40 % |  |" in tables(fixed)


def test_the_processor_is_named_and_which_figures_need_its_units(written):
    measured, document = copy.deepcopy(written)
    assert f" ({processor()}), 1 thread(s)" in document
    assert NEEDS_UNITS in document
    del measured["machine"]["processor"]  # as in figures of earlier versions
    assert f"on a CPU with {measured['machine']['instructions']}, 1 thread(s)" in tables(measured)
    assert NEEDS_UNITS not in tables({**measured, "machine": {**measured["machine"], "kind": "cuda", "device": "x"}})


def test_the_document_gets_the_tables_of_its_device_and_nothing_else(written):
    measured, document = written
    assert document == MARKED.replace("begin -->\n", f"begin -->\n{tables(measured).rstrip()}\n")


def test_figures_of_another_machine_are_written_without_measuring(tmp_path, monkeypatch, written, capsys):
    measured, _ = written
    document, figures = tmp_path / "performance.md", tmp_path / "figures.json"
    document.write_text(MARKED.replace("cpu", "cuda"))
    elsewhere = {**measured, "machine": {**measured["machine"], "kind": "cuda", "device": "Some GPU"}}
    figures.write_text(json.dumps(elsewhere))
    monkeypatch.setattr(timing, "DOCUMENT", document)
    monkeypatch.setattr(phases, "report", None)  # to call it would fail
    phases.main(["--from", str(figures), "--write"])
    assert "on a Some GPU, 1 thread(s)" in document.read_text()
    assert capsys.readouterr().out.rstrip() == tables(elsewhere).rstrip()


def test_the_shipped_document_has_a_place_for_both_kinds_of_device():
    shipped = (Path(__file__).resolve().parents[2] / timing.DOCUMENT).read_text(encoding="utf-8")
    for kind in ("cpu", "cuda"):
        assert shipped.count(f"<!-- phases {kind} begin -->") == shipped.count(f"<!-- phases {kind} end -->") == 1
