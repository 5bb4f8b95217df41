"""The command `python -m tools.sweep`: with a stand-in for main.py, and once with real runs."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from tools.sweep import __main__ as sweep
from tools.sweep import plan as sweep_plan
from tools.sweep.launch import local
from tools.sweep.plan import read_plan

ROOT = Path(__file__).parents[3]
# instead of training: a finished run whose accuracy follows from batch size and seed; func_epoch 13 fails
STAND_IN = f"""
import os, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from finished_runs import write_run
from utils.config.flags import parse
path, flags = parse(sys.argv[1:])
if flags["func_epoch"] == 13:
    print("in the middle", file=sys.stderr)
    sys.exit("unlucky")
if flags.get("dry_run"):
    sys.exit(0)
while flags["func_epoch"] == 99:
    time.sleep(0.1)
from pathlib import Path
seed, size = flags.pop("seed")[0], flags["batch_size"]
flags["environment"] = {{"threads": int(os.environ["OMP_NUM_THREADS"])}}
write_run(Path(flags["output_dir"]), path.stem, seed, [[size], [size - 9, size + seed]], sizes=[10, 10], **flags)
"""
# instead of training: waits for the request to stop, and then saves a file as a run saves its state
KILLED = """
import os, pathlib, time
from utils.stopping import stop_requests, stop_with_sweep
here = pathlib.Path(__file__).parent
with stop_requests() as request:
    stop_with_sweep()
    (here / f"up-{os.getpid()}").touch()
    while request.signal is None:
        time.sleep(0.05)
    (here / f"saved-{os.getpid()}").touch()
"""
# of the stand-in's process, so that nothing is patched in a subprocess
PROGRAM = """
import sys
from pathlib import Path
from tools.sweep import __main__ as sweep
from tools.sweep import plan as sweep_plan
sweep_plan.PROJECT = Path(sys.argv[1])
sweep.write_page = lambda comparison, target: None  # the stand-in's runs have too little for a page
code = sweep.main(sys.argv[2:])
assert not sys.modules.keys() & {"torch", "timm", "submitit"}, "the sweep imported what only runs need"
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with the stand-in, a base and a sweep of two members with two seeds."""
    (tmp_path / "main.py").write_text(STAND_IN)
    (tmp_path / "base.json").write_text('{"dataset": "cub"}')
    write_sweep(tmp_path)
    return tmp_path


def write_sweep(folder: Path, func_epoch: int = 1, **keys) -> None:
    values = {"base": "base.json", "seeds": [1, 2], "changes": {"func_epoch": func_epoch}}
    (folder / "s.json").write_text(json.dumps({**values, "grid": {"batch_size": [40, 60]}, **keys}))


def command(folder: Path, *options: str) -> list[str]:
    program = [sys.executable, "-c", PROGRAM, str(folder), str(folder / "s.json")]
    return [*program, "--output_dir", str(folder / "runs"), "--jobs", "2", *options]


def run_alone(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *options), cwd=ROOT, capture_output=True, text=True, check=False)


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """As `run_alone`, without a process of its own, which would import everything."""
    arguments, out, err = command(folder, *options)[4:], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(ROOT)
        patch.setattr(sweep_plan, "PROJECT", folder)
        patch.setattr(sweep, "write_page", lambda comparison, target: None)
        code = sweep.main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def test_what_is_missing_runs_and_the_comparison_has_the_members_names(folder):
    done = run_alone(folder)
    assert done.returncode == 0, done.stderr
    assert "4 runs, 0 finished already" in done.stderr
    assert done.stderr.count("finished: batch_size=") == 4
    assert "Difference to batch_size=40 on equal seeds" in done.stdout
    text = (folder / "runs" / "s" / "table.md").read_text()
    assert text.startswith("# s\n\n")
    assert "| key | batch\\_size=40 | batch\\_size=60 |" in text.replace("  ", " ")
    assert {path.name for path in (folder / "runs").iterdir() if "-" not in path.name} == {"s", ".sweep.lock"}


@pytest.mark.parametrize(
    ("seeds", "counts"), [(["1", "2", "3"], "6 runs, 4 finished already"), (["3"], "2 runs, 0 finished already")]
)
def test_a_seed_can_be_added_and_the_tables_are_made_anew_over_all(folder, seeds, counts):
    assert run(folder).returncode == 0
    again = run(folder, "--seed", *seeds)
    assert counts in again.stderr
    assert again.stderr.count("finished: batch_size=") == 2
    assert (folder / "runs" / "s" / "table.md").read_text().count("1, 2, 3 |") == 2
    write_sweep(folder, seeds=[1, 2, 3, 4])
    assert "8 runs, 6 finished already" in run(folder).stderr


def threads_of(folder: Path) -> list[int]:
    files = sorted((folder / "runs").glob("*-s*/environment.json"))
    return [json.loads(file.read_text())["threads"] for file in files]


def test_runs_that_are_added_later_get_as_many_threads_as_the_first(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "threads" not in run(folder).stderr
    assert threads_of(folder) == [3] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as on a machine with other slots
    again = run(folder, "--seed", "3")
    assert "each run gets 3 threads, as when the sweep began, not 1" in again.stderr
    assert threads_of(folder) == [3] * 6
    (folder / "runs" / "s" / "threads.json").write_text("{")
    run(folder, "--seed", "4")
    assert sorted(threads_of(folder)) == [1, 1, *[3] * 6]
    assert json.loads((folder / "runs" / "s" / "threads.json").read_text()) == {"threads": 1}


def test_threads_are_shared_among_all_runs_of_a_sweep_whatever_is_left_of_it(folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for attribute in ("tools.sweep.launch.cores", "tools.sweep.__main__.cores"):
        monkeypatch.setattr(attribute, lambda: 8)
    monkeypatch.setattr(sweep, "visible_gpus", list)
    plan = read_plan(folder / "s.json", str(folder / "runs"))  # 4 runs
    made = []
    monkeypatch.setattr(sweep, "local", lambda threads, gpus: made.append(threads))
    jobs = argparse.Namespace(launcher="local", jobs=None)
    slots = [sweep._launcher(plan, plan[left:], folder / "x", jobs)[1] for left in (3, 0)]
    assert (made, slots) == ([2, 2], [1, 4])
    (folder / "x" / "threads.json").write_text('{"threads": 4}')  # of a machine with more cores, or fewer runs
    assert sweep._launcher(plan, plan, folder / "x", jobs)[1] == 2


def test_a_dry_run_lists_the_runs_and_starts_none(folder):
    listed = run(folder, "--dry-run")
    names = [planned.name for planned in read_plan(folder / "s.json", str(folder / "runs"))]
    assert listed.returncode == 0
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [["start", name] for name in names]
    assert not (folder / "runs").exists()
    for name, file in zip(names, ["resume/000.state", "results.json"], strict=False):
        (folder / "runs" / name / file).parent.mkdir(parents=True)
        (folder / "runs" / name / file).touch()
    states = [line.split()[0] for line in run(folder, "--dry-run").stdout.splitlines()]
    assert states == ["resume", "finished", "start", "start"]


def test_a_dry_run_says_what_main_would_refuse(folder):
    write_sweep(folder, func_epoch=13)
    done = run(folder, "--dry-run")
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 4
    both = "batch_size=40 | batch_size=60"
    assert done.stderr.splitlines() == [
        "4 runs, 0 finished already",
        f"{both}: in the middle",
        f"{both}: unlucky",
    ]


UNLUCKY = {"name": "unlucky", "changes": {"batch_size": 50, "func_epoch": 13}}


def test_runs_that_fail_twice_stand_in_the_tables_and_are_tried_again(folder):
    write_sweep(folder, grid=None, list=[{"name": "lucky", "changes": {"batch_size": 60}}, UNLUCKY], seeds=[1])
    done = run(folder)
    assert done.returncode == 1
    assert done.stderr.count("unlucky, seed 1") == 2  # tried again, failed
    assert "    in the middle\n    unlucky\n" in done.stderr
    log = f"{folder}/runs/s/logs/{read_plan(folder / 's.json', str(folder / 'runs'))[1].name}/attempt2.log"
    assert Path(log).read_text() == "in the middle\nunlucky\n"
    row = ["unlucky", "1", "exit code 1", "unlucky", log]
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[:1]] == ["Failed runs"]
    assert [cell.strip() for cell in done.stdout.splitlines()[2].strip().split("  ") if cell] == row
    assert f"| {' | '.join(row)} |" in (folder / "runs" / "s" / "table.md").read_text().replace("\\_", "_")

    assert "; failed before: unlucky" in run(folder, "--dry-run").stdout
    (folder / "main.py").write_text(STAND_IN.replace("== 13", "== 14"))
    again = run(folder)
    assert again.returncode == 0
    assert "2 runs, 1 finished already, 1 failed before: tried again" in again.stderr
    assert "Failed runs" not in again.stdout
    assert "Failed runs" not in (folder / "runs" / "s" / "table.md").read_text()


def test_where_all_runs_fail_the_table_says_why(folder):
    write_sweep(folder, func_epoch=13, seeds=[1])
    done = run(folder)
    assert done.returncode == 1
    assert done.stdout.startswith("Failed runs\n")
    assert done.stdout.count("unlucky") == 2
    assert "Mean" not in (folder / "runs" / "s" / "table.md").read_text()


AS_READER = "sweep.can_write = lambda folder: False; sweep.lock = None\n"  # to lock or to write would end with an error


def test_who_may_only_read_the_folder_gets_the_tables_of_finished_runs(folder):
    assert run(folder).returncode == 0
    pages = [folder / "runs" / "s" / "table.md", folder / "runs" / ".sweep.lock"]
    kept = [page.stat().st_mtime_ns for page in pages]
    program = [sys.executable, "-c", PROGRAM.replace("code =", f"{AS_READER}code ="), *command(folder)[3:]]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "Difference to batch_size=40 on equal seeds" in done.stdout) == (0, True), done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"not written, no permission in {folder / 'runs' / 's'}: ")
    assert [page.stat().st_mtime_ns for page in pages] == kept


def test_a_base_whose_output_dir_is_not_used_is_named(folder):
    (folder / "base.json").write_text('{"dataset": "cub", "output_dir": "elsewhere"}')
    assert f'base.json: its output_dir "elsewhere" is not used; the runs go to {folder}/runs, ' in run(folder).stderr
    (folder / "base.json").write_text(json.dumps({"dataset": "cub", "output_dir": f"{folder}/runs/"}))
    assert "is not used" not in run(folder).stderr


def test_problems_are_listed_before_anything_runs(folder):
    write_sweep(folder, grid={"batch_sise": [1]})
    done = run(folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean batch_size?" in done.stderr
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("sent", "jobs"), [(signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGHUP, 1)])
def test_ctrl_c_ends_the_runs_and_the_folder_is_free_again(folder, sent, jobs):
    write_sweep(folder, func_epoch=99)
    process = subprocess.Popen(command(folder, "--jobs", str(jobs)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    logs = folder / "runs" / "s" / "logs"
    deadline = time.monotonic() + 30
    try:
        while len(list(logs.glob("*/*.log"))) < jobs:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        beside = run_alone(folder)
        assert (beside.returncode, beside.stdout) == (2, "")
        assert "another sweep runs in" in beside.stderr
        process.send_signal(sent)
        _, errors = process.communicate(timeout=100)
    finally:
        if process.poll() is None:  # a test that fails leaves no process behind
            process.terminate()
            process.communicate()
    assert process.returncode == 130
    assert "run the same command to resume" in errors
    assert not children_in(folder)


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked up there")
def test_the_runs_of_a_sweep_that_is_killed_stop_within_ten_seconds(folder):
    (folder / "main.py").write_text(f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n" + KILLED)
    process = subprocess.Popen(command(folder), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while len(list(folder.glob("up-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while children_in(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(list(folder.glob("saved-*"))) == 2


def children_in(folder: Path) -> list[str]:
    """The processes whose command line names a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if os.fsencode(folder / "main.py") in words:
            found.append(entry.name)
    return found


@pytest.mark.parametrize(
    "options", [["--jobs", "0"], ["--jobs", "two"], ["--slurm", "partition"], ["--launcher", "bus"]]
)
def test_a_wrong_option_is_refused(options, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main(["s.json", *options])
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_values_for_slurm_are_numbers_where_they_look_like_it():
    options = sweep._parser().parse_args(["s.json", "--slurm", "timeout_min=5", "slurm_partition=gpu"])
    assert dict(options.slurm) == {"timeout_min": 5, "slurm_partition": "gpu"}


# ---- with real runs

TINY = {
    "dataset": "npz",
    "data_root": "images.npz",
    "backbone_type": "vit_tiny_patch16_224_adapter",
    "pretrained": False,
    "backbone_kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "device": "cpu",
    "num_workers": 0,
    "init_cls": 2,
    "increment": 2,
    "ffn_adapter_type": "nested_lora",
    "nested_lora_rank": 2,
    "adapt_start_layer": 1,
    "adapt_end_layer": 1,
    "batch_size": 8,
    "func_epoch": 1,
    "rd_epoch": 1,
    "rd_dim": 4,
}


def fails_once(threads, gpus):
    """The first run it starts is given a flag that main.py refuses."""
    start, broken = local(threads, gpus), ["--eval=true"]
    return lambda command, log, slot: start([*command, *(broken.pop() for _ in broken[:])], log, slot)


@pytest.mark.slow
def test_a_sweep_of_real_runs_of_which_one_fails_at_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMA_DATA_ROOT", raising=False)
    monkeypatch.setattr(sweep, "local", fails_once)
    rng, labels = np.random.RandomState(0), np.repeat(np.arange(4), 8)
    pixels = rng.randint(0, 255, size=(len(labels), 20, 20, 3)).astype(np.uint8)
    np.savez("images.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    Path("tiny.json").write_text(json.dumps(TINY))
    sweep_file = {"base": "tiny.json", "seeds": [1], "grid": {"nested_lora_update_interval_slow": [1, 2]}}
    Path("tiny_sweep.json").write_text(json.dumps(sweep_file))
    arguments = ["tiny_sweep.json", "--output_dir", "runs", "--jobs", "2"]
    second = Path("runs") / read_plan(Path("tiny_sweep.json"), "runs")[1].name
    second.mkdir(parents=True)
    (second / "config.json").write_text("left by a run that was killed")

    assert sweep.main(arguments) == 0
    told = capsys.readouterr()
    assert told.err.count("failed, will be tried again: update_interval_slow=1, seed 1") == 1
    assert "    eval = true (flag --eval)" in told.err
    assert told.err.count("finished: ") == 2
    assert "update_interval_slow=2" in told.out
    assert "update_interval_slow=2" in Path("runs/tiny_sweep/report.html").read_text()
    assert json.loads((second / "config.json").read_text())["nested_lora_update_interval_slow"] == 2

    monkeypatch.setattr(sweep, "write_page", lambda comparison, target: None)
    before = (second / "results.json").stat().st_mtime_ns
    assert sweep.main(arguments) == 0
    assert "2 runs, 2 finished already" in capsys.readouterr().err
    assert (second / "results.json").stat().st_mtime_ns == before
