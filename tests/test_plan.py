"""`--plan`: what it says of a tiny run is what the run then does, and it writes nothing."""

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import configuration, events, images  # noqa: F401

import trainer
from models import Hooks, Setup, get_model
from models.estimate import RunWork, estimate
from models.evaluation import Evaluator
from models.losses import FuncLoss, RdLoss
from models.measurement import Measurement, saved_bytes
from models.views import KeptViews
from models.workload import (
    AGAIN,
    EVALUATION,
    FORWARD,
    FUNC,
    KEPT,
    MAKE_FEATURES,
    MAKE_MEANS,
    MAKE_VIEW,
    RD,
    Counts,
)
from utils.config.identity import without_idle_keys
from utils.config.schema import Config
from utils.data.sources import load_dataset
from utils.data.validation import with_validation
from utils.errors import UserError
from utils.inc_net import SEMAVitNet
from utils.runs.directory import RunPlan
from utils.runs.estimate import read_totals

CONSOLIDATES = {"nested_lora_use_consolidation": True}
TOKENS = 5  # of the tiny network
CASES: dict[str, dict[str, Any]] = {
    "nested": {"eval_batch_size": 4, "readouts": ["ncm"]},
    "no expansion": {"exp_threshold": 1000.0, "eval_batch_size": 3},
    "every layer": {"exp_threshold": 0.0, "branch_eval": False},
    "evaluations": {"eval_every": 1, "eval_batch_size": 5, "exp_threshold": 0.0, **CONSOLIDATES},
    "no cache": {"eval_cache_gib": 0.0, "eval_every": 2},
    "continual": {"adapter_lifetime": "continual", "readouts": ["ncm"], **CONSOLIDATES},
    "validation": {"val_fraction": 0.2, "ffn_adapter_type": "adaptmlp"},
    "on validation": {"val_fraction": 0.2, "evaluate_on": "val", "max_tasks": 2},
    "rd views": {"rd_views": 1, "exp_threshold": 0.0},
    "views": {"views": 2, "rd_epoch": 3, "exp_threshold": 0.0},
    "views, no expansion": {"views": 3, "exp_threshold": 1000.0},
    "views, continual": {
        "views": 1,
        "adapter_lifetime": "continual",
        "nested_lora_continual_layers": "expandable",
        "exp_threshold": 1000.0,
    },
    "aligned": {"classifier_alignment": True, "classifier_alignment_epochs": 1, "exp_threshold": 1000.0},
    "one task": {"max_tasks": 1, "rd_epoch": 0},
    "finetune": {"model_name": "finetune"},
    "linear, views": {"model_name": "linear", "views": 3},
    "linear": {"model_name": "linear", "eval_every": 1, "readouts": ["lda"]},
    "joint": {"model_name": "joint"},
    "simplecil": {"model_name": "simplecil"},
    "ranpac": {"model_name": "ranpac", "first_session_adaptation": True},
}


def planned(config: Config) -> RunWork:
    """The measured work of a configuration's first seed."""
    config = without_idle_keys(config)
    data = with_validation(load_dataset(config.dataset, Path(config.data_root)), config.val_fraction, config.seed[0])
    tasks = trainer.make_tasks(config, data)
    setup = Setup(config, config.seed[0], torch.device("cpu"), tasks.nb_classes)
    return RunWork(Measurement(get_model(setup, Hooks()), tasks), tasks)  # type: ignore[arg-type]


def counting(patch: pytest.MonkeyPatch) -> Counts:
    """Count the images that go through the network in training, evaluations, and for what is kept."""
    seen: Counts = Counter()

    def spy(owner: type, name: str, count: Callable[..., tuple[str, int]]) -> None:
        original = getattr(owner, name)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            kind, number = count(self, *args)
            seen[kind] += number
            return original(self, *args, **kwargs)

        patch.setattr(owner, name, counted)

    spy(FuncLoss, "__call__", lambda self, batch: (FUNC, len(batch[0])))
    spy(RdLoss, "__call__", lambda self, batch: (KEPT if self.kept else RD, len(batch[0])))
    spy(Evaluator, "_half", lambda self, x, layer: (EVALUATION, len(x)))
    spy(Evaluator, "score", lambda self, x, labels, classes, settled: (AGAIN, len(x)))
    made = {2: lambda _: MAKE_FEATURES, 3: lambda x: MAKE_VIEW if x.shape[1] == TOKENS else MAKE_MEANS}
    spy(KeptViews, "_keep", lambda self, view, indices, x, labels: (made[x.dim()](x), len(x)))
    return seen


def expected_of(counts: Counts) -> Counts:
    """The same numbers from the counts of a plan. A score is of new images or of those kept, but never of features."""
    merged: Counts = Counter()
    for kind, number in counts.items():
        name = FUNC if kind.startswith(FUNC) else kind
        name = KEPT if kind == RD + KEPT else RD if kind.startswith(RD) else name
        name = next((made for made in (MAKE_MEANS, MAKE_FEATURES) if kind.startswith(made)), name)
        merged[EVALUATION if name == FORWARD else name] += number
    return merged


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every work is timed once, on one image."""
    monkeypatch.setattr("models.measurement.SECONDS", 0.001)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_plan_counts_the_images_and_steps_of_the_run(images, tmp_path: Path, name: str) -> None:  # noqa: F811
    config = configuration(images, tmp_path / "logs", **CASES[name])
    run = planned(config)
    work = run.work
    assert all(0 < seconds < 60 for seconds in run.seconds())  # every kind of work is measured
    with pytest.MonkeyPatch.context() as patch:
        seen = counting(patch)
        trainer.train(config, "tiny")
    (path,) = (tmp_path / "logs").iterdir()
    phases = events(path, "phase")
    cycles = [
        max([phase["cycle"] for phase in phases if phase["task"] == task], default=0) for task in range(len(work.train))
    ]
    wanted = expected_of(sum(work.counts(cycles), Counter()))
    for kind in (FUNC, RD, KEPT, EVALUATION, MAKE_VIEW, MAKE_FEATURES, MAKE_MEANS):
        assert (kind, seen[kind]) == (kind, wanted[kind])
    for task, number in enumerate(cycles):
        epochs = Counter(epoch["phase"] for epoch in events(path, "epoch") if epoch["task"] == task)
        batches = -(-work.train[task] // config.batch_size)
        assert work.steps(task, number) == {kind: epochs[kind] * batches for kind in ("func", "rd")}
    low, high = (work.cycles(most) for most in (False, True))
    assert all(a <= b <= c for a, b, c in zip(low, cycles, high, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "continual", "ranpac"])
def test_a_plan_foresees_the_size_of_the_run_directory(images, tmp_path: Path, name: str) -> None:  # noqa: F811
    wide = {"img_size": 16, "patch_size": 8, "embed_dim": 192, "depth": 3, "num_heads": 2}  # its checkpoints weigh most
    config = configuration(images, tmp_path / "logs", **{**CASES[name], "backbone_kwargs": wide, "readouts": ["ncm"]})
    low, high = (planned(config).disk(most) for most in (False, True))
    trainer.train(config, "tiny")
    size = sum(file.stat().st_size for file in (tmp_path / "logs").rglob("*") if file.is_file())
    assert low / 1.2 <= size <= 1.2 * high


def test_a_plan_says_what_would_be_done_and_writes_nothing(images, tmp_path: Path, capsys) -> None:  # noqa: F811
    config = configuration(images, tmp_path / "none", seed=[4, 5], plan=True)
    trainer.train(config, "tiny")
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:2] == ["would", "start:"]
    # 20 images of a task: 3 steps of 8 an epoch, 2 epochs; 2 layers can expand
    assert lines[2][:3] == ["0", "20", "8"]
    assert lines[2][3:5] == ["6", "6"]
    assert lines[3][:9] == ["1", "20", "16", "6", "to", "12", "0", "to", "12"]
    assert lines[5][:9] == ["all", "60", "48", "18", "to", "30", "6", "to", "30"]
    totals = read_totals(text)
    assert 2**20 < totals.memory.low < 2**33
    assert lines[-1][:2] == ["2", "seeds,"]
    assert not (tmp_path / "none").exists()


def test_a_plan_says_that_a_run_to_resume_is_counted_as_a_whole(images, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: F811
    words = "a run that is resumed is counted as a whole"
    for resumes in (False, True):
        monkeypatch.setattr(trainer, "plan_runs", lambda *_, resumes=resumes: [RunPlan(4, tmp_path, resumes)])
        monkeypatch.setattr(trainer, "refuse_other_data", lambda *_: None)
        trainer.train(configuration(images, tmp_path, seed=[4], plan=True), "tiny")
        assert (words in capsys.readouterr().out) == resumes


def test_views_that_will_be_on_disk_are_foreseen_there_and_not_written(images, tmp_path: Path, capsys) -> None:  # noqa: F811
    keys = {"views": 2, "views_gib": 0.0}
    trainer.train(configuration(images, tmp_path / "none", plan=True, views_disk_gib=1.0, **keys), "tiny")
    assert f"kept in {tmp_path / 'none'}/tiny-" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    on_disk = configuration(images, tmp_path / "none", views_disk_gib=1.0, **keys)
    in_memory = configuration(images, tmp_path / "none", views=2)
    # 2 views of 20 images: inputs of 5 tokens, and features, of width 32 in float32
    assert planned(on_disk).before_the_end() - planned(in_memory).before_the_end() == 2 * 20 * (5 + 1) * 32 * 4


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"nested_lora_update_interval_slow": 7}, "slow would never move"),
        ({"backbone_checkpoint": "none.pth"}, "none.pth"),
        ({"init_cls": 9}, "the data set has 6 classes"),
        ({"views": 2, "views_gib": 0.0}, "raise one of them"),
        ({"seed": [4, 5], "tasks": [[0], ["6"]]}, 'tasks: "6": the data set has no such class'),
    ],
)
def test_a_plan_refuses_what_the_run_would_refuse(images, tmp_path: Path, keys: dict[str, Any], words: str) -> None:  # noqa: F811
    for plan in (True, False):
        with pytest.raises(UserError, match=words):
            trainer.train(configuration(images, tmp_path / "none", plan=plan, **keys), "tiny")
    assert not (tmp_path / "none").exists()


def test_a_plan_is_not_given_with_another_command(images, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="give only one of eval, predict, export, dry_run and plan"):
        configuration(images, tmp_path, plan=True, dry_run=True)


def test_activations_are_what_autograd_keeps() -> None:
    layer, x = torch.nn.Linear(3, 5), torch.rand(7, 3)
    assert saved_bytes(lambda: layer(x).relu().sum()) == 4 * (7 * 3 + 7 * 5)  # inputs of the product, outputs of relu


def test_a_learner_that_counts_nothing_of_ours_is_refused(config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="expected a models"):
        estimate(object(), [])  # type: ignore[arg-type]


def test_ctrl_c_ends_a_plan(images, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: F811
    from main import main

    monkeypatch.setattr(SEMAVitNet, "token_means", lambda *_: signal.raise_signal(signal.SIGINT))
    flags = {"dataset": "npz", "data_root": images, "output_dir": tmp_path / "none", "plan": "true"}
    tiny = {"backbone_type": "vit_tiny_patch16_224_adapter", "pretrained": "false", "num_workers": 0, "device": "cpu"}
    tiny |= {"init_cls": 2, "increment": 2, "adapt_start_layer": 1, "adapt_end_layer": 2}
    shape = ["--backbone_kwargs", '{"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}']
    assert main([*(f"--{key}={value}" for key, value in {**flags, **tiny}.items()), *shape]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
