"""A third time scale between slow and fast, and the keys of all three."""

from importlib.util import find_spec, module_from_spec
from types import ModuleType

import pytest
import torch
from easydict import EasyDict
from torch import nn

from utils.timescales import scales
from utils.timescales.scales import SCALES, TimeScale

ARGS = EasyDict(
    nested_lora_lr_slow=0.001,
    nested_lora_lr_mid=0.004,
    nested_lora_lr_fast=0.01,
    init_lr=0.005,
    rd_lr=0.02,
    optimizer="sgd",
    weight_decay=0.1,
    nested_lora_update_interval_slow=2,
    nested_lora_slow_update="skip",
    nested_lora_update_interval_mid=3,
    nested_lora_mid_update="accumulate",
)
MID = TimeScale("mid", "nested_lora_lr_mid", "nested_lora_update_interval_mid", "nested_lora_mid_update")
THREE = (SCALES[0], MID, SCALES[1])


def args(**changes: object) -> EasyDict:
    return EasyDict({**ARGS, **changes})


def parameter(size: int = 3, learns: bool = True) -> nn.Parameter:
    return nn.Parameter(torch.randn(size, dtype=torch.float64), requires_grad=learns)


def declared(these: tuple[TimeScale, ...], module: str) -> ModuleType:
    """A module of `utils.timescales` as it is when these scales are declared; the imported one stays as it is."""
    spec = find_spec(f"utils.timescales.{module}")
    assert spec is not None
    assert spec.loader is not None
    fresh = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scales, "SCALES", these)
        patch.setattr(scales, "NAMES", tuple(scale.name for scale in these))
        patch.setattr(scales, "GATED", tuple(scale for scale in these if scale.interval_key))
        spec.loader.exec_module(fresh)
    return fresh
