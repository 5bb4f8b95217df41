"""Whole runs through the trainer and the evaluator: what lies in the directory, and what may depend on what."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trainer
from eval import evaluate
from main import main
from models.sema import Learner
from tools.verify import verify
from utils.choices import Plugin
from utils.config.identity import idle_keys, result_hash
from utils.config.load import load
from utils.config.schema import Config
from utils.errors import ConfigError, DivergenceError, UserError
from utils.metrics import AccuracyMatrix
from utils.runs.checkpoint import CheckpointError, read_checkpoint, read_meta
from utils.runs.directory import RunDirError
from utils.runs.predictions import read_mistakes, read_predictions

KEYS: dict[str, Any] = {
    "dataset": "npz",
    "backbone_type": "vit_tiny_patch16_224_adapter",
    "pretrained": False,
    "backbone_kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "device": "cpu",
    "num_workers": 0,
    "seed": 4,
    "init_cls": 2,
    "increment": 2,
    "ffn_adapter_type": "nested_lora",
    "nested_lora_rank": 3,
    "nested_lora_update_interval_slow": 2,
    "adapt_start_layer": 1,
    "adapt_end_layer": 2,
    "rd_dim": 4,
    "buffer_size": 30,
    "batch_size": 8,
    "detect_batch_size": 8,
    "func_epoch": 2,
    "rd_epoch": 2,
    "exp_threshold": 1.0,
    "readouts": [],  # these and the states of an epoch take a third of such a run
    "checkpoint_every": 0,
}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes, each of one brightness plus noise: 10 training and 4 test images a class. Only to be read."""
    rng = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 10), ("test", 4)):
        arrays[f"y_{split}"] = np.repeat(np.arange(6), count)
        noise = rng.randint(0, 60, size=(6 * count, 20, 20, 3))
        arrays[f"x_{split}"] = (noise + 30 * arrays[f"y_{split}"][:, None, None, None]).astype(np.uint8)
    file = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(file, **arrays)
    return file


@pytest.fixture(scope="session")
def _trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def train(**keys: Any) -> Path:
        name = repr(sorted(keys.items()))
        if name not in made:
            folder = tmp_path_factory.mktemp("trained")
            trainer.train(configuration(images, folder, **keys), "tiny")
            (made[name],) = folder.iterdir()
        return made[name]

    return train


@pytest.fixture
def finished(_trained: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a run with these keys, which is trained once for all tests."""

    def copy(**keys: Any) -> Path:
        whole = _trained(**keys)
        return shutil.copytree(whole, tmp_path / "finished" / whole.name)

    return copy


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train with these keys; the run's directory."""

    def train(where: str = "logs", **keys: Any) -> Path:
        config = configuration(images, tmp_path / where, **keys)
        trainer.train(config, "tiny")
        (path,) = (path for path in (tmp_path / where).iterdir() if path.name.endswith(f"-s{config.seed[-1]}"))
        return path

    return train


def configuration(images: Path, output_dir: Path, **keys: Any) -> Config:
    return load(None, {**KEYS, "data_root": str(images), "output_dir": str(output_dir), **keys})


def results(path: Path) -> dict[str, Any]:
    values = json.loads((path / "results.json").read_text())
    return {key: value for key, value in values.items() if key != "run"}


def events(path: Path, kind: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in ("", line["kind"])]


def test_a_run_directory_holds_everything_and_its_numbers_agree(finished: Callable[..., Path]) -> None:
    path = finished()
    assert {entry.name for entry in path.iterdir()} == {
        ".lock", "config.json", "environment.json", "log.txt", "metrics.jsonl", "results.json", "data.json",
        "images.tsv.gz", "checkpoints", "predictions", "times.jsonl",
    }  # fmt: skip
    assert {entry.name for entry in (path / "checkpoints").iterdir()} == {f"task_{t}.safetensors" for t in range(3)}
    kept, ignored = json.loads((path / "config.json").read_text()), idle_keys({**KEYS})
    assert kept.keys() == Config.model_fields.keys() - ignored
    assert load(path / "config.json").model_dump(exclude=set(ignored)) == kept
    found = results(path)
    matrix = AccuracyMatrix.from_json(found["accuracy"])
    assert matrix.count == [8, 8, 8]
    assert found["last_acc"] == sum(found["accuracy"]["correct"][-1]) / 24
    assert found["avg_inc_acc"] == pytest.approx(np.mean([sum(row) / (8 * len(row)) for row in matrix.correct]))
    assert [task["task_accuracy"] for task in events(path, "task")] == [
        [hits / 8 for hits in row] for row in matrix.correct
    ]
    for task in found["tasks"]:
        assert task["accuracy"]["top1"] == pytest.approx(100 * matrix.average_accuracy(task["task"]), abs=0.005)
    assert "slow: lr 0.001" in (path / "log.txt").read_text()
    clocks = json.loads((path / "results.json").read_text())["run"]
    pairs = zip(clocks["training_seconds_per_task"], clocks["seconds_per_task"], strict=True)
    assert all(0 < training < whole for training, whole in pairs)


def test_a_key_of_another_adapter_type_leaves_name_and_files_of_a_run_as_they_are(run: Callable[..., Path]) -> None:
    plain, other = (
        run(where, ffn_adapter_type="adaptmlp", max_tasks=1, **keys)
        for where, keys in {"a": {}, "b": {"nested_lora_rank": 4, "nested_lora_slow_update": "zero_grad"}}.items()
    )
    assert other.name == plain.name
    assert events(other) == events(plain)
    groups = [line for line in (plain / "log.txt").read_text().splitlines() if " group " in line]
    assert [line.split(" group ")[1].split(":")[0] for line in groups] == ["other", "descriptor"]
    assert "nested_lora_rank" not in json.loads((other / "config.json").read_text())


def test_a_run_keeps_its_most_confident_mistakes_with_their_images(run: Callable[..., Path], images: Path) -> None:
    path = run(max_tasks=2)
    order = read_meta(path / "checkpoints" / "task_1.safetensors")["class_order"]
    labels, answers, confidence = read_predictions(path / "predictions" / "task_1.npz")
    mistakes = read_mistakes(path)
    assert mistakes
    assert confidence is not None
    wrong = labels != answers["whole"]
    assert len(mistakes) == min(24, wrong.sum())
    assert sorted(confidence[wrong])[::-1][: len(mistakes)] == [confidence[mistake.position] for mistake in mistakes]
    stored = np.load(images)
    for mistake in mistakes:
        row = int(mistake.name.removeprefix("test image "))
        assert stored["y_test"][row] == order[labels[mistake.position]]
        with Image.open(io.BytesIO(mistake.thumbnail)) as shown:
            assert abs(np.asarray(shown).mean() - stored["x_test"][row].mean()) < 3


@pytest.mark.parametrize("kind", ["adaptmlp", "nested_lora"])
def test_readouts_are_in_every_file_of_a_run_and_evaluation_gives_them_again(
    run: Callable[..., Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"ffn_adapter_type": kind, "readouts": ["ncm", "lda", "ranpac"], "max_tasks": 2}
    path, without = run(**keys), run("without", **{**keys, "readouts": []})
    found, plain = results(path), results(without)
    sides = ["", ".adapters_off", *([".slow", ".fast"] if kind == "nested_lora" else [])]
    assert found["readouts"].keys() == {name + side for name in keys["readouts"] for side in sides}
    assert {**found, "readouts": {}} == plain  # nothing else changes
    assert path.name == without.name
    lines = events(path, "readouts")
    for task in range(2):
        labels, answers, _ = read_predictions(path / "predictions" / f"task_{task}.npz")
        for label, matrix in found["readouts"].items():
            right = labels == answers[f"readout.{label}"]
            hits = [int(right[labels // 2 == old].sum()) for old in range(task + 1)]
            assert matrix["correct"][task] == lines[task]["correct"][label] == hits
    for matrix in found["readouts"].values():
        first, last = matrix["correct"]
        assert matrix["last_acc"] == sum(last) / 16
        assert matrix["avg_inc_acc"] == pytest.approx((first[0] / 8 + sum(last) / 16) / 2)
        assert matrix["forgetting"] == (first[0] - last[0]) / 8
    assert not [fault for faults in verify(path).values() for fault in faults]
    best = 100 * found["readouts"]["ncm"]["last_acc"]
    assert re.search(rf"readouts, last \(average\): .*\bncm {best:.2f} \(", (path / "log.txt").read_text())
    config = load(path / "config.json", {"eval": True, "checkpt_path": str(path)})
    capsys.readouterr()
    again = evaluate(config)["readouts"]
    assert again.keys() == {name + side for name in keys["readouts"] for side in sides[:2]}
    assert all(matrix == found["readouts"][label] for label, matrix in again.items())
    assert f"ncm {best:.2f} (" in capsys.readouterr().out


def test_readouts_that_are_added_later_are_left_out_with_a_word(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learn = Learner.incremental_train

    def stop(learner: Learner, data: Any) -> None:
        if learner.cur_task == 0:
            raise KeyboardInterrupt
        learn(learner, data)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "incremental_train", stop)
        with pytest.raises(KeyboardInterrupt):
            run(readouts=["ncm"], max_tasks=2)
    path = run(readouts=["lda", "ncm"], max_tasks=2, auto_resume=True)
    assert results(path)["readouts"].keys() == {"ncm", "ncm.adapters_off", "ncm.slow", "ncm.fast"}
    assert "readouts = lda: left out, as they are not known of the tasks learned" in caplog.text


def test_top5_of_few_classes_is_not_printed(finished: Callable[..., Path]) -> None:
    lines = [line for line in (finished() / "log.txt").read_text().splitlines() if ": top-1 " in line]
    assert ["top-5" in line for line in lines] == [False, False, True]  # of 2, 4 and 6 classes


def test_results_and_checkpoints_name_the_classes_in_the_order_of_the_tasks(finished: Callable[..., Path]) -> None:
    path = finished()
    order = read_meta(path / "checkpoints" / "task_0.safetensors")["class_order"]
    names = [str(label) for label in order]
    assert results(path)["class_names"] == names
    assert read_meta(path / "checkpoints" / "task_2.safetensors")["class_names"] == names


def test_epochs_report_loss_accuracy_rates_and_the_steps_of_slow(finished: Callable[..., Path]) -> None:
    first = [event for event in events(finished(max_tasks=1), "epoch") if event["phase"] == "func"]
    assert [event["lr"] for event in first] == [
        {"slow": 0.001, "fast": 0.01, "other": 0.005},
        pytest.approx({"slow": 0.0005, "fast": 0.005, "other": 0.0025}),  # half a cosine
    ]
    assert [event["moved"] for event in first] == [{"slow": [2]}, {"slow": [4, 6]}]  # 20 images: 3 steps an epoch
    assert all(0 <= event["train_accuracy"] <= 100 and event["loss"] > 0 for event in first)


@pytest.mark.parametrize(
    "keys",
    [
        {"ffn_adapter_type": "adaptmlp"},
        {
            "nested_lora_use_consolidation": True,
            "adapter_lifetime": "continual",
            "eval_every": 1,
            "readouts": ["ncm"],
        },
    ],
)
def test_the_same_seed_gives_the_same_run_whatever_the_workers(run: Callable[..., Path], keys: dict[str, Any]) -> None:
    once, again, workers = run("a", **keys), run("b", **keys), run("c", num_workers=2, **keys)
    assert results(once) == results(again) == results(workers)
    assert events(once) == events(again) == events(workers)
    other = run("d", seed=5, **keys)
    assert events(once) != events(other)


def test_scoring_the_test_set_in_between_changes_nothing_else(
    finished: Callable[..., Path], run: Callable[..., Path]
) -> None:
    quiet, scored = finished(), run("b", eval_every=1)
    assert not events(quiet, "eval")
    assert events(scored, "eval")
    assert results(quiet) == results(scored)


@pytest.mark.parametrize(
    "keys",
    [
        {"ffn_adapter_type": "adaptmlp"},
        {"nested_lora_use_consolidation": True, "nested_lora_consolidation_mode": "function"},
        {"model_name": "ranpac"},
    ],
)
def test_eval_reproduces_the_trainer_s_numbers_from_a_checkpoint_alone(
    run: Callable[..., Path], images: Path, tmp_path: Path, keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**keys, "readouts": ["ncm"]}
    path = run(**keys)
    found = results(path)
    for task in range(3):
        checkpoint = path / "checkpoints" / f"task_{task}.safetensors"
        again = evaluate(configuration(images, tmp_path / "none", eval=True, checkpt_path=str(checkpoint), **keys))
        assert again.pop("accuracy") == found["tasks"][task]["accuracy"]
        assert again.pop("adapters_off") == found["tasks"][task]["adapters_off"]
    read = again.pop("readouts")
    assert read == {label: found["readouts"][label] for label in ("ncm", "ncm.adapters_off")}
    assert again == {key: found[key] for key in again}
    out = capsys.readouterr().out
    assert f"last {100 * found['last_acc']:.2f}" in out
    assert ("with all adapters off top-1 " in out) == (keys.get("model_name") != "ranpac")


def test_a_checkpoint_of_another_class_order_or_adapter_is_refused(
    finished: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    checkpoint = finished() / "checkpoints" / "task_0.safetensors"
    keys = {"eval": True, "checkpt_path": str(checkpoint)}
    with pytest.raises(CheckpointError, match=r"nested_lora adapters.*adaptmlp"):
        evaluate(configuration(images, tmp_path, ffn_adapter_type="adaptmlp", **keys))
    with pytest.raises(CheckpointError, match="another class order"):
        evaluate(configuration(images, tmp_path, shuffle=False, **keys))


def test_listed_tasks_are_those_of_every_file_and_of_an_evaluation(
    run: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    path = run(tasks=[[3, 1], ["5"], [0, 2]], func_epoch=1, init_cls=1, nested_lora_update_interval_slow=1)
    found = results(path)
    assert found["class_names"] == ["3", "1", "5", "0", "2", "4"]
    assert (found["accuracy"]["task_sizes"], found["accuracy"]["count"]) == ([2, 1, 2], [8, 4, 8])
    kept = json.loads((path / "config.json").read_text())
    assert kept["tasks"] == [[3, 1], ["5"], [0, 2]]
    assert not kept.keys() & {"shuffle", "class_order_seed", "init_cls", "increment"}
    checkpoint = path / "checkpoints" / "task_2.safetensors"
    assert read_meta(checkpoint)["class_order"] == [3, 1, 5, 0, 2, 4]
    assert main(["--checkpt_path", str(path), "--eval"]) == 0
    with pytest.raises(CheckpointError, match="another class order"):
        evaluate(configuration(images, tmp_path, tasks=[[1, 3]], eval=True, checkpt_path=str(checkpoint)))


def rows_of_head(path: Path) -> dict[str, list[float]]:
    """The head's last weights and bias by class name."""
    tensors, meta = read_checkpoint(max((path / "checkpoints").iterdir()))
    rows = torch.cat([tensors["fc.weight"], tensors["fc.bias"][:, None]], dim=1)
    return dict(zip(meta["class_names"], rows.tolist(), strict=True))


def test_a_run_without_the_transient_task_differs_only_by_what_that_task_did(run: Callable[..., Path]) -> None:
    """Adapters that do not learn after task 0, and no decay: the task can have changed nothing of the other classes."""
    keys = {"transient": 1, "exp_threshold": 1e9, "weight_decay": 0.0}
    whole, without = run("with", **keys), run("without", **keys, leave_out_transient=True)
    ours, theirs = results(whole)["accuracy"], results(without)["accuracy"]
    assert (ours["transient"], theirs.get("transient")) == ([1], None)
    assert (ours["task_sizes"], theirs["task_sizes"]) == ([2, 2, 2], [2, 2])
    assert ours["correct"][0] == theirs["correct"][0]
    with_rows, rows = rows_of_head(whole), rows_of_head(without)
    gone = results(whole)["class_names"][2:4]
    assert results(without)["class_names"][4:] == gone
    same = {name for name in rows if rows[name] == pytest.approx(with_rows[name], rel=1e-4, abs=1e-6)}
    assert same == set(rows) - set(gone)
    assert [fault for path in (whole, without) for faults in verify(path).values() for fault in faults] == []


def test_averages_are_over_the_core_classes_and_survive_resume_and_evaluation(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(transient=[1])
    found, rows = results(path), results(path)["accuracy"]["correct"]
    assert found["average_accuracy"] == [rows[0][0] / 8, rows[1][0] / 8, (rows[2][0] + rows[2][2]) / 16]
    assert (found["transient_learned"], found["transient_left"]) == ([rows[1][1] / 8], [rows[2][1] / 8])
    assert all(matrix["transient"] == [1] for matrix in found["branches"].values())
    capsys.readouterr()
    assert main(["--checkpt_path", str(path), "--eval"]) == 0
    out = capsys.readouterr().out
    assert f"last {100 * found['last_acc']:.2f}" in out
    assert f"transient task 1: {100 * rows[1][1] / 8:.2f} after learning it, {100 * rows[2][1] / 8:.2f} now" in out


def test_the_class_order_can_have_a_seed_of_its_own(run: Callable[..., Path]) -> None:
    def order(path: Path) -> list[int]:
        return read_meta(path / "checkpoints" / "task_0.safetensors")["class_order"]

    short = {"max_tasks": 1, "func_epoch": 1, "rd_epoch": 0, "nested_lora_update_interval_slow": 1}
    plain, other = run("plain", **short), run("other", seed=5, **short)
    kept = run("kept", seed=5, class_order_seed=4, **short)
    assert order(plain) == order(kept) != order(other)
    assert events(plain, "epoch") != events(kept, "epoch")


def test_equal_runs_are_bitwise_equal_and_deterministic_algorithms_change_nothing_on_the_cpu(
    finished: Callable[..., Path],
    run: Callable[..., Path],
) -> None:
    once, again = finished(), run("b", deterministic=True)
    for task in range(3):
        name = f"checkpoints/task_{task}.safetensors"
        one, other = read_checkpoint(once / name)[0], read_checkpoint(again / name)[0]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_results_say_how_to_make_the_run_again(finished: Callable[..., Path]) -> None:
    path = finished(max_tasks=1)
    begun = json.loads((path / "environment.json").read_text())
    line = json.loads((path / "results.json").read_text())["run"]["reproduce"]
    assert line.startswith(f"{begun['command']}  # at commit {begun['commit']}")
    assert begun["lock"] in line


def test_every_seed_gets_a_directory_and_a_log_of_its_own(run: Callable[..., Path]) -> None:
    path = run(seed=[1, 2], max_tasks=1)
    logs = {entry.name[-2:]: (entry / "log.txt").read_text() for entry in path.parent.iterdir()}
    assert logs.keys() == {"s1", "s2"}
    assert all(log.count("task 0 func epoch 1") == 1 for log in logs.values())


def test_a_finished_run_is_kept_unless_overwritten(run: Callable[..., Path]) -> None:
    path = run(max_tasks=1)
    before = (path / "results.json").read_bytes()
    with pytest.raises(RunDirError, match="--overwrite"):
        run(max_tasks=1)
    assert (path / "results.json").read_bytes() == before
    run(max_tasks=1, overwrite=True)


def test_an_interval_no_task_can_reach_is_refused_before_anything_is_written(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is 7, but a func phase of task 0 has 6 optimizer steps"):
        run(nested_lora_update_interval_slow=7)
    assert not (tmp_path / "logs").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(images, run, tmp_path: Path, capsys) -> None:
    trainer.train(configuration(images, tmp_path / "dry", seed=[4, 5], dry_run=True), "tiny")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("-")[::2] for line in lines] == [
        (f"would start: {tmp_path / 'dry'}/tiny-{result_hash(configuration(images, tmp_path))}", f"s{seed}")
        for seed in (4, 5)
    ]
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"nested_lora_update_interval_slow": 7}, "slow would never move"),
        ({"backbone_checkpoint": "none.pth"}, "none.pth"),
        ({"init_cls": 9}, "the data set has 6 classes"),
        ({"class_order": [0, 1, 2, 3, 4, 4]}, "listed twice"),
        ({"transient": [1, 3]}, "transient = 3: there are 3 tasks, counted from 0"),
        ({"class_order": [5, 4]}, "4 of the 6 classes are missing"),
        ({"tasks": [[0], ["6"]]}, 'tasks: "6": the data set has no such class'),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(images, tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    for dry_run in (True, False):
        with pytest.raises(UserError, match=words):
            trainer.train(configuration(images, tmp_path / "dry", dry_run=dry_run, **keys), "tiny")
    assert not (tmp_path / "dry").exists()


PRESERVING = {  # consolidates, but refills no records
    "nested_lora_use_consolidation": True,
    "nested_lora_consolidation_mode": "function",
    "nested_lora_consolidation_alpha": 1.0,
}


@pytest.mark.parametrize(
    ("keys", "least"),
    [
        ({"rd_epoch": 1}, "a descriptor records 2 losses of them (1 passes)"),
        ({"rd_epoch": 0}, "records 0 losses of them (0 passes), and z-scores are 0 with fewer than 3"),
        ({"rd_epoch": 9, "nested_lora_use_consolidation": True}, "expected at least 3 images in each task"),
        ({"rd_epoch": 9, **PRESERVING}, ""),
        ({"rd_epoch": 1, **PRESERVING}, "a descriptor records 2 losses of them (1 passes)"),
        ({"rd_epoch": 2}, ""),
        ({"rd_epoch": 1, "max_tasks": 1}, ""),
    ],
)
def test_a_task_of_too_few_images_for_a_later_expansion_is_told(tmp_path: Path, caplog, keys, least: str) -> None:
    pixels = np.arange(3 * 64 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    labels, names = np.arange(3), np.array(["ant", "bee", "cat"])
    file = tmp_path / "few.npz"
    np.savez(file, x_train=pixels, y_train=labels, x_test=pixels + 1, y_test=labels, class_names=names)
    short = {"func_epoch": 1, "nested_lora_update_interval_slow": 1, "shuffle": False, "init_cls": 2, "increment": 1}
    trainer.train(configuration(file, tmp_path / "logs", **short, **{"max_tasks": 2, **keys}), "few")
    told = [record.getMessage() for record in caplog.records if "z-scores" in record.getMessage()]
    assert [text.split(" has ")[0] for text in told] == (["task 0 (ant, bee)"] if least else [])
    assert least in "".join(told)


def test_the_log_tells_after_each_task_how_much_is_done(finished: Callable[..., Path]) -> None:
    log = (finished() / "log.txt").read_text()
    assert re.findall(r"(\d+) % of the run is done, about \d+ s left", log) == ["33", "67"]


def test_a_full_disk_ends_the_run_and_leaves_what_was_computed(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Learner.save_checkpoint

    def no_space_in_task_1(self: Learner, path: Path, meta: dict[str, Any]) -> None:
        if self.cur_task == 1:
            raise OSError(28, "No space left on device", str(path))
        save(self, path, meta)

    monkeypatch.setattr(Learner, "save_checkpoint", no_space_in_task_1)
    with pytest.raises(OSError, match="No space left"):
        run()
    (path,) = (tmp_path / "logs").iterdir()
    assert (path / "checkpoints" / "task_0.safetensors").exists()
    assert len(events(path, "task")) == 2
    assert "No space left" in (path / "log.txt").read_text()
    assert not (path / "results.json").exists()


@pytest.mark.parametrize("adds", [{}, {"ffn_adapter_type": ["mine"]}])
def test_the_record_names_the_plug_ins(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, adds: dict[str, list[str]]
) -> None:
    loaded = [Plugin(Path("/a/mine.py"), "mine.py", "ab" * 32, adds)] if adds else []
    monkeypatch.setattr(trainer, "PLUGINS", loaded)
    path = run(max_tasks=1)
    expected = [{"file": "mine.py", "sha256": "ab" * 32, "adds": adds}] if adds else None
    assert json.loads((path / "environment.json").read_text()).get("plugins") == expected
    assert read_meta(path / "checkpoints" / "task_0.safetensors").get("plugins") == expected


def test_the_other_seeds_are_trained_when_one_diverges(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    to_end = trainer.Run.to_end

    def failing(own: trainer.Run) -> dict[str, Any]:
        if own.config.seed == [1]:
            raise DivergenceError("seed 1 diverged")
        return to_end(own)

    monkeypatch.setattr(trainer.Run, "to_end", failing)
    with pytest.raises(DivergenceError, match="seed 1 diverged"):
        run("logs", seed=[1, 2], max_tasks=1)
    assert results(run("logs", seed=[2], max_tasks=1, auto_resume=True))["last_acc"] > 0


def test_views_that_do_not_fit_are_refused_before_a_run_begins(images: Path, tmp_path: Path) -> None:
    config = configuration(images, tmp_path / "logs", views=2, views_gib=0.0)
    with pytest.raises(ConfigError, match=r"views: a task keeps .* KiB, more than views_gib \(0, in memory\)"):
        trainer.train(config, "tiny")
    assert not list(tmp_path.glob("logs/*"))


def test_a_run_says_what_its_views_take_and_frees_them(
    run: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        path = run("views", views=2, views_gib=0.0, views_disk_gib=4.0)
    assert re.search(rf"views: from task 1 on, at most \S+ KiB are kept in {path}", caplog.text)
    assert not list(path.glob("views-*"))
