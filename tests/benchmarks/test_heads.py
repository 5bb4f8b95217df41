"""The table about initial heads, on a tiny network."""

from pathlib import Path

import pytest
from test_trainer import configuration, images  # noqa: F401

from benchmarks import heads


@pytest.fixture
def tiny(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Tiny configurations in place of those of the quickstart."""
    kinds = {heads.NESTED: "nested_lora", heads.PLAIN: "adaptmlp"}

    def load(path: str, flags: dict[str, object]):
        return configuration(images, tmp_path, ffn_adapter_type=kinds[path], init_lr=0.1, **flags)

    monkeypatch.setattr(heads, "load", load)


def test_a_head_of_the_same_seed_is_no_other_head(tiny: None) -> None:
    nested, plain, given = heads.row(3)
    assert plain == given
    assert all(0 < value < 100 for value in (nested, plain))


def test_the_last_column_starts_from_the_head_of_the_first(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(heads, "average", lambda learner, tasks: seen.append(learner) or 0.0)
    with monkeypatch.context() as patch:
        seeds = iter([3, 4, 5])  # heads that differ
        made = heads.Setup
        patch.setattr(heads, "Setup", lambda config, _, *rest: made(config, next(seeds), *rest))
        heads.row(3)
    first, second, third = (learner.network.fc.weight for learner in seen)
    assert third.equal(first)
    assert not second.equal(first)


def test_the_table_has_a_row_for_each_seed(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "sweeps.md"
    document.write_text("<!-- heads begin -->\n<!-- heads end -->\n")
    monkeypatch.setattr(heads, "DOCUMENT", document)
    monkeypatch.setattr(heads, "row", lambda seed: [seed + 0.001, 1.0, 2.0])
    heads.main(["--seed", "7", "8"])
    assert [line for line in document.read_text().splitlines() if line.startswith(("| 7", "| 8"))] == [
        "| 7 | 7.00 | 1.00 | 2.00 |",
        "| 8 | 8.00 | 1.00 | 2.00 |",
    ]
