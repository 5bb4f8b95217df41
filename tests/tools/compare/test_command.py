"""The command line as a user meets it: a process, its exit code and what it prints."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from finished_runs import PilotRun, random_hits, write_run

from tools.compare.__main__ import FORMATS, main

ROOT = Path(__file__).parents[3]
TORCH_LOADED = 99
PROGRAM = f"""
import sys
from tools.compare.__main__ import main
code = main(sys.argv[1:])
sys.exit({TORCH_LOADED} if sys.modules.keys() & {{"torch", "torchvision", "timm", "matplotlib"}} else code)
"""


def cli(*argv: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; the exit code is another one if that loaded torch."""
    command = [sys.executable, "-c", PROGRAM, *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    """Two runs of ours, and a log whose groups are sorted as text."""
    runs = [write_run(tmp_path, name, 1, [[90], [80, 70]], func_epoch=n) for name, n in (("a", 1), ("b", 2))]
    log = tmp_path / "pilot_1.log"
    log.write_text(PilotRun(random_hits(5, [10] * 12), [10] * 12, sort_as_text=True, seed=1).text())
    return [*runs, log]


def test_a_comparison_of_runs_and_a_log_in_a_process_without_torch(paths):
    done = cli(*paths, "--baseline", paths[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert "Difference to a on equal seeds" in done.stdout
    assert "it sorts the groups as text (110-119 before 20-29)" in done.stdout


def test_csv_keeps_warnings_off_its_table(paths):
    done = cli(*paths, "--format", "csv")
    assert done.returncode == 0
    assert len(list(csv.DictReader(io.StringIO(done.stdout), strict=True))) == 3
    assert "warning: 3 configurations (a, b, pilot): only one seed" in done.stderr


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_every_configuration(paths, name, capsys):
    assert main([*map(str, paths), "--format", name]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n")
    assert "pilot" in out
    if name == "json":
        assert [group["name"] for group in json.loads(out)["groups"]] == ["a", "b", "pilot"]


def test_what_the_user_can_put_right_ends_with_code_2_and_names_the_file(paths, capsys):
    (paths[0] / "results.json").unlink()
    assert main([str(paths[0])]) == 2
    assert f"{paths[0]}: left out, the run is unfinished" in capsys.readouterr().err
    assert main([str(paths[1]), "--baseline", "bb"]) == 2
    assert "did you mean b" in capsys.readouterr().err


def test_everything_under_logs_may_be_named_though_sweeps_lie_there_too(paths, capsys):
    write_run(paths[0].parent / "sweeps", "c", 1, [[90]])
    assert main([*map(str, sorted(paths[0].parent.iterdir()))]) == 0
    out = capsys.readouterr().out
    assert f"- {paths[0].parent / 'sweeps'}: left out, it is not a run directory" in out
    assert main([str(paths[0].parent / "sweeps")]) == 2
    assert capsys.readouterr().err.startswith("there is no run to compare\n")


def test_a_mistyped_run_offers_the_nearest(paths):
    done = cli(str(paths[0]).replace("/a-", "/aa-"))
    assert done.returncode == 2
    assert f"did you mean {paths[0].name}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [[], ["a", "--format", "html"], ["a", "--baseline"]])
def test_a_wrong_command_line_ends_with_code_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2


def test_help_says_what_a_run_is(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "run directory or log file" in capsys.readouterr().out
