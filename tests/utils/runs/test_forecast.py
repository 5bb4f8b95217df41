"""The share of a run that is done, and the time left."""

import logging

import pytest

from utils.runs import forecast as module
from utils.runs.events import Epoch, Task
from utils.runs.forecast import Forecast, last_forecast

EPOCHS = {"func": 2, "rd": 3}


def epoch(task: int, phase: str, number: int) -> Epoch:
    return Epoch(task=task, cycle=0, phase=phase, epoch=number, loss=1.0, lr={})


def task(number: int) -> Task:
    return Task(task=number, accuracy={}, adapters=[], parameters={}, trained={}, multiply_adds=0)


@pytest.fixture
def now(monkeypatch, caplog):
    """The clock, to be set."""
    caplog.set_level(logging.INFO)
    times = {"now": 0.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: times["now"])
    return times


def test_the_time_left_follows_from_the_share_that_is_done(now):
    forecast = Forecast([100, 50, 50], EPOCHS, lambda: 60.0)
    assert forecast.left() == ""
    forecast.note(epoch(0, "func", 0))  # 1 of 5 epochs of half of the images: 1/10
    assert forecast.left() == "9 min"
    forecast.note(epoch(0, "rd", 0))  # 3/10
    assert forecast.left() == "2 min 20 s"
    forecast.note(task(0))  # 1/2
    assert forecast.left() == "1 min"
    forecast.note(epoch(1, "rd", 2))  # 3/4
    assert forecast.left() == "20 s"


def test_it_is_told_after_each_task_but_the_last_and_once_a_minute_after_an_epoch(now, caplog):
    forecast = Forecast([100, 100], EPOCHS, lambda: 60.0)
    for seconds, event in [
        (30, epoch(0, "func", 0)),
        (61, epoch(0, "func", 1)),
        (90, epoch(0, "rd", 0)),
        (95, task(0)),
        (150, epoch(1, "func", 0)),
        (156, epoch(1, "func", 1)),
        (300, task(1)),
    ]:
        now["now"] = float(seconds)
        forecast.note(event)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "20 % of the run is done",
        "50 % of the run is done",
        "70 % of the run is done",
    ]


def test_a_resumed_run_begins_at_its_finished_tasks_and_a_new_one_tells_nothing(now, caplog):
    Forecast([1, 1, 2], EPOCHS, lambda: 60.0).say()
    assert caplog.records == []
    Forecast([1, 1, 2], EPOCHS, lambda: 60.0, tasks=1).say()
    assert caplog.records[0].getMessage() == "25 % of the run is done, about 3 min left"


def test_the_last_line_in_a_log_is_found(now, caplog):
    forecast = Forecast([1, 1, 2], EPOCHS, lambda: 60.0, tasks=1)
    forecast.say()
    forecast.note(task(1))
    log = "\n".join(f"12:00:01 {record.getMessage()}" for record in caplog.records)
    assert last_forecast(log) == 60
    assert last_forecast("task 0 func epoch 1: loss 2.0") is None
