"""Which directory a run writes, and what of an earlier run is kept."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils import files
from utils.config.identity import result_hash
from utils.config.load import load
from utils.config.schema import Config
from utils.errors import UserError
from utils.runs.directory import RunDirError, RunPlan, begun_config, can_resume, clear, locked, plan_runs, run_name

LOCKED = (
    "import sys; from pathlib import Path; from utils.runs.directory import locked\nwith locked(Path(sys.argv[1])): "
)


def config(folder: Path, **keys: object) -> Config:
    return load(None, {"dataset": "cub", "seed": 1, "output_dir": str(folder), **keys})


def directory(folder: Path, name: str = "", *, finished: bool = False, states: int = 0, **keys: object) -> Path:
    """A run directory, finished, or started with so many states."""
    made = config(folder, **keys)
    path = folder / (name or run_name(made, "x", made.seed[0]))
    (path / "resume").mkdir(parents=True)
    (path / "config.json").write_text(made.model_dump_json())
    for number in range(states):
        (path / "resume" / f"{number:06d}.state").write_bytes(b"state")
    if finished:
        (path / "results.json").write_text("{}")
    return path


def test_the_name_holds_configuration_hash_and_seed():
    made = load(None, {"dataset": "cifar224", "seed": [1, 2]})
    assert run_name(made, "sema_cifar", 2) == f"sema_cifar-{result_hash(made)}-s2"


@pytest.mark.parametrize(("change", "shared"), [({"ffn_num": 17}, False), ({"num_workers": 7}, True)])
def test_configurations_share_a_name_only_if_their_results_must_be_equal(change, shared):
    one, other = Config(dataset="cub"), Config(dataset="cub", **change)
    assert (run_name(one, "x", 1) == run_name(other, "x", 1)) is shared
    assert run_name(one, "x", 1) != run_name(one, "x", 2)


# ---- what becomes of what is there


def test_finished_runs_are_refused_all_at_once_and_untouched(tmp_path):
    for seed in (1, 3):
        directory(tmp_path, finished=True, seed=seed)
    with pytest.raises(RunDirError, match="--overwrite") as refusal:
        plan_runs(config(tmp_path, seed=[1, 2, 3]), "x")
    assert [f"-s{seed}" in str(refusal.value) for seed in (1, 2, 3)] == [True, False, True]
    assert issubclass(RunDirError, UserError)
    assert [plan.resumes for plan in plan_runs(config(tmp_path, seed=[1, 2, 3], overwrite=True), "x")] == [False] * 3
    assert len(plan_runs(config(tmp_path, seed=[2]), "x")) == 1


def test_a_begun_run_is_refused_and_one_that_saved_nothing_is_not(tmp_path):
    path = directory(tmp_path, states=1)
    with pytest.raises(
        RunDirError, match=f"already started: {path}; use --auto_resume to continue it, or --overwrite to start again"
    ):
        plan_runs(config(tmp_path), "x")
    (path / "resume" / "000000.state").rename(path / "resume" / ".000000.state.99.tmp")  # killed while writing it
    assert not can_resume(path)
    assert plan_runs(config(tmp_path), "x") == [RunPlan(1, path)]


def test_auto_resume_takes_the_newest_of_the_same_hash_whatever_its_name(tmp_path):
    digest = result_hash(config(tmp_path))
    old, new = (directory(tmp_path, f"{name}-{digest}-s1", states=2) for name in ("old", "new"))
    directory(tmp_path, f"other-{result_hash(config(tmp_path, ffn_num=3))}-s1", states=1)
    os.utime(old / "resume" / "000001.state", (1, 1))
    os.utime(old / "resume" / "000000.state", (0, 0))
    assert plan_runs(config(tmp_path, auto_resume=True), "x") == [RunPlan(1, new, resumes=True)]
    (new / "results.json").write_text("{}")
    assert plan_runs(config(tmp_path, auto_resume=True), "x") == []
    assert not (new / "resume").exists()  # a kill before the end of its last act had left it
    assert len(list((old / "resume").iterdir())) == 2


def test_resume_names_a_run_or_says_which_there_are(tmp_path):
    path = directory(tmp_path, states=1)
    assert plan_runs(config(tmp_path, resume=str(path)), "ignored") == [RunPlan(1, path, resumes=True)]
    with pytest.raises(RunDirError, match=rf"not a run directory \(it has no config.json\); unfinished runs: {path}"):
        begun_config(tmp_path / "typo")
    directory(tmp_path, "done", finished=True)
    with pytest.raises(RunDirError, match="there is nothing to resume"):
        begun_config(tmp_path / "done")


def test_a_run_goes_on_under_other_keys_only_if_they_cannot_change_it(tmp_path):
    path = directory(tmp_path, states=1)
    plan_runs(config(tmp_path, resume=str(path), num_workers=0, telemetry_every=3, on_nan="skip"), "x")
    with pytest.raises(
        RunDirError, match=r"(?s)these keys differ.*ffn_num: started with 16, now 8.*seed: started with \[1\]"
    ):
        plan_runs(config(tmp_path, resume=str(path), ffn_num=8, seed=2), "x")


# ---- the directory itself


def test_a_directory_is_made_with_its_parents_and_locked(tmp_path):
    path = tmp_path / "a" / "b"
    command = [sys.executable, "-c", LOCKED + "pass", path]
    with locked(path):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    owner = f"process {os.getpid()} on {os.uname().nodename}"
    message = f"{path}: {owner} is using this run directory; wait until it ends, or stop it"
    assert done.stderr.splitlines()[-1].endswith(message)
    assert subprocess.run(command, check=False).returncode == 0


def test_a_directory_that_cannot_be_looked_into_is_an_error_of_the_users(tmp_path, monkeypatch):
    def closed(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", closed)
    with pytest.raises(RunDirError, match=r"cannot be read: .*Permission denied"):
        plan_runs(config(tmp_path), "x")


def test_a_killed_process_leaves_no_lock(tmp_path):
    script = LOCKED + "\n    import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -9
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_files_cannot_be_locked_one_warning_says_what_is_lost(tmp_path, monkeypatch, caplog, number):
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    monkeypatch.setattr(files, "_warned", set())
    for _ in range(2):
        with locked(tmp_path):
            pass
    (warning,) = caplog.messages
    assert warning.startswith(f"{tmp_path}/.lock: cannot be locked here; a second process")
    assert warning.endswith(f"({os.strerror(number)})")


def test_a_broken_disk_is_an_error_of_the_lock(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "lockf", broken)
    with pytest.raises(RunDirError, match=r"cannot be locked: .*Input/output error"), locked(tmp_path):
        pass


@pytest.mark.parametrize("below", ["", "a/b"])
def test_an_output_directory_below_a_file_is_refused_in_the_plan(tmp_path, monkeypatch, below):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirError) as refusal:
        plan_runs(config(tmp_path, output_dir=f"file/{below}"), "x")
    file = tmp_path / "file"
    assert str(refusal.value) == f"output_dir = 'file{'/' * bool(below)}{below}': {file} is not a folder"


@pytest.mark.parametrize("blocked", ["logs", "logs/x-s1"])
def test_a_file_in_the_way_is_an_error_of_the_users(tmp_path, blocked):
    path = tmp_path / blocked
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(RunDirError, match="cannot be made"), locked(tmp_path / "logs" / "x-s1"):
        pass
    assert path.read_text() == "a file"


def test_what_is_begun_anew_is_emptied_and_what_goes_on_is_swept(tmp_path):
    path = directory(tmp_path, states=1)
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / ".task_0.safetensors.12.tmp").write_bytes(b"half")
    (path / ".lock").touch()
    assert clear(RunPlan(1, path, resumes=True)) == "continues an unfinished run"
    assert sorted(file.name for file in path.rglob("*") if file.is_file()) == [".lock", "000000.state", "config.json"]
    assert clear(RunPlan(1, path, replaces=True)) == "replaces an unfinished run"
    assert [entry.name for entry in path.iterdir()] == [".lock"]
    assert clear(RunPlan(1, path)) == ""
    done = directory(tmp_path, "done", finished=True)
    assert clear(RunPlan(1, done, replaces=True)) == "replaces a finished run"


@pytest.mark.parametrize(
    ("keys", "before", "since", "refusal"),
    [
        ({}, {}, {"states": 1}, "already started"),
        ({"auto_resume": True}, {}, {"states": 1}, "already started"),
        ({}, {}, {"finished": True}, "already finished"),
        ({"auto_resume": True}, {"states": 1}, {"finished": True}, "another process has finished this run"),
    ],
)
def test_what_another_process_has_done_since_the_plan_was_made_is_not_lost(tmp_path, keys, before, since, refusal):
    if before:
        directory(tmp_path, **before)
    (plan,) = plan_runs(config(tmp_path, **keys), "x")
    shutil.rmtree(plan.path, ignore_errors=True)
    path = directory(tmp_path, **since)
    there = sorted(path.rglob("*"))
    with pytest.raises(RunDirError, match=refusal):
        clear(plan)
    assert sorted(path.rglob("*")) == there


def test_a_state_that_is_gone_when_it_is_looked_at_is_no_error(tmp_path):
    path = directory(tmp_path, states=1)
    (path / "resume" / "000001.state").symlink_to("gone")
    assert plan_runs(config(tmp_path, auto_resume=True), "x") == [RunPlan(1, path, resumes=True)]
