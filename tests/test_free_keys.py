"""Keys that cannot change a result may change on resume: the run ends as it would have, and every tool accepts it."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_resume import Killed
from test_trainer import _trained, configuration, finished, images, results  # noqa: F401

import trainer
from main import main
from tools.compare.comparison import compare
from tools.verify import verify
from utils.config.schema import schemas
from utils.stopping import StateKeeper

FREE: dict[str, dict[str, tuple[Any, Any]]] = {  # two values of each key
    "branches": {"branch_eval": (True, False), "readouts": (["ncm", "lda"], ["lda"])},
    "evaluation": {
        "eval_every": (0, 1),
        "telemetry_every": (0, 2),
        "views_gib": (4.0, 1.0),
        "views_disk_gib": (0.0, 1.0),
        "eval_cache_gib": (4.0, 0.0),
        "eval_cache_on": ("memory", "disk"),
        "grad_checkpointing": (False, True),
        "image_cache_gib": (2.0, 0.0),
    },
    "run": {
        "num_workers": (0, 2),
        "accept_changed_data": (False, True),
        "top_k": (5, 3),
        "predict_format": ("table", "csv"),
        "export_form": ("network", "merged"),
        "num_threads": (1, 2),
        "device": ("cpu", "auto"),
        "deterministic": (False, True),
        "on_nan": ("stop", "skip"),
        "checkpoint_every": (1, 0),
        "output_dir": ("logs", "elsewhere"),
        "overwrite": (False, True),
        "auto_resume": (False, True),
        "tensorboard": (False, True),
        "wandb": (None, "project"),
        "checkpt_path": (None, "task_0.safetensors"),
        "prefix": ("reproduce", "mine"),
        "memory_size": (0, 5),
        "memory_per_class": (0, 5),
        "fixed_memory": (False, True),
        "vpt_type": ("deep", None),
        "prompt_token_num": (5, 0),
    },
}
ELSEWHERE = {  # and why they have no place here
    "seed": "identifies the run, beside its configuration",
    "resume": "names the run to resume",
    **dict.fromkeys(("eval", "predict", "export", "dry_run", "plan"), "trains nothing"),
    "data_root": "is moved in test_other_images",
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One without a GPU, on which W&B is installed."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # put back after it was set
    wandb = ModuleType("wandb")
    vars(wandb).update(init=lambda **_: SimpleNamespace(finish=lambda **_: None), Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def begun(images: Path, tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """A run that was killed after its first task."""

    def begin(**keys: Any) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            keep = StateKeeper.__call__

            def ending(keeper: StateKeeper, point: str) -> None:
                keep(keeper, point)
                if point == "task":
                    raise Killed

            patch.setattr(StateKeeper, "__call__", ending)
            with pytest.raises(Killed):
                trainer.train(configuration(images, **{"output_dir": tmp_path / "begun", **keys}), "tiny")
        (path,) = (tmp_path / keys.get("output_dir", "begun")).iterdir()
        return path

    return begin


def test_every_free_key_is_walked() -> None:
    free = {key for key, schema in schemas().items() if not schema["changes_results"]}
    assert set(ELSEWHERE) | {key for keys in FREE.values() for key in keys} == free


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("group", FREE)
def test_a_run_resumed_with_other_values_ends_as_if_nothing_had_changed(
    finished: Callable[..., Path],  # noqa: F811
    begun: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    group: str,
    turned: bool,
) -> None:
    first, then = ({key: values[side] for key, values in FREE[group].items()} for side in (turned, not turned))
    keys = {"nested_lora_use_consolidation": True, "eval_batch_size": 4}
    whole = finished(**keys)
    monkeypatch.chdir(tmp_path)  # where the folders of output_dir would be
    path = begun(**keys, **first)
    texts = {key: value if isinstance(value, list) else [json.dumps(value).strip('"')] for key, value in then.items()}
    flags = [text for key, values in texts.items() for text in (f"--{key}", *values)]
    assert main(["--resume", str(path), *flags]) == 0, capsys.readouterr().err
    assert [fault for faults in verify(path).values() for fault in faults] == []
    for key in ("accuracy", "tasks"):
        assert results(path)[key] == results(whole)[key]
    (reason,) = compare([path, whole]).left_out
    assert reason.endswith("it has the same accuracies")


@pytest.mark.parametrize("first", [True, False])
def test_branches_that_were_not_scored_after_every_task_are_in_the_events_alone(
    begun: Callable[..., Path], caplog: pytest.LogCaptureFixture, first: bool
) -> None:
    path = begun(branch_eval=first)
    assert main(["--resume", str(path), "--branch_eval", str(not first).lower()]) == 0
    assert results(path)["branches"] == {}
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines if line["kind"] == "branches"] == ([0] if first else [1, 2])
    assert "branch_eval was changed within the run" in caplog.text
