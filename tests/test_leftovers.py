"""What tests have started ends with them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from leftovers import MARK, marked

TESTS = Path(__file__).parent
STARTS = """
import subprocess, sys, time
from leftovers import watch
watch()
watch()
child = "import os, time; os.fork(); os.write(1, b'up' + bytes([10])); time.sleep(100)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(100)
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked up there")
def test_what_killed_tests_have_started_ends_within_ten_seconds() -> None:
    surroundings = {key: value for key, value in os.environ.items() if key != MARK}
    command = [sys.executable, "-c", STARTS]
    with subprocess.Popen(command, cwd=TESTS, env=surroundings, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout
        assert [tests.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
        assert len(marked(tests.pid)) == 2
        tests.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while marked(tests.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_these_tests_are_watched() -> None:
    assert os.getpid() in marked(int(os.environ[MARK])) or os.getpid() == int(os.environ[MARK])
