"""Where the runs of a sweep run: processes on this machine, or jobs of a Slurm cluster. Never imports torch."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

PATIENCE = 10.0  # seconds between asking a job to stop and killing it
INTO_A_FILE = 'exec "$@" > "$0" 2>&1'  # for a shell: what a command prints goes to the file named before it
CLUSTER_DEFAULTS: dict[str, object] = {"timeout_min": 1440, "gpus_per_node": 1, "cpus_per_task": 4}


@dataclass(frozen=True)
class Job:
    """A command that was started.

    Attributes:
        ended: Says how it ended; empty while it runs.
        ask: Asks it to stop.
        kill: Ends it if it did not.
    """

    ended: Callable[[], str]
    ask: Callable[[], None]
    kill: Callable[[], None]


Start = Callable[[Sequence[str], Path, int], Job]  # start(command, log, slot); what the command prints goes to the log


def stop(jobs: Sequence[Job]) -> None:
    """Ask jobs to stop, and kill those that still run after `PATIENCE`, or on a second Ctrl-C."""
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


def local(slots: int, gpus: Sequence[str] = ()) -> Start:
    """Processes on this machine, which share its cores, or have a GPU each. OMP_NUM_THREADS is kept if it is set.

    Args:
        slots: Processes at a time.
        gpus: What CUDA_VISIBLE_DEVICES calls the GPUs; given out in turn. Empty: there are none, or none is used.
    """
    threads = str(max(1, cores() // slots))

    def start(command: Sequence[str], log: Path, slot: int) -> Job:
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        device = ["--device=0"] if gpus else []  # a process sees one GPU, whatever number its configuration names
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *device],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": threads, **os.environ, **gpu},
                start_new_session=True,  # Ctrl-C on the terminal does not reach it
            )
        # SIGTERM: under nohup SIGINT is ignored, here and in the processes started from here
        return Job(lambda: _how_ended(process), process.terminate, lambda: _kill(process))

    return start


def _how_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.poll()
    if code is None:
        return ""
    return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and the workers of its data loaders."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs a process started here would see, as CUDA_VISIBLE_DEVICES names them; asks the driver, not torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [] if chosen.startswith("-1") else [gpu.strip() for gpu in chosen.split(",") if gpu.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def slurm(folder: Path, parameters: Mapping[str, object], cluster: str = "slurm") -> Start:
    """Jobs of a cluster, through submitit. Slurm stops a job by SIGTERM, and kills it after its own KillWait.

    Args:
        folder: For submitit's files, which the cluster's machines must see, as they must the output directory.
        parameters: Of `submitit.AutoExecutor.update_parameters`; they beat `CLUSTER_DEFAULTS`.
        cluster: submitit's name of it; "local" are processes on this machine.

    Raises:
        UserError: submitit or the cluster is missing, or a parameter is wrong.
    """
    try:
        import submitit  # an extra, which is needed only here
    except ModuleNotFoundError:
        raise UserError("--launcher slurm needs submitit: pip install 'submitit>=1.5'") from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name=folder.name, **{**CLUSTER_DEFAULTS, **parameters})
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"--launcher slurm: {error}") from error

    def start(command: Sequence[str], log: Path, slot: int) -> Job:
        in_shell = ["sh", "-c", INTO_A_FILE, str(log.resolve()), *command]
        job = executor.submit(submitit.helpers.CommandFunction(in_shell, verbose=False, cwd=Path.cwd()))

        def ended() -> str:
            return f"job {job.job_id}: {job.state}, {job.paths.stderr}" if job.done() else ""

        return Job(ended, lambda: job.cancel(check=False), lambda: None)

    return start
