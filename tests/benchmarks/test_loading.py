"""The benchmark of loading compares passes over the same images that differ in what it says, and nothing else."""

from pathlib import Path

import pytest
import torch

from benchmarks import loading
from benchmarks.loading import DOCUMENT, loader, noise, photographs, rates, row
from tools.generated import replace_part
from utils.data.decoded import DecodedImages

CPU = torch.device("cpu")


def test_ways_take_turns_each_pass_is_new_and_the_first_does_not_count(monkeypatch: pytest.MonkeyPatch):
    ways = [loader(noise(8, 4, 4), 6, CPU, on_device, decoded_gib=0.0) for on_device in (False, True)]
    turns = []

    def timed(way: object, number: int, _: torch.device) -> float:
        turns.append((ways.index(way), number))
        return [0.1, 4.0, 2.0][number] / (1 + ways.index(way))

    monkeypatch.setattr(loading, "pass_seconds", timed)
    assert rates(ways, CPU, repeats=2) == [4.0, 8.0]
    assert turns == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert row([1200.0, 3000.0]) == ["1,200", "3,000", "2.50"]


def test_both_sides_load_the_same_images(tmp_path: Path):
    files = photographs(tmp_path, 3)
    ways = [loader(files, 32, CPU, on_device, kept) for on_device in (False, True) for kept in (0.0, 1.0)]
    assert [isinstance(way.dataset.images, DecodedImages) for way in ways] == [False, True, False, True]
    batches = [next(way.epoch("benchmark", 0, batch_size=3, shuffle=True)) for way in ways]
    for indices, images, _ in batches[1:]:
        assert torch.equal(indices, batches[0][0])
        torch.testing.assert_close(images, batches[0][1], rtol=0, atol=1.01 / 255)
    assert torch.equal(batches[0][1], batches[1][1])
    assert not torch.equal(batches[0][1], batches[2][1])


def test_the_document_has_a_place_for_each_table(tmp_path: Path):
    copy = tmp_path / "loading.md"
    copy.write_text((Path(__file__).parents[2] / DOCUMENT).read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("augmentation", "decoding"):
        replace_part(copy, name, "| measured |")
    assert copy.read_text(encoding="utf-8").count("| measured |") == 2
