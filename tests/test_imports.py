"""Imports run one way. Every contract of pyproject.toml is seen to fail once, by an import that breaks it."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = [contract["name"] for contract in PROJECT["tool"]["importlinter"]["contracts"]]
OUTER = ("main", "eval", "trainer")  # outermost first
BREACHES = {
    "benchmarks -> tools; models -> utils.inc_net -> backbone": ("utils/inc_net.py", "import models.base"),
    "nothing imports what runs it: main, trainer, eval": ("tools/match.py", "import trainer"),
    "only benchmarks and tests import tools": ("models/base.py", "import tools.docs"),
    "backbone imports nothing of ours": ("backbone/adapter.py", "import utils.errors"),
    "of utils only inc_net knows backbone (choices its names), and none knows models": (
        "utils/stopping.py",
        "import backbone.adapter",
    ),
    "the floors of utils; config, data and time scales do not know each other": (
        "utils/runs/states.py",
        "import utils.timescales.gate",
    ),
    "config, data and time scales do not know each other": ("utils/data/tasks.py", "import utils.config.schema"),
    "sweep -> report -> compare -> plots, pilot -> finished": (
        "tools/finished/reader.py",
        "import tools.compare.measures",
    ),
    "no cycles": ("backbone/registry.py", "import backbone.nested_lora"),
    "what must answer at once does so without torch": ("utils/config/load.py", "import torch"),
}


def imported(file: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


LINUX_ALONE = {  # by Python's documentation, of modules that macOS has, too
    "os": "copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom getresgid getresuid getxattr "
    "listxattr memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate preadv pwritev removexattr "
    "sched_getaffinity sched_getparam sched_getscheduler sched_rr_get_interval "
    "sched_setaffinity sched_setparam sched_setscheduler setns "
    "setresgid setresuid setxattr splice timerfd_create unshare O_DIRECT O_LARGEFILE O_NOATIME O_PATH O_RSYNC "
    "O_TMPFILE",
    "resource": "prlimit RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_SIGPENDING RUSAGE_THREAD",
    "select": "epoll",
    "signal": "SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT sigtimedwait sigwaitinfo",
    "time": "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
}


def of_linux_alone(code: str) -> list[str]:
    """Names of the standard library in a file that macOS lacks, and that the file does not ask for first."""
    names = {f"{module}.{name}" for module, listed in LINUX_ALONE.items() for name in listed.split()}
    nodes = list(ast.walk(ast.parse(code)))
    used = {f"{n.value.id}.{n.attr}" for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    used |= {f"{n.module}.{alias.name}" for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
    return sorted(name for name in used & names if 'hasattr({}, "{}")'.format(*name.split(".")) not in code)


def test_what_linux_alone_has_is_asked_for_before_it_is_used():
    folders = PROJECT["tool"]["importlinter"]["root_packages"]
    files = [ROOT / f"{name}.py" for name in OUTER] + [file for name in folders for file in (ROOT / name).rglob("*.py")]
    assert len(files) > 100
    assert {file: found for file in files if (found := of_linux_alone(file.read_text()))} == {}


def test_what_linux_alone_has_is_found():
    code = (
        "import os, signal\nfrom os import fdatasync\nos.pipe2(0)\nos.open('x', os.O_DIRECT)\nsignal.SIGPWR\nos.sync()"
    )
    assert of_linux_alone(code) == ["os.O_DIRECT", "os.fdatasync", "os.pipe2", "signal.SIGPWR"]
    assert of_linux_alone('import os\nx = os.pipe2(0) if hasattr(os, "pipe2") else os.pipe()') == []


def test_the_outer_files_know_only_those_further_in():
    for place, name in enumerate(OUTER):
        found = imported(ROOT / f"{name}.py")
        assert not found & set(OUTER[: place + 1])
        assert not [module for module in found if module.partition(".")[0] in ("tools", "benchmarks", "tests")]


def test_every_contract_has_a_breach():
    assert list(BREACHES) == CONTRACTS


@pytest.mark.slow
@pytest.mark.parametrize("contract", BREACHES)
def test_a_contract_is_broken_by_an_import_that_it_forbids(contract, tmp_path):
    for package in PROJECT["tool"]["importlinter"]["root_packages"]:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    name, line = BREACHES[contract]
    file = tmp_path / name
    file.write_text(f"{file.read_text()}\n\n{line}\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "package"), [("utils", "utils"), ("tools", "tools")])
def test_a_new_module_has_to_find_its_place_in_the_contracts(folder, package, tmp_path):
    for name in PROJECT["tool"]["importlinter"]["root_packages"]:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / folder / "drawer.py").write_text('"""Something."""\n')
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{package}.drawer" in done.stdout


def test_at_most_15_modules_lie_directly_in_utils():
    assert len([file for file in (ROOT / "utils").glob("*.py") if file.name != "__init__.py"]) <= 15
