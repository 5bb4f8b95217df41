import json
import math
import os
from pathlib import Path

import pytest
from finished_runs import write_run

from tools.finished.reader import missing_path, read_run
from utils.config.identity import counted_digest
from utils.errors import UserError

CORRECT = [[90], [80, 70], [60, 65, 75]]


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path, "nested", 7, CORRECT, batch_size=64)


def change(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_finished_run_is_read_whole(run):
    found = read_run(run)
    assert (found.path, found.label, found.seed, found.seconds, found.notes) == (run, "nested", 7, 60.0, ())
    assert found.config["batch_size"] == 64
    assert found.matrix.correct == CORRECT
    assert found.curve == pytest.approx((0.9, 0.75, 2 / 3))
    assert found.last_task["adapters"] == [1, 1, 2]
    assert found.environment["commit"] == "c" * 40
    assert not found.is_log


def test_a_directory_by_another_name_is_read_too(run):
    moved = run.rename(run.with_name("my run"))
    assert (read_run(moved).label, read_run(moved).notes) == ("my run", ())


def test_the_directory_itself_may_be_where_one_is(run, monkeypatch):
    monkeypatch.chdir(run)
    assert read_run(Path()).label == "nested"


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl", "results.json"])
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(UserError) as caught:
        read_run(run)
    assert str(caught.value).startswith(f"{run / name}: missing")
    assert ("unfinished" in str(caught.value)) == (name == "results.json")


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl", "results.json"])
@pytest.mark.parametrize("content", ['{"a": 1', "[1]\n", "\x00"])
def test_a_damaged_file_is_named(run, name, content):
    (run / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_run(run)
    assert str(caught.value).startswith(f"{run / name}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [("last_acc", 0.9), ("forgetting", 0.0), ("average_accuracy", [0.9, 0.75]), ("bwt", None), ("task_accuracy", "x")],
)
def test_a_measure_edited_by_hand_is_caught(run, key, value):
    change(run / "results.json", **{key: value})
    with pytest.raises(UserError, match=rf"results\.json: {key} = .*but accuracy\.correct gives"):
        read_run(run)


def test_counts_edited_with_everything_that_follows_from_them_contradict_the_events(run, tmp_path):
    better = write_run(tmp_path / "other", "nested", 7, [[90], [80, 70], [60, 65, 76]], batch_size=64)
    (run / "results.json").write_text((better / "results.json").read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl: task 2: task_accuracy = .*a file was edited"):
        read_run(run)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accuracy", {"task_sizes": [1], "count": [1], "correct": [[2]]}, "none above its count"),
        ("accuracy", {"task_sizes": [], "count": [], "correct": []}, "for each of 0 tasks"),
        ("accuracy", None, "not an accuracy matrix but null"),
        ("tasks", [], "adapters and parameters for each of 3 tasks"),
        ("tasks", [{"adapters": [1], "parameters": {}}] * 3, "adapters and parameters"),
        ("run", {}, "run.seconds"),
        ("run", None, "run = null"),
        ("run", {"seconds": None}, "run.seconds"),
        ("run", {"seconds": 1.0, "training_seconds_per_task": ["a"]}, "run.training_seconds_per_task"),
    ],
)
def test_results_that_are_none_are_refused(run, key, value, message):
    change(run / "results.json", **{key: value})
    with pytest.raises(UserError, match=message):
        read_run(run)


@pytest.mark.parametrize("seed", [7, [], [1, 2], ["a"], [True]])
def test_a_run_has_one_seed(run, seed):
    change(run / "config.json", seed=seed)
    with pytest.raises(UserError, match=r"config\.json: seed"):
        read_run(run)


def test_a_name_that_no_longer_fits_is_noted(run):
    change(run / "config.json", batch_size=32, seed=[8])
    notes = read_run(run).notes
    assert "says seed 7, its config.json 8" in notes[0]
    assert "edited" in notes[1]


def test_a_configuration_of_another_version_is_taken_as_it_is(run):
    change(run / "config.json", key_of_tomorrow=3)
    found = read_run(run)
    assert found.notes == ()
    assert found.identity["key_of_tomorrow"] == 3


def test_a_run_with_an_adapter_that_only_a_plug_in_knows_is_checked_like_any_other(run):
    change(run / "config.json", ffn_adapter_type="my_lora")
    config = json.loads((run / "config.json").read_text())
    own = run.rename(run.with_name(f"nested-{counted_digest(config)}-s7"))
    assert read_run(own).notes == ()
    change(own / "config.json", batch_size=32)
    (note,) = read_run(own).notes
    assert "hash" in note


def test_a_folder_of_runs_is_no_run_but_says_where_they_are(run):
    with pytest.raises(UserError, match=r"config\.json: missing.*contains runs"):
        read_run(run.parent)


def test_the_nearest_names_are_offered_for_a_typo(run, monkeypatch):
    typo = run.with_name(run.name.replace("nested", "nestde"))
    assert f"no such run; did you mean {run.name}" in str(missing_path(typo))
    assert "and no folder" in str(missing_path(run.parent / "nowhere" / run.name))
    run.parent.rename(run.parent.with_name("logs"))
    monkeypatch.chdir(run.parent.parent)
    assert f"did you mean logs/{run.name}?" in str(missing_path(Path(run.name)))


def test_a_run_of_a_version_with_fewer_keys_has_the_identity_it_would_have_now(run):
    now = read_run(run)
    config = json.loads((run / "config.json").read_text())
    del config["adapter_lifetime"]
    (run / "config.json").write_text(json.dumps(config))
    assert read_run(run).key == now.key
    config["key_of_another_version"] = 1
    (run / "config.json").write_text(json.dumps(config))
    assert read_run(run).key != now.key


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "results.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UserError, match=rf"{name}: missing"):
        read_run(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("last_acc", 10**400),
        ("run", {"seconds": 10**400}),
        ("run", {"seconds": float("inf")}),
        ("tasks", [{"adapters": [10**400], "parameters": {"backbone": 1}}] * 3),
        ("tasks", [{"adapters": [1], "parameters": {"backbone": -1}}] * 3),
        ("accuracy", {"task_sizes": [1] * 5000, "count": [1] * 5000, "correct": [None] * 5000}),
        ("accuracy", {"task_sizes": [1], "count": [10**400], "correct": [[1]]}),
    ],
)
def test_numbers_beyond_all_measure_are_refused(run, key, value):
    change(run / "results.json", **{key: value})
    with pytest.raises(UserError, match=r"results\.json: "):
        read_run(run)


def test_nan_is_null_in_the_files_of_a_single_task(tmp_path):
    found = read_run(write_run(tmp_path, "one", 1, [[50]]))
    assert math.isnan(found.matrix.forgetting)
