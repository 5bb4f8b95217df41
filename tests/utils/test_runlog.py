import io
import json
import logging
import os
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from utils.config import Config, UserError, load, result_hash
from utils.runlog import RunDirError, RunLog, commit_state, environment, progress, refuse_finished, run_name

logger = logging.getLogger(__name__)


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self) -> bool:
        return True


def finish(output_dir, name):
    """A run directory with everything in it."""
    with RunLog.create(output_dir, name, overwrite=False) as log:
        log.event("epoch", loss=1.0)
        log.results({"last_acc": 0.5})
    (log.path / "checkpoints").mkdir()
    (log.path / "checkpoints" / "task_9.safetensors").write_bytes(b"of the first run")
    return log.path


# ---- names and directories


def test_the_name_holds_configuration_hash_and_seed():
    config = load(None, {"dataset": "cifar224", "seed": [1, 2]})
    assert run_name(config, "sema_cifar", 2) == f"sema_cifar-{result_hash(config)}-s2"


@pytest.mark.parametrize(("change", "shared"), [({"ffn_num": 17}, False), ({"num_workers": 7}, True)])
def test_configurations_share_a_name_only_if_their_results_must_be_equal(change, shared):
    one, other = Config(dataset="cub"), Config(dataset="cub", **change)
    assert (run_name(one, "x", 1) == run_name(other, "x", 1)) is shared
    assert run_name(one, "x", 1) != run_name(one, "x", 2)


def test_a_directory_is_made_with_its_parents(tmp_path):
    with RunLog.create(tmp_path / "a" / "b", "x-s1", overwrite=False) as log:
        assert log.path == tmp_path / "a" / "b" / "x-s1"
        assert log.path.is_dir()


def test_a_finished_run_is_refused_and_untouched(tmp_path):
    path = finish(tmp_path, "x-s1")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(RunDirError, match=r"x-s1; --overwrite"):
        RunLog.create(tmp_path, "x-s1", overwrite=False)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert issubclass(RunDirError, UserError)


def test_overwrite_leaves_nothing_of_the_finished_run(tmp_path):
    path = finish(tmp_path, "x-s1")
    with RunLog.create(tmp_path, "x-s1", overwrite=True):
        assert [file.name for file in path.iterdir()] == ["log.txt"]
    assert "replaces a finished run" in (path / "log.txt").read_text()


def test_an_unfinished_run_is_begun_anew_and_the_log_says_so(tmp_path):
    path = finish(tmp_path, "x-s1")
    (path / "results.json").unlink()
    with RunLog.create(tmp_path, "x-s1", overwrite=False):
        assert [file.name for file in path.iterdir()] == ["log.txt"]
    assert "replaces an unfinished run" in (path / "log.txt").read_text()


def test_the_first_run_replaces_nothing(tmp_path):
    assert "(replaces" not in (finish(tmp_path, "x-s1") / "log.txt").read_text()


def test_refusal_before_anything_starts_lists_all_finished_runs(tmp_path):
    finish(tmp_path, "x-s1")
    finish(tmp_path, "x-s3")
    with pytest.raises(RunDirError) as refusal:
        refuse_finished(tmp_path, ["x-s1", "x-s2", "x-s3"], overwrite=False)
    assert [name in str(refusal.value) for name in ("x-s1", "x-s2", "x-s3")] == [True, False, True]
    refuse_finished(tmp_path, ["x-s2"], overwrite=False)
    refuse_finished(tmp_path, ["x-s1"], overwrite=True)


@pytest.mark.parametrize("blocked", ["logs", "logs/x-s1"])
def test_a_file_in_the_way_is_an_error_of_the_users(tmp_path, blocked):
    path = tmp_path / blocked
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(RunDirError, match="cannot be made"):
        RunLog.create(tmp_path / "logs", "x-s1", overwrite=False)
    assert path.read_text() == "a file"


# ---- the log


def test_two_runs_in_one_process_never_share_a_log(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    root = logging.getLogger()
    before = (list(root.handlers), logging.WARNING)
    for name in ("first", "second"):
        with RunLog.create(tmp_path, name, overwrite=False):
            logger.info("line of %s", name)
        assert (list(root.handlers), root.level) == before
    logger.warning("between runs")
    first, second = ((tmp_path / name / "log.txt").read_text() for name in ("first", "second"))
    assert "INFO line of first" in first
    assert "INFO line of second" in second
    assert "second" not in first
    assert "first" not in second
    assert "between" not in first + second


def test_the_console_shows_the_log_on_standard_error(tmp_path, capsys):
    with RunLog.create(tmp_path, "x", overwrite=False):
        logger.info("a line, größer")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "a line, größer\n" in shown.err
    assert "a line, größer\n" in (tmp_path / "x" / "log.txt").read_text(encoding="utf-8")


def test_what_ended_a_run_stands_in_its_log_and_is_told_once(tmp_path, capsys):
    root = logging.getLogger()
    before = list(root.handlers)
    with pytest.raises(RuntimeError, match="out of luck"), RunLog.create(tmp_path, "x", overwrite=False):
        raise RuntimeError("out of luck")
    text = (tmp_path / "x" / "log.txt").read_text()
    assert "ERROR the run stopped before its end" in text
    assert "RuntimeError: out of luck" in text
    assert "out of luck" not in capsys.readouterr().err
    assert list(root.handlers) == before


def test_a_console_that_has_gone_away_ends_no_run(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with RunLog.create(tmp_path, "x", overwrite=False):
        logger.info("a line")
    assert "a line" in (tmp_path / "x" / "log.txt").read_text()


# ---- events and results


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_an_event_is_in_the_file_at_once(tmp_path):
    with RunLog.create(tmp_path, "x", overwrite=False) as log:
        log.event("epoch", loss=0.5, lr={"slow": 0.001})
        assert lines(log.path) == [{"kind": "epoch", "loss": 0.5, "lr": {"slow": 0.001}}]
        log.event("task", accuracy=np.array([0.5, np.nan]), forgetting=float("nan"))
        assert lines(log.path)[1:] == [{"kind": "task", "accuracy": [0.5, None], "forgetting": None}]


def test_equal_runs_write_equal_metrics_and_results_but_for_the_key_run(tmp_path):
    for name in ("a", "b"):
        with RunLog.create(tmp_path, name, overwrite=False) as log:
            log.event("epoch", loss=1 / 3)
            log.results({"last_acc": 0.7, "forgetting": float("nan"), "run": {"seconds_per_task": [len(name)]}})
    a, b = tmp_path / "a", tmp_path / "b"
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    results = [json.loads((path / "results.json").read_text()) for path in (a, b)]
    runs = [result.pop("run") for result in results]
    assert results == [{"last_acc": 0.7, "forgetting": None}] * 2
    for run in runs:
        assert run.keys() == {"started", "finished", "seconds", "seconds_per_task"}
        assert run["seconds"] >= 0


# ---- config.json and environment.json


def test_config_is_written_as_resolved(tmp_path):
    config = Config(dataset="cub")
    with RunLog.create(tmp_path, "x", overwrite=False) as log:
        log.write_config(config.model_dump(mode="json"))
    assert Config(**json.loads((log.path / "config.json").read_text())) == config


def test_environment_says_where_a_run_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", "--config", "a b.json"])
    with RunLog.create(tmp_path, "x", overwrite=False) as log:
        log.write_environment("a device", {"backbone": "vit"})
    written = json.loads((log.path / "environment.json").read_text())
    assert written["device"] == "a device"
    assert written["backbone"] == "vit"
    assert written["python"] == ".".join(map(str, sys.version_info[:3]))
    assert written["versions"]["torch"] == metadata.version("torch")
    assert written["versions"].keys() == {"torch", "torchvision", "timm", "numpy"}
    assert written["started"].endswith("+00:00")
    assert written["command"] == "python main.py --config 'a b.json'"
    assert {"commit", "dirty", "platform", "cores"} <= written.keys()


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_and_dirty_flag(tmp_path):
    git(tmp_path, "init", "-q")
    assert commit_state(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "log.txt").write_text("untracked, and no part of the code")
    assert commit_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "code.py").write_text("a = 2\n")
    assert commit_state(tmp_path) == {"commit": commit, "dirty": True}


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_state(tmp_path) == {"commit": None, "dirty": None}


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] is None


# ---- progress


def test_progress_is_silent_without_a_terminal(capsys):
    assert list(progress(iter(range(3)), "task 0", 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_tells_what_and_how_far(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress(iter(range(3)), "task 0 scan", 10, done=7)) == [0, 1, 2]
    assert "task 0 scan:" in terminal.getvalue()
    assert "7/10" in terminal.getvalue()


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_loop_left_early_can_be_taken_up_again(on_terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal() if on_terminal else io.StringIO())

    def batches():
        yield from range(5)

    source = batches()
    for batch in progress(source, "scan", 5):
        if batch == 1:
            break
    assert list(progress(source, "scan", 5, done=2)) == [2, 3, 4]


def test_a_line_logged_under_a_bar_stands_on_a_line_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with RunLog.create(tmp_path, "x", overwrite=False):
        for _ in progress(range(2), "bar", 2):
            logger.info("between")
    between = [line.rsplit("\r", 1)[-1] for line in terminal.getvalue().split("\n") if line.endswith("between")]
    assert len(between) == 2
    assert not any("bar" in line for line in between)


def test_progress_bars_do_not_reach_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with RunLog.create(tmp_path, "x", overwrite=False) as log:
        list(progress(range(2), "a bar", 2))
    assert "a bar" not in (log.path / "log.txt").read_text()
    assert os.listdir(log.path) == ["log.txt"]
