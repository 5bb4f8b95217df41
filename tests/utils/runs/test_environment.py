"""What a run says of where it ran, and how to make it again."""

import hashlib
import json
import subprocess
import sys
from importlib import metadata

from utils.runs.directory import RunPlan
from utils.runs.environment import PROJECT, commit_state, environment, lock_hash, reproduce_line
from utils.runs.log import RunLog


def test_environment_says_where_a_run_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", "--config", "a b.json"])
    with RunLog.opened(RunPlan(0, tmp_path / "x")) as log:
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


def test_the_line_that_makes_a_run_again(tmp_path):
    assert lock_hash(tmp_path) is None
    lock = hashlib.sha256((PROJECT / "requirements.lock").read_bytes()).hexdigest()
    begun = {
        "command": "python main.py --config x.json",
        "commit": "c0ffee",
        "dirty": False,
        "lock": lock_hash(PROJECT),
    }
    assert reproduce_line(begun) == f"python main.py --config x.json  # at commit c0ffee, requirements.lock {lock}"
    assert "c0ffee, with uncommitted changes, req" in reproduce_line({**begun, "dirty": True})
