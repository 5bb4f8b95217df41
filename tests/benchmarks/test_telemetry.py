"""How the benchmark of telemetry counts, and that it measures what it says."""

from pathlib import Path
from typing import Any

import torch
from conftest import SHAPE
from test_trainer import configuration, images  # noqa: F401

from benchmarks.telemetry import ALONE, ALWAYS, DEFAULT, INTERVALS, OFF, measured, overhead_rows, step_table, step_works
from benchmarks.workloads import Setting
from models.phase import Phase
from trainer import make_tasks
from utils.data.sources import load_dataset
from utils.timescales.telemetry import Telemetry


def test_ratios_are_those_of_a_turn_and_a_reading_s_cost_is_taken_from_many():
    times = {OFF: [2.0, 4.0, 9.0], DEFAULT: [2.2, 4.08, 9.09], ALWAYS: [3.0, 4.0, 18.0]}
    assert overhead_rows(times, {OFF: 0, DEFAULT: 5, ALWAYS: 100}) == [
        ["off", "0", "1.000", ""],
        ["once an epoch", "5", "1.020", "1.015 to 1.060"],  # of 1.01, 1.02, 1.1
        ["every step", "100", "1.500", "1.250 to 1.750"],
        ["once an epoch, by the cost of a reading", "5", "1.0250", ""],
    ]


def test_intervals_take_turns_and_differ_in_their_readings_alone(images: Path, tmp_path: Path, monkeypatch):  # noqa: F811
    seen: list[str] = []
    readings: list[str] = []
    measure, end_epoch = Telemetry.measure, Phase.end_epoch

    def counted(telemetry: Telemetry) -> list[dict[str, Any]]:
        readings.append(".")
        return measure(telemetry)

    def noted(phase: Phase) -> None:
        seen.append(phase.name + "".join(readings))
        readings.clear()
        end_epoch(phase)

    monkeypatch.setattr(Telemetry, "measure", counted)
    monkeypatch.setattr(Phase, "end_epoch", noted)
    configs = {
        title: configuration(images, tmp_path, **ALONE, telemetry_every=every) for title, every in INTERVALS.items()
    }
    tasks = make_tasks(configs[OFF], load_dataset("npz", images))
    times = measured(configs, tasks, torch.device("cpu"), repeats=2)
    assert {title: len(seconds) for title, seconds in times.items()} == {OFF: 2, DEFAULT: 2, ALWAYS: 2}
    assert all(second > 0 for seconds in times.values() for second in seconds)
    off, default, always = ["func"] * 2, ["func."] * 2, ["func..."] * 2  # two epochs of three steps each
    assert seen == off + off + default + always + always + default + off


def test_a_step_is_timed_alone_with_what_is_noted_of_it_and_with_a_reading(monkeypatch):
    setting = Setting("vit_tiny_patch16_224", 2, torch.device("cpu"), SHAPE)
    readings: list[int] = []
    measure = Telemetry.measure
    monkeypatch.setattr(Telemetry, "measure", lambda self: readings.append(1) or measure(self))
    works = step_works(setting)
    for title, expected in {"alone": 0, "with gate, audit and sums": 0, "with a reading of telemetry": 1}.items():
        readings.clear()
        works[title]()
        assert len(readings) == expected


def test_the_cost_of_a_reading_is_spread_over_the_steps_of_an_epoch():
    times = {"net": {"alone": 2.0, "with gate, audit and sums": 2.2, "with a reading of telemetry": 3.2}}
    # 1.1 for every step, and 0.5 more for one of ten
    assert step_table(times, steps=10).splitlines()[2] == "| net | 1.000 | 1.100 | 1.600 | 1.150 |"
