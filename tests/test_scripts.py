"""script/quickstart and script/test, with stand-ins for Python: which they choose, what they install, and when."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from leftovers import MARK

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "cat", "chmod", "cp", "dirname", "mkdir", "nohup", "rm", "sleep", "touch")
WATCHED = {name: os.environ[name] for name in (MARK,) if name in os.environ}
QUICKSTART = "main.py|--config|exps/quickstart.json|--overwrite"
PYTHON = r"""#!{bash}
# Answers -c as a Python of that version would, makes virtual environments that hold a copy of itself, installs nothing.
in_venv="$([[ "$0" == *.venv/* ]] && echo 1)"
IFS="|"
[ "$1" = -c ] || echo "${{in_venv:+venv: }}${{0##*/}}|$*" >>"$RECORD"
IFS=" "
case "$1 ${{2:-}}" in
    -c*)
        exec {real} -c "import importlib.util, sys
sys.version_info, sys.prefix = {version}, '${{in_venv:-$(echo)}}' or sys.base_prefix
importlib.util.find_spec = lambda name: name not in {lacks}
$2"
        ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") eval "${{PIP:-true}}" ;;
    *) cat && eval "${{RUN:-true}}" ;;
esac
"""


class Machine:
    """A machine with a copy of the scripts, and with the commands that tests put there.

    Args:
        folder: Everything of it; there is a space in the project's path.
    """

    def __init__(self, folder: Path) -> None:
        self.project, self.commands, self.record = folder / "my project", folder / "bin", folder / "record"
        self.commands.mkdir()
        for tool in TOOLS:
            (self.commands / tool).symlink_to(str(shutil.which(tool)))
        self.command("id", "echo 1000")
        shutil.copytree(ROOT / "script", self.project / "script")
        for file in ROOT.glob("requirements*"):
            shutil.copy(file, self.project)

    def command(self, name: str, code: str) -> None:
        self._write(name, f"#!{self.commands}/bash\n{code}\n")

    def python(self, name: str, version: tuple[int, int], lacks: tuple[str, ...] = ()) -> None:
        code = PYTHON.format(
            bash=self.commands / "bash", real=f"'{sys.executable}'", version=(*version, 0), lacks=repr(lacks)
        )
        self._write(name, code)

    def _write(self, name: str, code: str) -> None:
        (self.commands / name).write_text(code)
        (self.commands / name).chmod(0o755)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Run a command in the project's folder, with Ctrl-C as a terminal has it."""
        return subprocess.Popen(
            command,
            cwd=self.project,
            env={
                "PATH": str(self.commands),
                "RECORD": str(self.record),
                "HOME": str(self.project),
                **WATCHED,
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *command: str, **environment: str) -> tuple[int, str, list[str]]:
        """Its exit code, what it wrote on standard error, and the calls of Python."""
        self.record.unlink(missing_ok=True)
        process = self.start(*command, **environment)
        errors = process.communicate(timeout=60)[1]
        return process.returncode, errors, self.record.read_text().splitlines() if self.record.exists() else []

    def script(self, name: str, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
        return self.run("bash", f"script/{name}", *arguments, **environment)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """A machine on which the quickstart ran."""
    machine.python("python3.12", (3, 12))
    assert machine.script("quickstart")[0] == 0
    return machine


def installs(calls: list[str]) -> list[str]:
    """The requirement files of the installations among calls of Python."""
    return [call.split("|-r|")[1].split("|")[0] for call in calls if "|-m|pip|install|" in call]


# ---- which Python


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"python3": (3, 13)}, "python3"),
        ({"python3": (3, 10), "python3.11": (3, 11)}, "python3.11"),
        ({"python3.11": (3, 11), "python3.13": (3, 13), "python3.12": (3, 12)}, "python3.13"),
        ({"python3.14": (3, 14), "python3.13": (3, 13)}, "python3.14"),
    ],
)
def test_the_newest_python_makes_the_environment(
    machine: Machine, there: Mapping[str, tuple[int, int]], chosen: str
) -> None:
    for name, version in there.items():
        machine.python(name, version)
    code, _, calls = machine.script("quickstart")
    assert code == 0
    assert calls[0] == f"{chosen}|-m|venv|.venv"


def test_a_python_that_does_not_start_or_cannot_make_an_environment_is_not_chosen(machine: Machine) -> None:
    machine.command("python3.14", "echo 'not installed' >&2; exit 127")
    machine.python("python3.13", (3, 13), lacks=("ensurepip",))
    machine.python("python3.12", (3, 12))
    assert machine.script("quickstart")[2][0] == "python3.12|-m|venv|.venv"


def test_python_can_be_named(machine: Machine) -> None:
    machine.python("python3.13", (3, 13))
    machine.python("my python", (3, 11))
    calls = machine.script("quickstart", PYTHON=str(machine.commands / "my python"))[2]
    assert calls[0] == "my python|-m|venv|.venv"


def no_python(machine: Machine) -> None:
    pass


def an_old_python(machine: Machine) -> None:
    machine.python("python3", (3, 10))


def no_ensurepip(machine: Machine) -> None:
    machine.python("python3", (3, 12), lacks=("ensurepip",))


def no_venv(machine: Machine) -> None:
    machine.python("python3.11", (3, 11), lacks=("venv", "ensurepip"))


NOT_FOUND = "Python 3.11 or newer was not found (tried: python3.14 python3.13 python3.12 python3.11 python3)."


@pytest.mark.parametrize("script", ["quickstart", "test"])
@pytest.mark.parametrize(
    ("arrange", "begins", "ends"),
    [
        (no_python, NOT_FOUND, "PYTHON=/path/to/python bash script/{script}\n"),
        (an_old_python, NOT_FOUND, "PYTHON=/path/to/python bash script/{script}\n"),
        (no_ensurepip, "python3 has no module ensurepip,", "apt-get install python3.12-venv\n"),
        (no_venv, "python3.11 has no module venv,", "apt-get install python3.11-venv\n"),
    ],
)
def test_without_a_usable_python_one_sentence_says_what_to_install(
    machine: Machine, script: str, arrange: Callable[[Machine], None], begins: str, ends: str
) -> None:
    arrange(machine)
    code, errors, calls = machine.script(script)
    assert (code, calls) == (2, [])
    assert errors.startswith(begins)
    assert errors.endswith(ends.format(script=script))
    assert errors.count("\n") == 1


@pytest.mark.parametrize("version", [None, (3, 9)])
def test_a_named_python_that_is_not_usable_is_not_replaced_by_another(
    machine: Machine, version: tuple[int, int] | None
) -> None:
    machine.python("python3.12", (3, 12))
    if version:
        machine.python("other", version)
    code, errors, calls = machine.script("quickstart", PYTHON="other")
    assert (code, calls) == (2, [])
    assert errors == "PYTHON=other is not a working Python of version 3.11 or newer.\n"


# ---- what is installed, and when


def test_the_first_call_installs_from_the_lock_file_and_the_second_installs_nothing(machine: Machine) -> None:
    machine.python("python3.12", (3, 12))
    code, errors, calls = machine.script("quickstart")
    install = "venv: python|-m|pip|install|-q|--disable-pip-version-check|-r|requirements.txt|-c|requirements.lock"
    assert (code, calls) == (0, ["python3.12|-m|venv|.venv", install, f"venv: python|{QUICKSTART}"])
    assert errors.startswith("Installing the packages of requirements.txt into .venv.")
    assert machine.script("quickstart") == (0, "", [f"venv: python|{QUICKSTART}"])


def test_the_tests_packages_include_the_quickstarts(ready: Machine) -> None:
    assert installs(ready.script("test")[2]) == ["requirements-dev.txt"]
    assert installs(ready.script("test")[2]) == []
    assert installs(ready.script("quickstart")[2]) == []


@pytest.mark.parametrize("file", ["requirements.txt", "requirements.lock"])
def test_changed_requirements_are_installed_in_the_same_environment(ready: Machine, file: str) -> None:
    with (ready.project / file).open("a") as requirements:
        requirements.write("numpy\n")
    calls = ready.script("quickstart")[2]
    assert installs(calls) == ["requirements.txt"]
    assert not any("venv|.venv" in call for call in calls)


@pytest.mark.parametrize(("end", "expected"), [("exit 1", 1), ("kill -KILL $PPID", -signal.SIGKILL)])
def test_an_installation_that_did_not_end_well_is_repeated(machine: Machine, end: str, expected: int) -> None:
    machine.python("python3.12", (3, 12))
    code, _, calls = machine.script("quickstart", PIP=end)
    assert code == expected
    assert not any("main.py" in call for call in calls)
    assert installs(machine.script("quickstart")[2]) == ["requirements.txt"]
    assert installs(machine.script("quickstart")[2]) == []


def test_packages_that_changed_and_failed_are_installed_again(ready: Machine) -> None:
    before = (ready.project / "requirements.txt").read_text()
    (ready.project / "requirements.txt").write_text(f"{before}numpy\n")
    assert ready.script("quickstart", PIP="exit 1")[0] == 1
    (ready.project / "requirements.txt").write_text(before)
    assert installs(ready.script("quickstart")[2]) == ["requirements.txt"]


def test_an_environment_whose_python_is_gone_is_said_and_made_again(ready: Machine) -> None:
    (ready.project / ".venv/bin/python").unlink()
    (ready.project / ".venv/left").touch()
    _, errors, calls = ready.script("quickstart")
    assert errors.startswith("Replacing .venv, which does not work")
    assert [calls[0], installs(calls)] == ["python3.12|-m|venv|.venv", ["requirements.txt"]]
    assert not (ready.project / ".venv/left").exists()


def test_a_link_to_an_environment_is_replaced_and_what_it_led_to_is_kept(machine: Machine, tmp_path: Path) -> None:
    machine.python("python3.12", (3, 12))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").touch()
    (machine.project / ".venv").symlink_to(tmp_path / "elsewhere")
    assert machine.script("quickstart")[0] == 0
    assert (tmp_path / "elsewhere/kept").exists()
    assert not (machine.project / ".venv").is_symlink()


def test_an_environment_of_another_version_than_the_python_that_is_named_is_said_and_made_again(ready: Machine) -> None:
    ready.python("python3.11", (3, 11))
    _, errors, calls = ready.script("quickstart", PYTHON="python3.11")
    assert errors.startswith("Replacing .venv, which was made by Python 3.12, because PYTHON names Python 3.11.\n")
    assert [calls[0], installs(calls)] == ["python3.11|-m|venv|.venv", ["requirements.txt"]]
    assert ready.script("quickstart", PYTHON="python3.11") == (0, "", [f"venv: python|{QUICKSTART}"])


def test_a_working_environment_is_kept_when_a_newer_python_comes(ready: Machine) -> None:
    ready.python("python3.13", (3, 13))
    assert ready.script("quickstart") == (0, "", [f"venv: python|{QUICKSTART}"])


# ---- how they run


@pytest.mark.parametrize("name", ["quickstart", "test"])
def test_arguments_and_exit_code_are_passed_on(ready: Machine, name: str) -> None:
    code, _, calls = ready.script(name, "-k", "a b", "", "--seed", "1", RUN="exit 7")
    command = {"quickstart": QUICKSTART, "test": "-m|pytest"}[name]
    assert (code, calls[-1]) == (7, f"venv: python|{command}|-k|a b||--seed|1")


def test_all_tests_run_in_parallel(ready: Machine) -> None:
    assert ready.script("test")[2][-1] == "venv: python|-m|pytest|-n|auto|--maxprocesses|8|--dist|worksteal"


@pytest.mark.parametrize("name", ["quickstart", "test"])
def test_they_run_in_any_folder(ready: Machine, tmp_path: Path, name: str) -> None:
    script = ready.project / "script" / name
    code, _, calls = ready.run("bash", "-c", f'cd "{tmp_path}" && exec bash "{script}" a', CDPATH=str(tmp_path))
    assert (code, calls[-1].rpartition("|")[2]) == (0, "a")
    assert (ready.project / ".venv/installed-requirements.txt").exists()


@pytest.mark.parametrize("how", ["bash {} <&-", "nohup bash {} </dev/null", "bash {} </dev/null >/dev/null"])
@pytest.mark.parametrize("name", ["quickstart", "test"])
def test_they_need_no_terminal(machine: Machine, name: str, how: str) -> None:
    machine.python("python3.12", (3, 12))
    code, _, calls = machine.run("bash", "-c", how.format(f"script/{name}"))
    assert (code, len(calls)) == (0, 3)


# Half a minute in short steps: a shell runs its trap when the command that it waits for has ended.
WAIT = "n=0; while [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done"


@pytest.mark.parametrize("name", ["quickstart", "test"])
def test_ctrl_c_while_packages_are_installed(machine: Machine, tmp_path: Path, name: str) -> None:
    machine.python("python3.12", (3, 12))
    here = tmp_path / "here"
    process = machine.start("bash", f"script/{name}", PIP=f"trap 'exit 1' INT; touch '{here}'; {WAIT}")
    interrupt(process, here)
    assert process.returncode == 130
    assert len(installs(machine.script(name)[2])) == 1


def test_ctrl_c_while_tests_run(ready: Machine, tmp_path: Path) -> None:
    here = tmp_path / "here"
    assert ready.script("test")[0] == 0
    process = ready.start("bash", "script/test", RUN=f"trap 'exit 2' INT; touch '{here}'; {WAIT}")
    interrupt(process, here)
    assert process.returncode == 130


def interrupt(process: subprocess.Popen[str], here: Path) -> None:
    """Send Ctrl-C, as a terminal does, when that file is there; wait for the end."""
    deadline = time.monotonic() + 30
    while not here.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)


# ---- Chromium

DEBIAN = pytest.mark.skipif(not Path("/etc/debian_version").exists(), reason="only Debian's packages are installed")


@DEBIAN
@pytest.mark.parametrize("code", [0, 1])
def test_root_installs_chromium_where_it_is_missing_and_goes_on_where_that_fails(ready: Machine, code: int) -> None:
    ready.command("id", "echo 0")
    ready.command("apt-get", f'echo "apt-get|$*" >>"$RECORD"; exit {code}')
    result, _, calls = ready.script("test", "-q")
    asked = [call for call in calls if call.startswith("apt-get")]
    assert asked == ["apt-get|-qq update", "apt-get|-qqy install chromium chromium-driver"][: 2 - code]
    assert (result, calls[-1]) == (0, "venv: python|-m|pytest|-q")


@pytest.mark.parametrize("user", ["0", "1000"])
def test_nothing_is_installed_where_chromium_is_there_or_the_user_is_not_root(ready: Machine, user: str) -> None:
    ready.command("id", f"echo {user}")
    ready.command("apt-get", 'echo "apt-get|$*" >>"$RECORD"')
    for name in ("chromium", "chromedriver") if user == "0" else ():
        ready.command(name, "true")
    assert not any(call.startswith("apt-get") for call in ready.script("test")[2])


def test_the_check_of_a_change_calls_the_test_command() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert "bash script/test" in lines
