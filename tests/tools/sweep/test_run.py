"""The order of a sweep's runs: slots, retries, what is shown, what is left when it ends early."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.sweep import run as sweep_run
from tools.sweep.failures import Failure
from tools.sweep.launch import Job, Start, local, slurm
from tools.sweep.run import Execution


@dataclass
class Planned:
    """A run that writes its results at a given attempt, by a process of its own."""

    folder: Path
    seed: int
    succeeds_at: int = 1
    member: Any = field(default_factory=lambda: SimpleNamespace(name="m"))

    @property
    def name(self) -> str:
        return f"m-s{self.seed}"

    def finished(self) -> Path | None:
        return self.folder if (self.folder / self.name).exists() else None

    def command(self) -> list[str]:
        script = (
            "import sys, pathlib; count = pathlib.Path(sys.argv[1] + '.tries'); old = count.exists()"
            " and count.read_text() or ''; count.write_text(old + 'x'); print('attempt', len(old) + 1)\n"
            "if len(old) + 1 < int(sys.argv[2]): sys.exit('no luck')\n"
            "pathlib.Path(sys.argv[1]).touch()"
        )
        return [sys.executable, "-c", script, str(self.folder / self.name), str(self.succeeds_at)]


class Watched:
    """Notes every job, and how many were at work."""

    def __init__(self, slots: int) -> None:
        self._start = local(slots)
        self.jobs: list[Job] = []
        self.most = 0

    def __call__(self, command: Sequence[str], log: Path, slot: int) -> Job:
        self.jobs.append(self._start(command, log, slot))
        self.most = max(self.most, sum(not job.ended() for job in self.jobs))
        return self.jobs[-1]


def execute(runs: Sequence[Any], start: Start, slots: int, logs: Path) -> Execution:
    execution = Execution(runs, start, slots, logs)
    execution.to_end()
    return execution


def test_a_run_that_fails_is_tried_once_more_and_the_others_go_on(tmp_path, capsys):
    runs = [Planned(tmp_path, 1, succeeds_at=3), Planned(tmp_path, 2, succeeds_at=2), Planned(tmp_path, 3)]
    execution = execute(runs, local(1), 1, tmp_path / "logs")
    log = str(tmp_path / "logs" / "m-s1" / "attempt2.log")
    assert execution.failed == {"m-s1": Failure("m", 1, "exit code 1", "no luck", log)}
    assert [bool(run.finished()) for run in runs] == [False, True, True]
    lines = capsys.readouterr().err.splitlines()
    shown = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    again = "failed, will be tried again"
    assert shown == [again, again, "finished", "failed", "finished", shown[-1]]
    assert shown[-1] == "2 of 3 runs done, 0 running, 0 left, 1 failed"
    last = lines.index(f"failed: m, seed 1: exit code 1; the end of {log}:")
    assert lines[last + 1 : last + 3] == ["    attempt 2", "    no luck"]
    assert (tmp_path / "logs" / "m-s1" / "attempt1.log").read_text() == "attempt 1\nno luck\n"


def test_a_later_call_keeps_the_output_of_earlier_ones_and_tries_again(tmp_path):
    runs = [Planned(tmp_path, 1, succeeds_at=3)]
    assert execute(runs, local(1), 1, tmp_path / "logs").failed.keys() == {"m-s1"}
    assert execute(runs, local(1), 1, tmp_path / "logs").failed == {}
    assert {file.name: file.read_text()[:9] for file in (tmp_path / "logs" / "m-s1").iterdir()} == {
        f"attempt{number}.log": f"attempt {number}" for number in (1, 2, 3)
    }


def test_the_longest_name_of_a_directory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(Planned, "name", "n" * 245)  # the run writes a file with a longer name
    assert execute([Planned(tmp_path, 1)], local(1), 1, tmp_path / "logs").failed == {}


def test_no_more_run_at_a_time_than_there_are_slots(tmp_path):
    watched = Watched(2)
    execute([Planned(tmp_path, seed) for seed in range(5)], watched, 2, tmp_path / "logs")
    assert len(watched.jobs) == 5
    assert watched.most == 2


def test_a_command_that_ends_well_without_results_has_failed(tmp_path):
    run = Planned(tmp_path, 1)
    run.command = lambda: [sys.executable, "-c", ""]  # type: ignore[method-assign]
    failed = execute([run], local(1), 1, tmp_path / "logs").failed["m-s1"]
    assert (failed.ended, failed.error) == ("exit code 0", "it wrote nothing")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whatever_ends_it_early_ends_the_runs(tmp_path, monkeypatch, error):
    run = Planned(tmp_path, 1)
    run.command = lambda: [sys.executable, "-c", "import time; time.sleep(60)"]  # type: ignore[method-assign]
    watched = Watched(1)

    def interrupt(self: Execution) -> str:
        raise error

    monkeypatch.setattr(Execution, "status", interrupt)
    with pytest.raises(error):
        execute([run], watched, 1, tmp_path / "logs")
    assert watched.jobs[0].ended() == "ended by SIGTERM"


@pytest.mark.slow
def test_submitit_s_local_executor_runs_and_retries_too(tmp_path):
    parameters = {"timeout_min": 5, "gpus_per_node": 0, "cpus_per_task": 1}
    start = slurm(tmp_path / "slurm", parameters, cluster="local")
    runs = [Planned(tmp_path, 1, succeeds_at=2), Planned(tmp_path, 2)]
    assert execute(runs, start, 2, tmp_path / "logs").failed == {}
    assert [bool(run.finished()) for run in runs] == [True, True]
    assert (tmp_path / "logs" / "m-s1" / "attempt1.log").read_text() == "attempt 1\nno luck\n"


# ---- how far it is


@dataclass
class Clock:
    """The clock of the sweep, to be set."""

    now: float = 1000.0


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sweep_run.time, "monotonic", lambda: clock.now)
    return clock


def begun(folder: Path, runs: int, slots: int, **options: Any) -> tuple[Execution, list[Path], dict[Path, str]]:
    """An execution whose first jobs have started: with their logs, and how each has ended, to be set."""
    ends: dict[Path, str] = {}
    logs: list[Path] = []

    def start(command: Sequence[str], log: Path, slot: int) -> Job:
        logs.append(log)
        return Job(lambda: ends.get(log, ""), lambda: None, lambda: None)

    execution = Execution([Planned(folder, seed) for seed in range(runs)], start, slots, folder / "logs", **options)
    execution._fill()
    return execution, logs, ends


def test_the_status_counts_what_is_done_running_left_and_failed(tmp_path, clock):
    execution, logs, ends = begun(tmp_path, runs=5, slots=2, kept=3)
    assert execution.status() == "3 of 8 runs done, 2 running, 3 left"
    (tmp_path / "m-s0").touch()  # its results
    ends[logs[0]] = "exit code 0"
    execution._take_ended()
    assert execution.status().startswith("4 of 8 runs done, 1 running, 3 left")
    execution.failed["m-s9"] = Failure("m", 9, "", "", "")
    assert execution.status().startswith("3 of 8 runs done, 1 running, 3 left, 1 failed")


def test_the_time_left_follows_from_runs_that_finished_and_from_how_long_others_have_been_at_work(tmp_path, clock):
    execution, logs, ends = begun(tmp_path, runs=4, slots=2)
    clock.now += 60
    assert "to go" not in execution.status()
    (tmp_path / "m-s0").touch()
    ends[logs[0]] = "exit code 0"
    execution._take_ended()
    execution._fill()
    # the second has run for 60 s like the first, the third begins, and the fourth goes to the slot that is free now
    assert execution.status() == "1 of 4 runs done, 2 running, 1 left; about 1 min to go"
    clock.now += 20
    assert execution.status() == "1 of 4 runs done, 2 running, 1 left; about 1 min to go"


def test_the_time_left_follows_from_the_forecasts_of_runs_at_work(tmp_path, clock):
    execution, logs, _ = begun(tmp_path, runs=3, slots=1)
    clock.now += 100
    logs[0].write_text("12:00:00 50 % of the run is done, about 1 min 40 s left\nepoch 2\n")
    assert execution.status().endswith("; about 8 min 20 s to go")  # 100 s, and twice 200 s
    clock.now += 40
    assert execution.status().endswith("; about 7 min 40 s to go")
    with logs[0].open("a") as log:
        log.write("12:00:40 60 % of the run is done, about 3 min left\n")
    assert execution.status().endswith("; about 13 min 40 s to go")  # 180 s, and twice 320 s


def test_without_a_terminal_the_status_is_told_once_a_minute_and_at_the_end(tmp_path, clock, capsys):
    execution, logs, ends = begun(tmp_path, runs=4, slots=4)
    for seed, seconds in enumerate([10, 55, 5, 20]):
        clock.now += seconds
        (tmp_path / f"m-s{seed}").touch()
        ends[logs[seed]] = "exit code 0"
        execution._take_ended()
    assert capsys.readouterr().err.splitlines() == [
        "finished: m, seed 0 in 10 s",
        "finished: m, seed 1 in 1 min 5 s",
        "2 of 4 runs done, 2 running, 0 left",
        "finished: m, seed 2 in 1 min 10 s",
        "finished: m, seed 3 in 1 min 30 s",
        "4 of 4 runs done, 0 running, 0 left",
    ]


def test_on_a_terminal_one_line_that_fits_is_written_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    execute([Planned(tmp_path, 1)], local(1), 1, tmp_path / "logs")
    told = capsys.readouterr().err
    assert "\r0 of 1 runs done, 1 running, " in told
    assert "1 running, 0" not in told
    assert told.count("\n") == 1  # after "finished"
