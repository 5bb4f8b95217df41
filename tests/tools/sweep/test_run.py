"""The order of a sweep's runs: slots, retries, what is shown, what is left when it ends early."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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
    (failed,) = execution.failed
    assert (failed.run, failed.number) == (runs[0], 2)
    assert [bool(run.finished()) for run in runs] == [False, True, True]
    lines = capsys.readouterr().err.splitlines()
    shown = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    again = "failed, will be tried again"
    assert shown == [again, again, "finished", "failed", "finished"]
    last = lines.index(f"failed: m, seed 1: exit code 1; the end of {tmp_path}/logs/m-s1-attempt2.log:")
    assert lines[last + 1 : last + 3] == ["    attempt 2", "    no luck"]
    assert (tmp_path / "logs" / "m-s1-attempt1.log").read_text() == "attempt 1\nno luck\n"


def test_no_more_run_at_a_time_than_there_are_slots(tmp_path):
    watched = Watched(2)
    execute([Planned(tmp_path, seed) for seed in range(5)], watched, 2, tmp_path / "logs")
    assert len(watched.jobs) == 5
    assert watched.most == 2


def test_a_command_that_ends_well_without_results_has_failed(tmp_path):
    run = Planned(tmp_path, 1)
    run.command = lambda: [sys.executable, "-c", ""]  # type: ignore[method-assign]
    (failed,) = execute([run], local(1), 1, tmp_path / "logs").failed
    assert failed.tail().startswith("exit code 0;")


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
    assert execute(runs, start, 2, tmp_path / "logs").failed == []
    assert [bool(run.finished()) for run in runs] == [True, True]
    assert (tmp_path / "logs" / "m-s1-attempt1.log").read_text() == "attempt 1\nno luck\n"


# ---- how far it is


def test_the_time_left_follows_from_the_runs_of_this_sweep_that_have_ended(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    execution = Execution([Planned(tmp_path, seed) for seed in range(3)], local(1), 1, tmp_path / "logs", kept=2)
    now += 60
    assert execution.status() == "2 of 5 runs done [01:00<?]"
    execution._waiting.pop()
    assert execution.status() == "3 of 5 runs done [01:00<02:00]"


def test_each_end_is_told_with_how_far_the_sweep_is(tmp_path, capsys):
    Execution([Planned(tmp_path, seed) for seed in (1, 2)], local(1), 1, tmp_path / "logs", kept=1).to_end()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"finished: m, seed 1 in \d s; 2 of 3 runs done \[00:0\d<00:0\d\]", first)
    assert re.fullmatch(r"finished: m, seed 2 in \d s; 3 of 3 runs done \[00:0\d<00:00\]", second)


def test_on_a_terminal_one_line_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    execute([Planned(tmp_path, 1)], local(1), 1, tmp_path / "logs")
    assert "\r0 of 1 runs done [00:00<?]" in capsys.readouterr().err
