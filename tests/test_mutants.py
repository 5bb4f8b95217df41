"""The mutation run, on a toy project; and its document, which explains what no test noticed."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mutants import EXPLAINED, RECORD, ROOT, mutants_of, read, report

from tools.generated import read_part

FILES = {
    "toy/sums.py": '''"""Sums."""
import logging

logger = logging.getLogger("1")


def total(count: int = 2) -> int:
    """Sum of 1 to count."""
    result = 0
    while count > 0:
        logger.info("%d", 7)
        result, count = result + count, count - 1
    return result


def large(value: int) -> bool:
    return value > 9
''',
    "tests/toy/test_sums.py": """from toy.sums import large, total


def test_total() -> None:
    assert total(3) == 6


def test_large() -> None:
    assert large(11) and not large(8)
""",
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = ["--import-mode=importlib"]\n',
    "page.md": "<!-- mutants begin -->\n<!-- mutants end -->\n",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "temporary").mkdir()
    for name, content in FILES.items():
        file = tmp_path / "toy" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path / "toy"


def start(toy: Path, *options: str) -> subprocess.Popen[str]:
    fixed = [
        "--root",
        str(toy),
        "--document",
        str(toy / "page.md"),
        "--tests",
        "tests",
        "--patience",
        "10",
        "--preload",
        "hypothesis.core",  # pytest's option for its seed imports it in every trial otherwise
    ]
    command = [sys.executable, str(ROOT / "tests/mutants.py"), "toy", *fixed, *options]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(toy.parent / "temporary")}
    return subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True)


def outcomes(toy: Path) -> dict[str, str]:
    record = json.loads((toy / RECORD).read_text())
    return {entry["id"].removeprefix("toy/sums.py:"): entry["outcome"] for entry in record["mutants"]}


@pytest.mark.slow
def test_what_tests_notice_what_they_do_not_and_what_never_ends_is_told_apart(toy: Path) -> None:
    with start(toy) as first:
        printed = first.communicate()[0]
    assert first.returncode == 1, printed
    assert outcomes(toy) == {
        "total:constant:1": "survived",  # the default, which no test uses
        "total:constant:2": "killed",
        "total:constant:3": "killed",
        "total:constant:4": "killed",
        "total:comparison:1": "survived",  # adds 0 once more
        "total:arithmetic:1": "killed",
        "total:arithmetic:2": "timeout",
        "large:comparison:1": "survived",
        "large:constant:1": "survived",
    }
    assert not list((toy.parent / "temporary").iterdir())
    assert (toy / "toy/sums.py").read_text() == FILES["toy/sums.py"]
    # Again: only survivors are tried, without those that were explained.
    why = {"toy/sums.py:total:constant:1": "a default | for people", "toy/sums.py:total:comparison:1": "adds 0"}
    (toy / EXPLAINED).write_text(json.dumps(why))
    test = toy / "tests/toy/test_sums.py"
    test.write_text(test.read_text() + "    assert not large(9) and large(10)\n")
    with start(toy) as second:
        assert second.communicate()[0].startswith("2 to try")
    assert second.returncode == 0
    assert r"| toy/sums.py, total | `2` | `(3)` | a default \| for people |" in (toy / "page.md").read_text()


@pytest.mark.slow
def test_ctrl_c_leaves_the_record_and_nothing_else(toy: Path) -> None:
    names = ("toy/sums.py:large:constant:1", "toy/sums.py:total:arithmetic:2")
    with start(toy, "--patience", "1000", "--only", *names) as process:
        while not (toy / RECORD).exists():
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := children.read_text().split()):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 128 + signal.SIGINT
    assert not Path("/proc", child[0]).exists()
    assert outcomes(toy) == {"large:constant:1": "survived"}
    assert not list((toy.parent / "temporary").iterdir())


def test_every_change_is_python_and_no_text_is_changed() -> None:
    for path in sorted((ROOT / "models").glob("*.py")):
        source = path.read_bytes()
        unchanged = ast.dump(ast.parse(source))
        for mutant in list(mutants_of(ROOT, path.relative_to(ROOT).as_posix()))[::6]:  # all kinds are among them
            changed = source[: mutant.start] + mutant.new.encode() + source[mutant.end :]
            assert ast.dump(ast.parse(changed)) != unchanged, mutant


def test_the_document_is_made_of_the_record_and_explains_all_that_survived() -> None:
    record, explained = read(ROOT / RECORD, None), read(ROOT / EXPLAINED, None)
    assert read_part(ROOT / "docs/reliability.md", "mutants") == report(record, explained).rstrip() + "\n"
    assert sorted(explained) == sorted(entry["id"] for entry in record["mutants"] if entry["outcome"] == "survived")
