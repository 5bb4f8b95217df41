"""`tools.sweep --plan`: one run of each kind is measured by main.py, here a stand-in, and the others count as it."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from tools.sweep import __main__ as sweep
from tools.sweep import estimate as sweep_estimate
from tools.sweep import plan as sweep_plan
from tools.sweep.plan import read_plan
from utils.runs.estimate import Estimate, Span, TaskEstimate, Totals

MINUTES = 60.0


def text(minutes: float) -> str:
    span, none = Span(minutes * MINUTES, 3 * minutes * MINUTES), Span(1, 1)
    totals = Totals(span, Span(2**30, 2**30), Span(2**20, 2**21))
    return str(
        Estimate([TaskEstimate(1, 1, none, none, span)], totals, 3, (none, none, none), [], 0, 0, None, "measured")
    )


STAND_IN = """
import os, sys
flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:] if "=" in argument)
assert flags["plan"] == "true"
with open({log!r}, "a") as file:
    print(flags["batch_size"], os.environ["OMP_NUM_THREADS"], file=file)
if flags["batch_size"] == "13":
    sys.exit("unlucky")
print({texts!r}[flags["batch_size"]])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a base and a sweep of two members with two seeds."""
    (tmp_path / "base.json").write_text('{"dataset": "cub"}')
    write_sweep(tmp_path)
    return tmp_path


def write_sweep(folder: Path, **keys: object) -> None:
    values = {"base": "base.json", "seeds": [1, 2], "grid": {"batch_size": [40, 60]}, **keys}
    (folder / "s.json").write_text(json.dumps(values))


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(folder: Path, *options: str) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sweep_plan, "PROJECT", folder)
        arguments = [str(folder / "s.json"), "--output_dir", str(folder / "runs"), "--jobs", "2", *options]
        code = sweep.main(arguments)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def measured(folder: Path) -> Path:
    """The runs that were measured: batch size and threads."""
    log = folder / "measured.txt"
    texts = {size: text(minutes) for size, minutes in (("40", 10.0), ("60", 20.0))}
    (folder / "main.py").write_text(STAND_IN.format(log=str(log), texts=texts))
    return log


def test_one_run_of_each_kind_is_measured(folder: Path, measured: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_sweep(folder, grid={"batch_size": [40, 60], "init_lr": [0.1, 0.2]}, seeds=[1, 2, 3])
    done = run(folder, "--plan")
    assert (done.returncode, done.stderr) == (0, "12 runs, 0 finished already\n")
    assert done.stdout.splitlines() == [
        "6 runs of about 10 min to 30 min, disk 1 MiB to 2 MiB: batch_size=40, init_lr=0.1 and 1 more",
        "6 runs of about 20 min to 1 h, disk 1 MiB to 2 MiB: batch_size=60, init_lr=0.1 and 1 more",
        "12 runs to make: about 3 h to 9 h one after the other, 1 h 30 min to 4 h 30 min with 2 at a time",
        "memory: about 1 GiB for each of them",
        "disk: about 12 MiB to 24 MiB",
        "measured: one run of each line; the runs of a line differ in keys that do not change the work",
    ]
    assert measured.read_text() == "40 1\n60 1\n"
    assert not (folder / "runs").exists()


def test_finished_runs_do_not_count(folder: Path, measured: Path) -> None:
    for planned in read_plan(folder / "s.json", str(folder / "runs"))[::2]:
        (folder / "runs" / planned.name).mkdir(parents=True)
        (folder / "runs" / planned.name / "results.json").touch()
    assert run(folder, "--plan").stdout.splitlines()[0].startswith("2 runs of about 20 min")
    for planned in read_plan(folder / "s.json", str(folder / "runs"))[1::2]:
        (folder / "runs" / planned.name).mkdir(parents=True)
        (folder / "runs" / planned.name / "results.json").touch()
    assert run(folder, "--plan").stdout == "nothing is left to do\n"


def test_kinds_that_are_not_measured_count_as_the_mean(folder: Path, measured: Path, monkeypatch) -> None:
    monkeypatch.setattr(sweep_estimate, "LONGEST", 0.0)
    lines = run(folder, "--plan").stdout.splitlines()
    assert lines[1].startswith("4 runs to make: about 40 min to 2 h one after the other")
    assert lines[-1] == "not measured: 2 more runs, which count as the mean of these, as measuring ends after about 0 s"


def test_what_main_refuses_is_said(folder: Path, measured: Path) -> None:
    write_sweep(folder, grid={"batch_size": [40, 13]})
    done = run(folder, "--plan")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "batch_size=13: unlucky"


def test_plan_is_a_flag_of_the_sweep_and_not_a_key_of_its_runs(folder: Path) -> None:
    write_sweep(folder, changes={"plan": True})
    done = run(folder, "--plan")
    assert done.returncode == 2
    assert "use the flag --plan of the sweep" in done.stderr
    (folder / "base.json").write_text(json.dumps({"dataset": "cub", "plan": True}))
    write_sweep(folder)
    assert "plan = true: use the flag --plan of the sweep" in run(folder, "--plan").stderr
