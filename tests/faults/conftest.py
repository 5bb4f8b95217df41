"""What the fault tests share: a preloaded process, whole runs, killed runs, how a run ended, and gates."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kills import Toll, kill_runs
from preloaded import LONGEST, Preloaded, Started
from tiny_runs import KINDS, Workshop

SEED = 0
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ  # then the other cores have tests of their own
LATE = 5  # kills of each kind that find a saved state
collect_ignore_glob = [] if hasattr(os, "pidfd_open") else ["test_*.py"]  # of Linux, without which nobody keeps watch


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    with Preloaded() as process:
        yield process


@pytest.fixture
def shop(preloaded: Preloaded, tmp_path: Path) -> Workshop:
    return Workshop(preloaded, tmp_path / "shop")


@pytest.fixture(scope="session")
def whole(preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a run with these keys that nothing interrupts; each is made once, whoever loads its images."""
    shop = Workshop(preloaded, tmp_path_factory.mktemp("whole"))
    made: dict[str, Path] = {}

    def run(**keys: Any) -> Path:
        keys["num_workers"] = 0
        name = repr(sorted(keys.items()))
        if name not in made:
            tiny = shop.make(str(len(made)), keys)
            tiny.whole()
            assert tiny.path is not None
            made[name] = tiny.path
        return made[name]

    return run


@pytest.fixture(scope="session")
def tolls(preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Toll]]:
    """What came of killing each kind of run. In one process all kinds are killed from now on, beside other tests."""
    futures: dict[str, Future[Toll]] = {}
    with ThreadPoolExecutor(1) as pool:
        shop = Workshop(preloaded, tmp_path_factory.mktemp("kills"))

        def toll(kind: str) -> Future[Toll]:
            if kind not in futures:
                futures[kind] = pool.submit(kill_runs, shop, kind, SEED, LATE)
            return futures[kind]

        for kind in () if PARALLEL else KINDS:
            toll(kind)
        yield lambda kind: toll(kind).result()
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session", autouse=True)
def _kills_beside_other_tests(request: pytest.FixtureRequest) -> None:
    """Killing takes longest and needs nobody who looks on: it begins with the first fault test, on another core."""
    if not PARALLEL and any("tolls" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("tolls")


@pytest.fixture
def ended() -> Callable[[Started], tuple[int, str]]:
    """How a process ended: its exit code, and the last line on its console, which no traceback stands above."""

    def end(process: Started) -> tuple[int, str]:
        code, lines = process.wait(), process.errors.splitlines()
        assert "Traceback" not in process.errors
        assert lines.count(lines[-1]) == 1
        process.end()
        return code, lines[-1]

    return end


class Gate:
    """Lets a process wait where it would call a function, until it is told to go on.

    Args:
        folder: For the files by which the two sides speak.
        function: Its full name, such as trainer.load_dataset.
        after: Calls that pass.
    """

    def __init__(self, folder: Path, function: str, after: int = 0) -> None:
        self._here, self._go = folder / f"{function}.here", folder / f"{function}.go"
        module, _, name = function.rpartition(".")
        self.code = GATE.format(owner=module, name=name, after=after, here=str(self._here), go=str(self._go))

    def reached(self, process: Started) -> None:
        """Wait until the process waits."""
        deadline = time.monotonic() + LONGEST
        while not self._here.exists():
            assert not process.ends_within(0.005), process.errors
            assert time.monotonic() < deadline

    def open(self) -> None:
        """Let it go on."""
        self._go.touch()


GATE = """
import pathlib, pkgutil, time
owner, calls = pkgutil.resolve_name("{owner}"), []
function = owner.{name}
def waiting(*args, **keys):
    calls.append("")
    if len(calls) > {after}:
        pathlib.Path({here!r}).touch()
        while not pathlib.Path({go!r}).exists():
            time.sleep(0.01)
    return function(*args, **keys)
owner.{name} = waiting
"""


@pytest.fixture
def gate(tmp_path: Path) -> Callable[..., Gate]:
    return lambda function, after=0: Gate(tmp_path, function, after)
