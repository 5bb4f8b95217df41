"""What a run says of where it ran, and how to make it again."""

import hashlib
import json
import re
import subprocess
import sys
from importlib import metadata

import pytest

from utils.errors import UserError
from utils.runs import environment as module
from utils.runs.directory import RunPlan
from utils.runs.environment import (
    PROJECT,
    commit_state,
    environment,
    lock_hash,
    processor,
    reproduce_line,
    require_package,
)
from utils.runs.log import RunLog


def test_environment_says_where_a_run_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", "--config", "a b.json"])
    with RunLog.opened(RunPlan(0, tmp_path / "x")) as log:
        log.write_environment({"device": "a device"}, {"backbone": "vit"})
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


@pytest.mark.parametrize("named", ["GIT_DIR", "GIT_DIR and GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_the_commit_is_the_folder_s_own_whatever_git_s_variables_name(tmp_path, monkeypatch, named):
    folders = [tmp_path / "own", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "code.py").write_text(folder.name)
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", folder.name)
    commits = [git(folder, "rev-parse", "HEAD") for folder in folders]
    values = {
        "GIT_DIR": tmp_path / "other" / ".git",
        "GIT_WORK_TREE": tmp_path / "other",
        "GIT_INDEX_FILE": tmp_path / "other" / ".git" / "index",
    }
    for name in named.split(" and "):
        monkeypatch.setenv(name, str(values[name]))
    assert commits[0] != commits[1]
    assert commit_state(folders[0]) == {"commit": commits[0], "dirty": False}


@pytest.mark.parametrize("inside", ["vendor", "vendor/deeper", "ignored"])
def test_within_another_repository_there_is_no_commit(tmp_path, inside):
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / inside).mkdir(parents=True)
    (tmp_path / inside / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert commit_state(tmp_path / inside) == {"commit": None, "dirty": None}


def test_a_working_tree_and_a_submodule_have_their_own_commit(tmp_path):
    main, tree, module = (tmp_path / name for name in ("main", "tree", "module"))
    for folder in (main, module):
        folder.mkdir()
        git(folder, "init", "-q")
        git(folder, "commit", "-q", "--allow-empty", "-m", folder.name)
    git(main, "worktree", "add", "-q", str(tree))
    git(tree, "commit", "-q", "--allow-empty", "-m", "in the tree")
    git(main, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(module), "inner")
    for folder, same in ((tree, tree), (main / "inner", module)):
        assert commit_state(folder) == {"commit": git(same, "rev-parse", "HEAD"), "dirty": False}


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


CPUS = {
    "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx512_bf16 amx_bf16\n\nprocessor\t: 1\n": (
        "Intel(R) Xeon(R), with AMX and AVX512_BF16"
    ),
    "processor\t: 0\nmodel name\t: AMD EPYC 7B12\nflags\t\t: fpu avx2 not_bf16\n": "AMD EPYC 7B12, without bf16 units",
    "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU part\t: 0xd4f\n": "a machine, with BF16",
}


@pytest.mark.parametrize(("content", "name"), CPUS.items())
def test_the_processor_with_its_units_for_bfloat16(tmp_path, monkeypatch, content, name):
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module.platform, "machine", lambda: "a machine")
    (tmp_path / "cpuinfo").write_text(content)
    assert processor() == name


def test_the_processor_where_there_is_no_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module.platform, "processor", lambda: "arm")
    assert processor() == "arm"


# ---- optional packages


def test_an_installed_package_is_imported():
    assert require_package("tensorboard", "tensorboard>=2.18").__name__ == "tensorboard"


def test_a_missing_package_is_said_with_the_command_that_installs_it():
    with pytest.raises(UserError, match=r"^no_such is not installed: pip install 'no_such>=1' \(No module named"):
        require_package("no_such", "no_such>=1")


@pytest.mark.parametrize("made", ["wanted/run-20250101/file", "wanted/__init__.py", "wanted.py"])
@pytest.mark.parametrize("inside", ["", "elsewhere"])
def test_a_folder_or_file_with_the_name_of_a_package_is_not_taken_for_it(tmp_path, monkeypatch, made, inside):
    (tmp_path / inside / made).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / inside / made).write_text("raise SystemExit('not the package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / inside)
    if inside and made != "wanted/run-20250101/file":  # somebody put it into the search path
        with pytest.raises(SystemExit):
            require_package("wanted", "wanted>=1")
        return
    place = tmp_path / inside / ("wanted.py" if made == "wanted.py" else "wanted")
    message = re.escape(f"wanted is not installed: pip install 'wanted>=1' ({place} is not the package)")
    with pytest.raises(UserError, match=f"^{message}$"):
        require_package("wanted", "wanted>=1")
