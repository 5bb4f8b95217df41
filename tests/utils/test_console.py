"""Commands whose terminal, streams, user, folder and parent are not as usual."""

import ast
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from finished_runs import write_run

from utils import console
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
CODE = ("main.py", "eval.py", "trainer.py", "models", "backbone", "utils", "tools")
HELP = [
    ["main.py"],
    *(["-m", f"tools.{name}"] for name in ("compare", "match", "report", "sweep", "verify")),
    ["-m", "utils.data"],
]
NOBODY = """
import os, pwd, runpy, sys
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME"):
    os.environ.pop(name, None)
sys.argv[1:] = sys.argv[2:]
"""
SHOW = "import sys, pathlib; from utils.console import command, start\nstart()\n"


def run(*words: str, cwd: Path = ROOT, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60, **more)  # type: ignore[call-overload]


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which PY is Python."""
    command = ["bash", "-o", "pipefail", "-c", line]
    surroundings = {**os.environ, "PY": sys.executable, **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=60, env=surroundings, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two finished runs of one configuration, so that the comparison has standard deviations."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        write_run(folder, "x", seed, [[10], [8, 6 + seed]], sizes=[10, 10])
    return str(folder)


# ---- what the terminal cannot show


@pytest.mark.parametrize(
    ("encoding", "sign"), [("ascii", "+/-"), ("cp1252", "±"), ("latin-1", "±"), ("utf-8", "±"), ("cp437", "±")]
)
def test_a_table_is_shown_in_every_encoding(runs: str, encoding: str, sign: str) -> None:
    command = [sys.executable, "-m", "tools.compare", *map(str, Path(runs).iterdir())]
    surroundings = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, env=surroundings)
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"Mean {sign} standard deviation over seeds" in done.stdout.decode(encoding)


def test_other_characters_become_their_numbers(tmp_path: Path) -> None:
    done = run("-c", SHOW + "print('größer → 猫 \\udcff')", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "gr\\xf6\\xdfer -> \\u732b \\udcff\n")


def test_names_that_are_not_unicode_are_shown(tmp_path: Path) -> None:
    done = run("-m", "tools.verify", os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert done.returncode == 2
    assert "\\udcff" in done.stderr
    assert "Traceback" not in done.stderr


# ---- nobody listens


@pytest.mark.parametrize("words", HELP)
def test_a_closed_pipe_is_no_error(words: list[str]) -> None:
    done = shell(f"$PY {' '.join(words)} --help | (exec <&-; sleep 0.1)")
    assert (done.returncode, done.stderr) == (0, "")


def test_output_is_discarded_when_its_reader_has_gone() -> None:
    code = SHOW + "print('first', flush=True)\nfor _ in range(10**5): print('more')\npathlib.Path(sys.argv[1]).touch()"
    done = shell(f'$PY -c "{code}" /dev/null | head -1')
    assert (done.returncode, done.stdout, done.stderr) == (0, "first\n", "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_to_nowhere(tmp_path: Path, closed: str) -> None:
    code = SHOW + (
        "file = open(sys.argv[1], 'w')\n"
        "import os; os.write(2, b'of a library'); print('out'); print('err', file=sys.stderr); os.read(0, 1)"
    )
    done = shell(f'$PY -c "{code}" {tmp_path}/file {closed} </dev/null'.replace("<&- </dev/null", "<&-"))
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""  # it has not got the number of the closed stream


def test_within_a_process_without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    @console.command
    def main() -> int:
        print("out", flush=True)
        raise UserError("wrong")

    assert main() == 2


def test_a_full_disk_is_an_error(runs: str) -> None:
    done = shell(f"$PY -m tools.compare {runs}/* >/dev/full")
    assert (done.returncode, done.stderr) == (1, "[Errno 28] No space left on device: 'standard output'\n")


def test_a_terminal_that_is_gone_is_no_error_but_a_broken_disk_is() -> None:
    ours, theirs = os.openpty()
    stream = console._stream(theirs, None)
    assert stream.line_buffering
    os.close(ours)
    stream.write("nobody reads this\n")
    os.close(theirs)
    with open("/proc/self/mem", "r+b", buffering=0) as broken:  # a write at 0 is an I/O error
        disk = console._Discarding(broken.fileno(), "w", closefd=False)
        assert not disk.terminal
        with pytest.raises(OSError, match="Input/output error"):
            disk.write(b"lost")


def test_the_ends_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    def ending(error: BaseException) -> tuple[int, str]:
        @console.command
        def main() -> int:
            raise error

        return main(), capsys.readouterr().err

    assert ending(UserError("wrong")) == (2, "wrong\n")
    assert ending(OSError(5, "broken", "disk")) == (1, "[Errno 5] broken: 'disk'\n")
    assert ending(KeyboardInterrupt()) == (130, "interrupted\n")
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError())


# ---- users


@pytest.mark.parametrize("module", ["main", "tools.report", "utils.data"])
def test_a_user_without_name_and_home(tmp_path: Path, module: str) -> None:
    code = NOBODY + f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_module({module!r}, run_name='__main__', alter_sys=1)"
    done = run("-c", code, "", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []  # no folder called ~


def test_libraries_get_a_name_and_a_home() -> None:
    code = NOBODY + SHOW + "import getpass, pathlib, tempfile, os\n"
    code += "assert str(pathlib.Path.home()) == tempfile.gettempdir(); print(getpass.getuser())"
    assert run("-c", code, "").stdout == f"user{os.getuid()}\n"
    monkeypatched = {**os.environ, "LOGNAME": "ada", "HOME": "/elsewhere"}
    code = SHOW + "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    assert run("-c", code, env=monkeypatched).stdout == "ada /elsewhere\n"


def test_matplotlib_says_nothing_of_caches_that_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    surroundings = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "file" / "in")}
    code = SHOW + "import matplotlib; matplotlib.get_cachedir()"
    assert run("-c", code, env=surroundings).stderr == ""


def test_an_error_of_an_import_is_one_sentence() -> None:
    code = (
        "import os, runpy, sys, tempfile; tempfile._candidate_tempdir_list = lambda: ['/gone']\n"
        "sys.path.insert(0, '.'); os.environ['MPLCONFIGDIR'] = '/dev/null/a'\n"
        "runpy.run_module('tools.report', run_name='__main__')"
    )
    done = run("-c", code)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "MPLCONFIGDIR" in done.stderr  # matplotlib's advice


# ---- folders


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the program."""
    for name in CODE:
        source = ROOT / name
        there = tmp_path / "copy" / name
        there.parent.mkdir(exist_ok=True)
        shutil.copytree(source, there) if source.is_dir() else shutil.copy(source, there)
    return tmp_path / "copy"


@pytest.mark.slow
def test_files_and_folders_named_like_packages_are_not_taken_for_them(copy: Path) -> None:
    for name in ("torch", "numpy", "random", "json", "pydantic", "scipy"):
        (copy / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    for name in ("torchvision", "matplotlib", "tqdm"):
        (copy / name).mkdir()
        (copy / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    for words in (["main.py"], ["-m", "tools.report"], ["-m", "utils.data"]):
        done = run(*words, "--help", cwd=copy)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["tools", "backbone"])
def test_an_installed_package_with_the_name_of_ours_is_not_taken_for_it(copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "installed" / name).mkdir(parents=True)
    (tmp_path / "installed" / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    code = f"import sys; sys.path.insert(0, {str(copy)!r}); from utils.console import start; start()\n"
    code += f"sys.path.insert(0, {str(tmp_path / 'installed')!r}); import {name}; print({name}.__path__[0])"
    assert run("-c", code, cwd=copy).stdout == f"{copy / name}\n"


@pytest.mark.parametrize("option", [[], ["-P"], ["-I"]])
def test_main_is_found_from_any_folder(tmp_path: Path, option: list[str]) -> None:
    done = run(*option, str(ROOT / "main.py"), "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# ---- signals


@pytest.fixture
def at_imports(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that cannot finish its imports, started by something that ignores signals."""
    (tmp_path / "site" / "pydantic").mkdir(parents=True)
    slow = "import sys, time; print('here', flush=True); time.sleep(60)"
    (tmp_path / "site" / "pydantic" / "__init__.py").write_text(slow)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(
            [sys.executable, "main.py", "--help"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_ends_a_command_quietly_whatever_was_inherited(
    at_imports: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert at_imports.stdout
    assert at_imports.stdout.readline() == "here\n"
    begun = time.monotonic()
    at_imports.send_signal(number)
    _, errors = at_imports.communicate(timeout=30)
    assert (at_imports.returncode, errors) == (128 + number, "")
    assert time.monotonic() - begun < 10


def test_every_command_starts_before_its_other_imports() -> None:
    """Also those of its packages, which Python imports first."""
    folders = ("tools", "utils", "benchmarks")
    files = [ROOT / "main.py", *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]
    commands = [file for file in files if '\nif __name__ == "__main__":' in file.read_text()]
    assert len(commands) >= 17
    for file in commands:
        first = ast.parse(file.read_text()).body[1]  # after the docstring
        assert ast.unparse(first).startswith("if __name__ == '__main__':")
        assert ast.unparse(first).endswith("from utils.console import start\n    start()")
        for folder in file.relative_to(ROOT).parents:
            package = ROOT / folder / "__init__.py"
            assert not package.exists() or len(ast.parse(package.read_text()).body) <= 1


def test_streams_are_as_before() -> None:
    """Line by line on standard error; as a whole, when it ends, into a pipe on standard output."""
    old = io.TextIOWrapper(io.BytesIO(), "utf-16")
    assert not console._stream(1, old).line_buffering or os.isatty(1)
    assert console._stream(1, old).encoding == "utf-16"
    assert console._stream(2, old).line_buffering
