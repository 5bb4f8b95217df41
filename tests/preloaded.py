"""Runs in processes of their own, forked from one that has imported everything: importing takes longer than a tiny run.

    tests -- control socket --> preloaded process -- fork --> supervisor -- fork --> the run

A run leads a process group of its own, with its loading workers in it. Its supervisor tells how it ended, and keeps its
number and its group from being given away until the other end of its socket is closed; then it ends whatever is left of
the group. So nothing is left behind, however the process that asked for a run ends. Linux only (pidfd).
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import torch

from utils.config.schema import DATA_ROOT_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 100  # seconds until a run that hangs is ended by its own alarm


# ---- the side that asks


@dataclass
class Started:
    """A run that was started.

    Attributes:
        pid: Its process, and its process group.
        folder: Where its standard output and standard error are.
        code: How it ended, as subprocess tells it: minus a signal's number, or the exit code; None so far.
    """

    pid: int
    folder: Path
    _answers: socket.socket
    code: int | None = None

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the run, or to its whole group."""
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, seconds: float = LONGEST) -> int:
        """Its exit code, when it has ended.

        Raises:
            TimeoutError: It goes on.
        """
        if self.code is None:
            self._answers.settimeout(seconds)
            self.code = json.loads(self._answers.recv(64))
        return self.code

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends in this time."""
        return self.code is not None or bool(select.select([self._answers], [], [], seconds)[0])

    @property
    def errors(self) -> str:
        """What it wrote on standard error so far."""
        return (self.folder / "stderr").read_text(encoding="utf-8")

    def workers(self) -> list[int]:
        """The processes in its group beside itself."""
        stats = [(int(path.name), _group(path)) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid, group in stats if group == self.pid != pid]

    def end(self) -> None:
        """End what is left of its group."""
        self._answers.close()


def _group(process: Path) -> int | None:
    """The process group of /proc/PID; None if it has ended."""
    try:
        state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return None
    return None if state == "Z" else int(group)


class Preloaded:
    """A process from which runs are forked."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-P", __file__, str(theirs.fileno())]
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
        surroundings.pop(DATA_ROOT_VARIABLE, None)
        with theirs:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=surroundings, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        self._asking = threading.Lock()
        self._started: list[Started] = []

    def start(self, argv: Sequence[str], folder: Path, before: str = "") -> Started:
        """Begin `main.main(argv)`.

        Args:
            argv: The command line.
            folder: Where `stdout` and `stderr` go.
            before: Python to be run in the new process first, such as a limit.
        """
        folder.mkdir(parents=True, exist_ok=True)
        request = json.dumps({"argv": list(argv), "before": before}).encode()
        ours, theirs = socket.socketpair()
        # One at a time: a request and the files that belong to it are read with a single call.
        with theirs, (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err, self._asking:
            socket.send_fds(self._control, [request], [theirs.fileno(), out.fileno(), err.fileno()])
            ours.settimeout(LONGEST)
            run = Started(json.loads(ours.recv(64)), folder, ours)
        self._started.append(run)
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._started:
            run.end()
        self._control.close()
        self._process.wait(timeout=LONGEST)


# ---- the side that forks


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Answer requests; returns one in the process that is to be that run, and None when nobody asks any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the system
    while True:
        request, files, _, _ = socket.recv_fds(control, 1 << 16, 3)
        if not request:
            return None
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _supervised(json.loads(request), *files)
        for file in files:
            os.close(file)


def _supervised(request: dict[str, Any], answers: int, out: int, err: int) -> dict[str, Any]:
    """Fork once more; returns in the run, and stays in its supervisor until that is over."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        for file, place in ((out, 1), (err, 2)):
            os.dup2(file, place)
        for file in (answers, out, err):
            os.close(file)
        return request
    try:
        os.setpgid(pid, pid)  # both do it, so that it is done whoever comes first
        _supervise(pid, socket.socket(fileno=answers))
    finally:
        os._exit(0)


def _supervise(pid: int, answers: socket.socket) -> None:
    answers.sendall(json.dumps(pid).encode())
    running = os.pidfd_open(pid)
    ready, _, _ = select.select([running, answers], [], [])
    if running in ready:
        # Left unreaped for now, so that neither its number nor its group's can be another's.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        exited = ended is not None and ended.si_code == os.CLD_EXITED
        answers.sendall(json.dumps(ended.si_status if exited else -ended.si_status).encode())
        answers.recv(1)
    os.killpg(pid, signal.SIGKILL)


def become(request: dict[str, Any]) -> NoReturn:
    """Be the run, to the process's end."""
    import main

    signal.alarm(LONGEST)
    sys.argv = ["main.py", *request["argv"]]
    sys.orig_argv = [sys.executable, *sys.argv]
    code = 1
    try:
        exec(request["before"], {})
        code = main.main(request["argv"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    # The interpreter's own end but for its taking itself apart, which would copy all that is shared with the preloaded.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def preload() -> None:
    """Import what a run imports, and start no thread, which no fork would survive."""
    for name in ("eval", "trainer"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    vit_sema = importlib.import_module("backbone.vit_sema")
    vit_sema.sketch_vit(vit_sema.timm_name("vit_tiny_patch16_224_adapter"), False, {})  # whose parts are kept
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote
    gc.freeze()  # collecting garbage writes into every object, which a fork would have to copy


if __name__ == "__main__":
    preload()
    if wanted := serve(socket.socket(fileno=int(sys.argv[1]))):
        become(wanted)
