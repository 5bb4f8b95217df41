"""What readouts cost: the ratios are those of the turns, and the measured program is a whole run's."""

import pytest
from conftest import TINY, TinyTasks
from learners import SMALL

from benchmarks import readouts
from benchmarks.readouts import CHOICES, measured, rows, seconds
from utils.config.schema import Config, defaults


def test_a_row_has_the_median_of_the_ratios_within_the_turns() -> None:
    times = [[10.0, 20.0, 40.0], [11.0, 26.0, 44.0], [12.0, 20.0, 80.0], [10.0, 20.0, 40.0]]
    assert rows(times) == [
        ["none", "1.000", ""],
        ["ncm", "1.100", "1.100 to 1.200"],
        ["ncm, ranpac", "1.200", "1.100 to 1.600"],
        ["ncm, lda, ranpac", "1.000", "1.000 to 1.000"],
    ]


def test_choices_are_measured_in_turns_back_and_forth(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(readouts, "seconds", lambda config, tasks, device: order.append(config) or float(len(order)))
    assert measured("abcd", None, None, 2) == [[1, 8], [2, 7], [3, 6], [4, 5]]  # type: ignore[arg-type]
    assert "".join(order) == "abcddcba"


def test_what_is_measured_has_the_readouts_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = readouts.get_model

    def kept(setup):
        seen.append(plain(setup))
        return seen[-1]

    monkeypatch.setattr(readouts, "get_model", kept)
    tasks = TinyTasks([2, 2])
    tasks.nb_tasks, tasks.nb_classes = 2, 4
    values = {**defaults(), **{k: v for k, v in {**TINY, **SMALL}.items() if k in Config.model_fields}}
    for names in CHOICES[:3]:
        config = Config.model_construct(**{**values, "seed": [0], "device": "cpu", "readouts": list(names)})
        assert seconds(config, tasks, TINY["device"][0]) > 0
        found = set(seen[-1].readouts.members)
        assert found == {label for name in names for label in (name, f"{name}.adapters_off")}
        assert all(readout.classes == 4 for readout in seen[-1].readouts.members.values())
