import io
import json
import logging
import os
import re
import sys
import time

import numpy as np
import pytest

from utils.config.schema import Config
from utils.progress import progress
from utils.runs.directory import RunPlan
from utils.runs.events import Branches, Epoch, MeanZ
from utils.runs.log import FullDiskHandler, RunClock, RunLog

logger = logging.getLogger(__name__)


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self) -> bool:
        return True


def opened(folder, name):
    """The log of a run that is begun."""
    return RunLog.opened(RunPlan(0, folder / name))


# ---- the log


def test_two_runs_in_one_process_never_share_a_log(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    root = logging.getLogger()
    before = (list(root.handlers), logging.WARNING)
    for name in ("first", "second"):
        with opened(tmp_path, name):
            logger.info("line of %s", name)
        assert (list(root.handlers), root.level) == before
    logger.warning("between runs")
    first, second = ((tmp_path / name / "log.txt").read_text() for name in ("first", "second"))
    assert "INFO line of first" in first
    assert "INFO line of second" in second
    assert "second" not in first
    assert "first" not in second
    assert "between" not in first + second


def test_the_console_shows_the_log_on_standard_error(tmp_path, capsys):
    with opened(tmp_path, "x"):
        logger.info("a line, größer")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "a line, größer\n" in shown.err
    assert "a line, größer\n" in (tmp_path / "x" / "log.txt").read_text(encoding="utf-8")


def test_what_ended_a_run_stands_in_its_log_and_is_told_once(tmp_path, capsys):
    root = logging.getLogger()
    before = list(root.handlers)
    with pytest.raises(RuntimeError, match="out of luck"), opened(tmp_path, "x"):
        raise RuntimeError("out of luck")
    text = (tmp_path / "x" / "log.txt").read_text()
    assert "ERROR the run stopped before its end" in text
    assert "RuntimeError: out of luck" in text
    assert "out of luck" not in capsys.readouterr().err
    assert list(root.handlers) == before


def test_a_console_that_has_gone_away_ends_no_run(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with opened(tmp_path, "x"):
        logger.info("a line")
    assert "a line" in (tmp_path / "x" / "log.txt").read_text()


# ---- events and results


def epoch(loss):
    return Epoch(task=0, cycle=0, phase="rd", epoch=0, loss=loss, lr={"descriptor": 0.01})


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_an_event_is_in_the_file_at_once(tmp_path):
    with opened(tmp_path, "x") as log:
        log.event(epoch(0.5))
        first = {"kind": "epoch", "task": 0, "cycle": 0, "phase": "rd", "epoch": 0, "loss": 0.5}
        assert lines(log.path) == [{**first, "lr": {"descriptor": 0.01}}]
        log.event(MeanZ(task=1, when="before", z={"2": np.array([0.5, np.nan])}))
        assert lines(log.path)[1:] == [{"kind": "mean_z", "task": 1, "when": "before", "z": {"2": [0.5, None]}}]


def test_what_a_clock_measured_is_in_a_file_of_its_own(tmp_path):
    with opened(tmp_path, "x") as log:
        log.event(Branches(task=1, when="after_task", correct={"slow": [3]}, run={"seconds": 0.5}))
    assert lines(log.path) == [{"kind": "branches", "task": 1, "when": "after_task", "correct": {"slow": [3]}}]
    times = json.loads((log.path / "times.jsonl").read_text())
    assert times == {"kind": "branches", "task": 1, "when": "after_task", "seconds": 0.5}


def test_equal_runs_write_equal_metrics_and_results_but_for_the_key_run(tmp_path):
    for name in ("a", "b"):
        with opened(tmp_path, name) as log:
            log.event(epoch(1 / 3))
            log.write_environment({"device": "cpu"}, {})
            log.results({"last_acc": 0.7, "forgetting": float("nan"), "run": {"seconds_per_task": [len(name)]}})
    a, b = tmp_path / "a", tmp_path / "b"
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    results = [json.loads((path / "results.json").read_text()) for path in (a, b)]
    runs = [result.pop("run") for result in results]
    assert results == [{"last_acc": 0.7, "forgetting": None}] * 2
    for run in runs:
        assert run.keys() == {"finished", "seconds_per_task", "reproduce", "sha256"}


def test_events_after_a_length_can_be_forgotten(tmp_path):
    with opened(tmp_path, "x") as log:
        assert log.events_written() == 0
        log.event(epoch(0.5))
        length = log.events_written()
        log.event(epoch(0.4))
        log.forget_events_after(length)
        log.event(epoch(0.3))
        assert [event["loss"] for event in lines(log.path)] == [0.5, 0.3]
        log.forget_events_after(10**6)
        assert len(lines(log.path)) == 2


def test_results_end_the_states_a_run_could_have_gone_on_from(tmp_path):
    with opened(tmp_path, "x") as log:
        (log.path / "resume").mkdir()
        (log.path / "resume" / "000000.state").write_bytes(b"")
        log.write_environment({"device": "cpu"}, {})
        log.results({})
    assert not (log.path / "resume").exists()


def test_what_differs_in_the_environment_of_a_resumed_run_is_on_record_and_said(tmp_path, monkeypatch, caplog):
    with opened(tmp_path, "x") as log:
        log.write_environment({"device": "cpu"}, {})
        log.continue_environment({"device": "cpu"})
        assert "continues" not in caplog.text
        monkeypatch.setattr("utils.runs.environment._version", lambda package: "0.1")
        log.continue_environment({"device": "cpu"})
    begun = json.loads((log.path / "environment.json").read_text())
    same, other = begun["resumed"]
    assert (same.keys(), other.keys()) == ({"started", "command"}, {"started", "command", "versions"})
    assert other["versions"]["torch"] == "0.1" != begun["versions"]["torch"]
    assert 'continues with {"torch": "0.1"' in caplog.text


def test_another_number_of_threads_is_said_unless_the_first_is_not_on_record(tmp_path, caplog):
    for name, first in (("x", {"threads": 1}), ("y", {})):
        with opened(tmp_path, name) as log:
            log.write_environment(first, {})
            log.continue_environment({"threads": 2})
        assert json.loads((log.path / "environment.json").read_text())["resumed"][0]["threads"] == 2
    assert caplog.text.count("the run began with threads 1, and continues with 2") == 1
    assert caplog.text.count("and continues with") == 1


def test_times_in_the_log_have_their_zone(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with opened(tmp_path, "x"):
            logging.getLogger("x").info("said")
    finally:
        monkeypatch.undo()
        time.tzset()
    line = (tmp_path / "x" / "log.txt").read_text().splitlines()[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+0900 INFO said", line)


def test_the_clock_counts_the_seconds_of_all_processes(monkeypatch):
    now = iter([100.0, 107.0, 200.0, 205.0, 206.0])
    monkeypatch.setattr("utils.runs.log.time.perf_counter", lambda: next(now))
    clock = RunClock()  # 100
    clock.end_task(3.0)  # 107: 7 s
    state = clock.state(0.5)  # the second task has taken from 107 to 200
    assert (state["tasks"], state["before"]) == ([7.0], 93.0)
    resumed, training = RunClock.restore(state)  # 205
    assert training == 0.5
    report = resumed.report()  # 206
    assert report["training_seconds_per_task"] == [3.0]
    assert (report["seconds"], report["seconds_per_task"], len(report["resumed"])) == (101.0, [7.0], 1)


def test_a_full_disk_under_the_log_is_the_run_s_error_and_told_once(tmp_path, capsys):
    def no_space(text):
        raise OSError(28, "No space left on device")

    def write() -> None:
        with opened(tmp_path, "x"):
            next(h for h in logging.getLogger().handlers if isinstance(h, FullDiskHandler)).stream.write = no_space
            logger.info("a line")

    with pytest.raises(OSError, match="No space left on device") as error:
        write()
    assert str(tmp_path / "x" / "log.txt") in str(error.value)
    assert "Traceback" not in capsys.readouterr().err


# ---- config.json and environment.json


def test_config_is_written_as_resolved(tmp_path):
    config = Config(dataset="cub")
    with opened(tmp_path, "x") as log:
        log.write_config(config.model_dump(mode="json"))
    assert Config(**json.loads((log.path / "config.json").read_text())) == config


# ---- progress


def test_progress_is_silent_without_a_terminal(capsys):
    assert list(progress(iter(range(3)), "task 0", 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_tells_what_and_how_far(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress(iter(range(3)), "task 0 scan", 10, done=7)) == [0, 1, 2]
    assert "task 0 scan:" in terminal.getvalue()
    assert "7/10" in terminal.getvalue()


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_loop_left_early_can_be_taken_up_again(on_terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal() if on_terminal else io.StringIO())

    def batches():
        yield from range(5)

    source = batches()
    for batch in progress(source, "scan", 5):
        if batch == 1:
            break
    assert list(progress(source, "scan", 5, done=2)) == [2, 3, 4]


def test_a_line_logged_under_a_bar_stands_on_a_line_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with opened(tmp_path, "x"):
        for _ in progress(range(2), "bar", 2):
            logger.info("between")
    between = [line.rsplit("\r", 1)[-1] for line in terminal.getvalue().split("\n") if line.endswith("between")]
    assert len(between) == 2
    assert not any("bar" in line for line in between)


def test_progress_bars_do_not_reach_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with opened(tmp_path, "x") as log:
        list(progress(range(2), "a bar", 2))
    assert "a bar" not in (log.path / "log.txt").read_text()
    assert sorted(os.listdir(log.path)) == [".lock", "log.txt"]
