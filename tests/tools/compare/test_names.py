from pathlib import Path
from typing import Any

import pytest
from finished_runs import PilotRun, write_run

from tools.compare.comparison import compare


def names(folder: Path, *changes: dict[str, Any], labels: str = "") -> list[str]:
    """The names of configurations with these changes, of one label or of these."""
    label = labels or "x" * len(changes)
    paths = [write_run(folder, letter, 1, [[90]], **keys) for letter, keys in zip(label, changes, strict=True)]
    return [group.name for group in compare(paths).groups]


NESTED = {"ffn_adapter_type": "nested_lora"}
RANK, INTERVAL = "nested_lora_rank", "nested_lora_update_interval_slow"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            [{**NESTED, RANK: 8, INTERVAL: 5}, {**NESTED, RANK: 4, INTERVAL: 2}],
            ["rank 8, interval 5", "rank 4, interval 2"],
        ),
        ([NESTED, {"ffn_adapter_type": "adaptmlp"}], ["nested_lora", "adaptmlp"]),
        ([NESTED, {**NESTED, INTERVAL: 5}], ["interval 1", "interval 5"]),
        ([{}, {**NESTED, RANK: 8}, {**NESTED, RANK: 4}], ["adaptmlp", "nested_lora, rank 8", "nested_lora, rank 4"]),
        ([{"ffn_num": 8}, {"ffn_num": 16}], ["bottleneck 8", "bottleneck 16"]),
        (
            [{**NESTED, "nested_lora_use_consolidation": True}, NESTED],
            ["consolidation", "no consolidation"],
        ),
        ([{"max_tasks": 2}, {}], ["max tasks 2", "no max tasks"]),
        (
            [NESTED, {**NESTED, "nested_lora_train": ["fast"]}],
            ["all branches trained", 'trained branches ["fast"]'],
        ),
        (
            [{"backbone_kwargs": {"img_size": 48}}, {"backbone_kwargs": {"a" * 80: 1}}],
            ['backbone kwargs {"img_size": 48}', f'backbone kwargs {{"{"a" * 37}…'],
        ),
    ],
)
def test_configurations_are_called_by_what_differs(tmp_path, changes, expected):
    assert names(tmp_path, *changes) == expected


def test_labels_that_differ_are_names_and_one_that_several_share_is_a_prefix(tmp_path):
    changes = [{"rd_dim": 1}, {"rd_dim": 2, "batch_size": 9}, {"rd_dim": 3}]
    assert names(tmp_path, *changes, labels="abc") == ["a", "b", "c"]
    assert names(tmp_path / "x", *changes, labels="aba") == ["a: rd dim 1", "b", "a: rd dim 3"]


def test_of_many_keys_only_those_are_named_that_tell_configurations_apart(tmp_path):
    changes = [
        {**NESTED, RANK: rank, INTERVAL: k, "func_epoch": rank, "rd_epoch": k, "buffer_size": rank + k}
        for rank in (4, 8)
        for k in (1, 2)
    ]
    found = names(tmp_path, *changes)
    assert len(set(found)) == 4
    assert all(name.count(",") == 1 for name in found)


def test_names_that_would_be_equal_are_numbered(tmp_path):
    long = "a" * 60
    changes = [{"backbone_type": f"{long}{number}"} for number in (1, 2)]
    first, second = names(tmp_path, *changes)
    assert second == f"{first} (2)"


def test_logs_of_one_name_are_called_by_what_they_state(tmp_path):
    paths = [tmp_path / str(number) / "same.log" for number in (1, 2)]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_text(PilotRun([[400], [350, 380]], [5, 5], dataset="cub", seed=1, lr=number + 0.5).text())
    assert [group.name for group in compare(paths).groups] == ["lr 0.5", "lr 1.5"]
