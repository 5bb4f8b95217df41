"""Start the runs of a sweep, as processes on this machine or as jobs of a Slurm cluster. Never imports torch."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.memory import cores
from utils.runs.environment import require_package
from utils.stopping import PARENT

THREADS = "OMP_NUM_THREADS"
PATIENCE = 10.0  # seconds from asking a job to stop until it is killed
INTO_A_FILE = 'exec "$@" > "$0" 2>&1'  # for a shell: writes the output of a command to the file named before it
CLUSTER_DEFAULTS: dict[str, object] = {"timeout_min": 1440, "gpus_per_node": 1, "cpus_per_task": 4}


@dataclass(frozen=True)
class Job:
    """A started command: how it ended (empty while it runs), and how to ask it to stop or to kill it."""

    ended: Callable[[], str]
    ask: Callable[[], None]
    kill: Callable[[], None]


Start = Callable[[Sequence[str], Path, int], Job]  # start(command, log, slot); the log gets the command's output


def stop(jobs: Sequence[Job]) -> None:
    """Ask jobs to stop. Kill those that still run after `PATIENCE` seconds, or when Ctrl-C is pressed again."""
    for job in jobs:
        job.ask()
    deadline = time.monotonic() + PATIENCE
    try:
        while not all(job.ended() for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        for job in jobs:
            if not job.ended():
                job.kill()


def share_of_cores(slots: int) -> int:
    """Return the threads of each of some processes: their share of the cores, unless the user set OMP_NUM_THREADS."""
    chosen = os.environ.get(THREADS, "")
    return int(chosen) if chosen.isdecimal() and int(chosen) else max(1, cores() // slots)


def local(threads: int, gpus: Sequence[str] = ()) -> Start:
    """Start processes on this machine.

    Args:
        threads: OMP_NUM_THREADS of each process.
        gpus: Names of GPUs for CUDA_VISIBLE_DEVICES. Each process gets one of them, in turn.
    """

    def start(command: Sequence[str], log: Path, slot: int) -> Job:
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        device = ["--device=0"] if gpus else []  # the only GPU that the process can see
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *device],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, THREADS: str(threads), **gpu, PARENT: str(os.getpid())},
                start_new_session=True,  # keeps Ctrl-C in the terminal from it
            )

        def ended() -> str:
            code = process.poll()
            if code is None:
                return ""
            return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"

        def kill() -> None:  # with the workers of its data loaders
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        return Job(ended, process.terminate, kill)  # not SIGINT, which nohup makes processes ignore

    return start


def visible_gpus() -> list[str]:
    """Return the GPUs that a new process can see, as CUDA_VISIBLE_DEVICES names them. Asks the driver, not torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [] if chosen.startswith("-1") else [gpu.strip() for gpu in chosen.split(",") if gpu.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def slurm(folder: Path, parameters: Mapping[str, object], threads: int = 1, cluster: str = "slurm") -> Start:
    """Start jobs of a cluster with submitit. Slurm stops a job by SIGTERM, and kills it after its own KillWait.

    Args:
        folder: Where submitit writes its files. All machines of the cluster must see it and the output directory.
        parameters: For `submitit.AutoExecutor.update_parameters`, in addition to `CLUSTER_DEFAULTS`.
        threads: OMP_NUM_THREADS of each job.
        cluster: submitit's name for it; "local" starts processes on this machine.

    Raises:
        UserError: submitit or the cluster is missing, or a parameter is wrong.
    """
    submitit = require_package("submitit", "submitit>=1.5")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name=folder.name, **{**CLUSTER_DEFAULTS, **parameters})
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"--launcher slurm: {error}") from error

    def start(command: Sequence[str], log: Path, slot: int) -> Job:
        in_shell = ["sh", "-c", INTO_A_FILE, str(log.resolve()), "env", f"{THREADS}={threads}", *command]
        job = executor.submit(submitit.helpers.CommandFunction(in_shell, verbose=False, cwd=Path.cwd()))

        def ended() -> str:
            return f"job {job.job_id}: {job.state}, {job.paths.stderr}" if job.done() else ""

        return Job(ended, lambda: job.cancel(check=False), lambda: None)

    return start
