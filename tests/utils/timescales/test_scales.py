"""The declaration of time scales."""

import pytest
from timescale_cases import ARGS, THREE, args

from utils.config.schema import Config
from utils.timescales.scales import GATED, NAMES, SCALES, subsets


def test_slow_and_fast_are_declared_slowest_first():
    assert NAMES == ("slow", "fast")
    assert [scale.name for scale in GATED] == ["slow"]


def test_every_key_of_a_scale_is_a_key_of_the_configuration():
    keys = {key for scale in SCALES for key in (scale.rate_key, scale.interval_key, scale.update_key) if key}
    assert keys == {
        "nested_lora_lr_slow",
        "nested_lora_lr_fast",
        "nested_lora_update_interval_slow",
        "nested_lora_slow_update",
    }
    assert keys <= Config.model_fields.keys()


@pytest.mark.parametrize(("given", "interval"), [(0, 1), (1, 1), (7, 7)])
def test_a_scale_reads_its_keys(given, interval):
    slow, fast = SCALES
    config = args(nested_lora_update_interval_slow=given, nested_lora_slow_update="accumulate")
    assert (slow.rate(config), slow.interval(config), slow.update(config)) == (0.001, interval, "accumulate")
    assert (fast.rate(config), fast.interval(config), fast.update(config)) == (0.01, 1, "skip")


def test_a_third_scale_reads_its_own():
    mid = THREE[1]
    assert (mid.name, mid.rate(ARGS), mid.interval(ARGS), mid.update(ARGS)) == ("mid", 0.004, 3, "accumulate")


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        ((), {"neither": ()}),
        (("slow",), {"slow": ("slow",), "neither": ()}),
        (
            ("slow", "fast"),
            {"slow+fast": ("slow", "fast"), "slow": ("slow",), "fast": ("fast",), "neither": ()},
        ),
        (
            ("slow", "mid", "fast"),
            {
                "slow+mid+fast": ("slow", "mid", "fast"),
                "slow+mid": ("slow", "mid"),
                "slow+fast": ("slow", "fast"),
                "mid+fast": ("mid", "fast"),
                "slow": ("slow",),
                "mid": ("mid",),
                "fast": ("fast",),
                "neither": (),
            },
        ),
    ],
)
def test_every_choice_of_branches_has_its_name_all_first_and_neither_last(branches, expected):
    assert list(subsets(branches).items()) == list(expected.items())
