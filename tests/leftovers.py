"""Ends what tests have started when the process that runs the tests ends, even by SIGKILL. Linux only.

A watching process outside of all sessions looks for the environment variable that everything below the tests inherits.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "SEMA_TESTS"  # environment variable: the process number of the tests
SECONDS = 8  # for which new processes of those that are ended are looked for


def watch() -> None:
    """Start the watching process, unless there is one already."""
    if MARK in os.environ or not Path("/proc/self/environ").exists():
        return
    command = [sys.executable, __file__, str(os.getpid())]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(
        command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
    ).returncode = 0  # no warning that it goes on
    os.environ[MARK] = str(os.getpid())


def marked(tests: int) -> list[int]:
    """The processes that tests have started, and that still run."""
    mark, found = f"{MARK}={tests}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def end_after(tests: int) -> None:
    """Wait until the tests have ended, and end what is left of them."""
    while os.getppid() == tests:
        time.sleep(0.5)
    deadline = time.monotonic() + SECONDS
    while (left := marked(tests)) and time.monotonic() < deadline:
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(0.2)


if __name__ == "__main__":
    end_after(int(sys.argv[1]))
