"""Where the runs of a sweep run: processes on this machine, or jobs of a Slurm cluster. Never imports torch."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from utils.errors import UserError

PATIENCE = 10.0  # seconds between asking a process to end and ending it
INTO_A_FILE = 'exec "$@" > "$0" 2>&1'  # a shell's script: what a command prints goes to the file named before it
CLUSTER_DEFAULTS: dict[str, object] = {"timeout_min": 1440, "gpus_per_node": 1, "cpus_per_task": 4}


class Job(Protocol):
    """A command that was started."""

    def ended(self) -> bool:
        """Whether it has ended, well or not."""

    def where(self) -> str:
        """How it ended, for a message; "" while it runs."""


class Launcher(Protocol):
    """Starts commands.

    Attributes:
        slots: How many may run at a time.
    """

    slots: int

    def start(self, command: Sequence[str], log: Path, slot: int) -> Job:
        """Start a command, in the slot `slot` that no other one has now; what it prints goes to `log`."""

    def stop(self, jobs: Sequence[Any]) -> None:
        """End jobs of this launcher before their time, and wait until they have ended."""


# ---- this machine


class LocalJob:
    """A process, in a session of its own: Ctrl-C reaches it through its launcher, not from the terminal."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """As `Job`."""
        return self.process.poll() is not None

    def where(self) -> str:
        """As `Job`."""
        code = self.process.poll()
        if code is None:
            return ""
        return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


class LocalLauncher:
    """Processes on this machine, which share its cores, or have a GPU each.

    A user's own OMP_NUM_THREADS is kept.

    Args:
        slots: Processes at a time.
        gpus: What CUDA_VISIBLE_DEVICES calls the GPUs; given out in turn. None: there are none, or none is used.
    """

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots = slots
        self._gpus = gpus
        self._threads = str(max(1, cores() // slots))

    def environment(self, slot: int) -> dict[str, str]:
        """The environment variables of a process."""
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else {}
        return {"OMP_NUM_THREADS": self._threads, **os.environ, **gpu}

    def start(self, command: Sequence[str], log: Path, slot: int) -> LocalJob:
        """As `Launcher`."""
        # a process sees one GPU, so whatever number its file names would be that of another
        device = ["--device=0"] if self._gpus else []
        return LocalJob([*command, *device], log, self.environment(slot))

    def stop(self, jobs: Sequence[LocalJob]) -> None:
        """As `Launcher`: as Ctrl-C would, and after `PATIENCE` without mercy, their data loaders' workers with them."""
        for job in jobs:
            if not job.ended():
                job.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        try:
            while not all(job.ended() for job in jobs) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:  # at a second Ctrl-C at once
            for job in jobs:
                if not job.ended():
                    os.killpg(job.process.pid, signal.SIGKILL)
                    job.process.wait()


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


# ---- a cluster


class ClusterJob:
    """A job of submitit."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def ended(self) -> bool:
        """As `Job`."""
        return bool(self.job.done())

    def where(self) -> str:
        """As `Job`."""
        return f"job {self.job.job_id}: {self.job.state}, {self.job.paths.stderr}"


class ClusterLauncher:
    """Jobs of a cluster, through submitit.

    Args:
        slots: Jobs in the queue at a time.
        folder: For submitit's files, which the cluster's machines must see, as they must the output directory.
        parameters: Of `submitit.AutoExecutor.update_parameters`; they beat `CLUSTER_DEFAULTS`.
        cluster: submitit's name of it; "local" are processes on this machine.

    Raises:
        UserError: submitit or the cluster is missing, or a parameter is wrong.
    """

    def __init__(self, slots: int, folder: Path, parameters: Mapping[str, object], cluster: str = "slurm") -> None:
        try:
            import submitit  # an extra, which only this launcher needs
        except ModuleNotFoundError:
            raise UserError("--launcher slurm needs submitit: pip install 'submitit>=1.5'") from None
        self.slots = slots
        self._wrapped = submitit.helpers.CommandFunction
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(name=folder.name, **{**CLUSTER_DEFAULTS, **parameters})
        except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
            raise UserError(f"--launcher slurm: {error}") from error

    def start(self, command: Sequence[str], log: Path, slot: int) -> ClusterJob:
        """As `Launcher`."""
        in_shell = ["sh", "-c", INTO_A_FILE, str(log.resolve()), *command]
        return ClusterJob(self._executor.submit(self._wrapped(in_shell, verbose=False, cwd=Path.cwd())))

    def stop(self, jobs: Sequence[ClusterJob]) -> None:
        """As `Launcher`."""
        for job in jobs:
            job.job.cancel(check=False)
        deadline = time.monotonic() + PATIENCE
        while not all(job.ended() for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.1)
