"""Where the runs of a sweep run: cores and GPUs shared out, processes ended with their children, submitit."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tools.sweep import launch as sweep_launch
from tools.sweep.launch import Start, local, share_of_cores, slurm, stop, visible_gpus
from utils.errors import UserError

WHAT_IT_SEES = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.environ.get('CUDA_VISIBLE_DEVICES'), sys.argv)"


def wait(job) -> None:
    deadline = time.monotonic() + 30
    while not job.ended():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(sweep_launch, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def seen_in(start: Start, slot: int, log: Path) -> str:
    job = start([sys.executable, "-c", WHAT_IT_SEES], log, slot)
    wait(job)
    assert job.ended() == "exit code 0"
    return log.read_text().strip()


@pytest.mark.parametrize(("slots", "threads"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_processes_share_the_cores(four_cores, tmp_path, slots, threads):
    assert share_of_cores(slots) == threads
    assert seen_in(local(threads), 0, tmp_path / "log") == f"{threads} None ['-c']"


def test_a_user_s_own_number_of_threads_is_kept(four_cores, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share_of_cores(2) == 3
    assert seen_in(local(2), 0, tmp_path / "log").startswith("2 ")  # that of the sweep


def test_gpus_are_given_out_in_turn_and_each_process_uses_the_one_it_sees(four_cores, tmp_path):
    start = local(1, ["2", "5"])
    seen = [seen_in(start, slot, tmp_path / "log") for slot in range(3)]
    assert seen == [f"1 {gpu} ['-c', '--device=0']" for gpu in (2, 5, 2)]


@pytest.mark.parametrize(("value", "gpus"), [("", []), ("-1", []), ("3", ["3"]), ("0, GPU-ab", ["0", "GPU-ab"])])
def test_the_gpus_are_those_the_user_left_visible(monkeypatch, value, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(
    ("script", "gpus"), [("echo 0; echo 1", ["0", "1"]), ("echo no driver; exit 9", []), (None, [])]
)
def test_without_that_the_driver_is_asked(monkeypatch, tmp_path, script, gpus):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == gpus


def test_stopping_asks_first_and_then_ends_what_does_not_listen(monkeypatch, tmp_path):
    monkeypatch.setattr(sweep_launch, "PATIENCE", 0.5)
    polite = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('tidied up')))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    # deaf, and with a child, as a data loader's worker is
    deaf = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork()\n"
        "if child: print(child, flush=True)\ntime.sleep(60)"
    )
    start = local(2)
    logs = [tmp_path / "polite", tmp_path / "deaf"]
    jobs = [start([sys.executable, "-c", text], log, 0) for text, log in zip((polite, deaf), logs, strict=True)]
    wait_for(logs[0])
    child = int(wait_for(logs[1]))
    stop(jobs)
    assert logs[0].read_text() == "up\ntidied up\n"
    assert jobs[1].ended() == f"ended by {signal.SIGKILL.name}"
    assert gone(child)


def test_a_sweep_that_ignores_ctrl_c_as_under_nohup_stops_its_runs_too(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits
    try:
        job = local(1)(
            [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], tmp_path / "x", 0
        )
        wait_for(tmp_path / "x")
        stop([job])
    finally:
        signal.signal(signal.SIGINT, before)
    assert job.ended() == "ended by SIGTERM"


def gone(process: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[0] == "Z":
                return True
            os.kill(process, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


# ---- submitit

LOCAL = {"timeout_min": 5, "gpus_per_node": 0, "cpus_per_task": 1}


@pytest.mark.slow
def test_a_job_of_a_cluster_prints_to_the_log_and_says_where_its_own_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = slurm(tmp_path / "slurm", LOCAL, cluster="local")
    script = "import os, sys; print(os.getcwd(), sys.argv[1], flush=True); sys.exit('no luck')"
    job = start([sys.executable, "-c", script, "it's $1"], Path("the log"), 0)
    wait(job)
    assert (tmp_path / "the log").read_text() == f"{tmp_path} it's $1\nno luck\n"
    how, path = job.ended().split(", ")
    number = Path(path).name.split("_")[0]
    assert how.startswith(f"job {number}: ")
    assert Path(path).exists()


@pytest.mark.slow
def test_jobs_of_a_cluster_are_cancelled(tmp_path):
    start = slurm(tmp_path / "slurm", LOCAL, cluster="local")
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    job = start([sys.executable, "-c", script], tmp_path / "log", 0)
    process = int(wait_for(tmp_path / "log"))
    assert not job.ended()
    stop([job])
    assert job.ended()
    os.kill(process, signal.SIGKILL)  # Slurm ends all processes of a job, submitit's local executor its own alone


def test_without_submitit_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"submitit is not installed: pip install 'submitit>=1\.5'"):
        slurm(tmp_path, {})


def test_without_slurm_or_with_a_wrong_parameter_the_message_is_submitit_s(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--launcher slurm"):
        slurm(tmp_path, {})
    with pytest.raises(UserError, match="timeout_mn"):
        slurm(tmp_path, {"timeout_mn": 5}, cluster="local")
