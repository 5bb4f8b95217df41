"""Time, multiply-adds and memory of works whose cost is known."""

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import measure
from benchmarks.measure import RESET_PEAK, Cost, Timer, best_of, costs, multiply_adds, peak_memory, products

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A wall clock that shows the one number in the list; works move it on."""
    now = [0.0]
    monkeypatch.setitem(measure.CLOCKS, "wall", lambda: now[0])
    return now


def taking(clock: list[float], name: str, seconds: list[float], order: list[str]) -> Callable[[], None]:
    """A work that takes so long at its first run, at its second, ..."""
    left = iter(seconds)

    def work() -> None:
        order.append(name)
        clock[0] += next(left)

    return work


def test_the_best_of_rounds_in_which_works_take_turns(clock: list[float]) -> None:
    order: list[str] = []
    works = {name: taking(clock, name, list(t), order) for name, t in {"a": (3, 1, 2), "b": (5, 6, 4)}.items()}
    assert best_of(works, 3, Timer(CPU)) == {"a": 1, "b": 4}
    assert order == ["a", "b"] * 3


def test_repeats_between_two_looks_at_the_clock_count_as_one_run_each(clock: list[float]) -> None:
    assert Timer(CPU, repeats=3)(taking(clock, "a", [1, 2, 6], [])) == 3


def test_processor_time_leaves_out_what_the_process_sleeps() -> None:
    sleep = partial(time.sleep, 0.2)
    assert Timer(CPU, "wall")(sleep) > 0.19
    assert Timer(CPU, "cpu")(sleep) < 0.1


def test_multiply_adds_of_a_layer_forwards_and_backwards() -> None:
    layer, x = nn.Linear(30, 20), torch.randn(7, 30, requires_grad=True)
    product = 7 * 30 * 20
    assert multiply_adds(lambda: layer(x)) == product
    assert multiply_adds(lambda: layer(x).sum().backward()) == 3 * product  # and the gradients of input and weight
    q = torch.randn(1, 2, 5, 8)
    assert multiply_adds(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * 5 * 5 * 8


@pytest.mark.skipif(not RESET_PEAK.exists(), reason="only Linux tells")
def test_peak_memory_of_known_tensors_whatever_came_before() -> None:
    unit = 4 * 2**20

    def holding(units: int) -> Callable[[], object]:
        return lambda: [torch.ones(unit // 4) for _ in range(units)]

    for units in (40, 10, 25):
        assert peak_memory(holding(units), CPU) == pytest.approx(units * unit, rel=0.1)


def test_costs_are_of_each_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.LARGEST, "cpu", 512)
    found = costs(products(CPU, torch.float32), 5, Timer(CPU, "cpu"))
    assert list(found) == ["512", "256", "128"]
    assert all(type(cost) is Cost and cost.multiply_adds == int(rows) ** 3 for rows, cost in found.items())
    assert found["512"].seconds > found["128"].seconds > 0
