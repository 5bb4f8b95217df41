"""The order of a sweep's runs: slots, retries, what is shown, what is left when it ends early."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.sweep.launch import ClusterLauncher, LocalLauncher
from tools.sweep.run import Execution, Progress, duration

NO_RUNS: list[Path] = []


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


class Watched(LocalLauncher):
    """Notes which slot each run got, and how many were at work."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.jobs: list[Any] = []
        self.most = 0

    def start(self, command: Sequence[str], log: Path, slot: int) -> Any:
        self.jobs.append(super().start(command, log, slot))
        self.most = max(self.most, sum(not job.ended() for job in self.jobs))
        return self.jobs[-1]


def execute(runs: Sequence[Any], launcher: Any, logs: Path) -> Execution:
    execution = Execution(runs, launcher, logs, Progress(len(runs), launcher.slots, NO_RUNS))
    execution.to_end()
    return execution


def test_a_run_that_fails_is_tried_once_more_and_the_others_go_on(tmp_path, capsys):
    runs = [Planned(tmp_path, 1, succeeds_at=3), Planned(tmp_path, 2, succeeds_at=2), Planned(tmp_path, 3)]
    execution = execute(runs, LocalLauncher(1), tmp_path / "logs")
    (failed,) = execution.failed
    assert (failed.run, failed.number) == (runs[0], 2)
    assert [bool(run.finished()) for run in runs] == [False, True, True]
    lines = capsys.readouterr().err.splitlines()
    shown = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    again = "failed, to be tried again"
    assert shown == [again, again, "finished", "failed", "finished"]
    last = lines.index(f"failed: m, seed 1: exit code 1; the end of {tmp_path}/logs/m-s1-attempt2.log:")
    assert lines[last + 1 : last + 3] == ["    attempt 2", "    no luck"]
    assert (tmp_path / "logs" / "m-s1-attempt1.log").read_text() == "attempt 1\nno luck\n"


def test_no_more_run_at_a_time_than_there_are_slots(tmp_path):
    launcher = Watched(2)
    execute([Planned(tmp_path, seed) for seed in range(5)], launcher, tmp_path / "logs")
    assert len(launcher.jobs) == 5
    assert launcher.most == 2


def test_a_command_that_ends_well_without_results_has_failed(tmp_path):
    run = Planned(tmp_path, 1)
    run.command = lambda: [sys.executable, "-c", ""]  # type: ignore[method-assign]
    (failed,) = execute([run], LocalLauncher(1), tmp_path / "logs").failed
    assert failed.tail().startswith("exit code 0;")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whatever_ends_it_early_ends_the_runs(tmp_path, monkeypatch, error):
    run = Planned(tmp_path, 1)
    run.command = lambda: [sys.executable, "-c", "import time; time.sleep(60)"]  # type: ignore[method-assign]
    launcher = Watched(1)

    def interrupt(self: Progress, text: str) -> None:
        raise error

    monkeypatch.setattr(Progress, "show", interrupt)
    with pytest.raises(error):
        execute([run], launcher, tmp_path / "logs")
    assert launcher.jobs[0].ended()


@pytest.mark.slow
def test_submitit_s_local_executor_runs_and_retries_too(tmp_path):
    parameters = {"timeout_min": 5, "gpus_per_node": 0, "cpus_per_task": 1}
    launcher = ClusterLauncher(2, tmp_path / "slurm", parameters, cluster="local")
    runs = [Planned(tmp_path, 1, succeeds_at=2), Planned(tmp_path, 2)]
    assert execute(runs, launcher, tmp_path / "logs").failed == []
    assert [bool(run.finished()) for run in runs] == [True, True]
    assert (tmp_path / "logs" / "m-s1-attempt1.log").read_text() == "attempt 1\nno luck\n"


# ---- the estimate


def test_the_estimate_is_the_work_left_over_the_slots_and_never_less_than_one_run():
    progress = Progress(9, 2, NO_RUNS)
    assert math.isnan(progress.left(9, []))
    progress.measured(10.0)
    progress.measured(30.0)
    assert progress.left(4, [5.0, 15.0]) == (4 * 20 + 15 + 5) / 2
    assert progress.left(0, [5.0]) == 15
    assert progress.left(0, [50.0]) == 0
    progress.close()


def test_runs_kept_serve_until_one_was_measured(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"run": {"seconds": 8}}))
    progress = Progress(3, 1, [tmp_path])
    assert progress.left(2, []) == 16
    progress.measured(1.0)
    assert progress.left(2, []) == 2
    progress.close()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(math.nan, "no estimate yet"), (59.6, "about 60 s left"), (150, "about 2 min left"), (9000, "about 2 h left")],
)
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words
