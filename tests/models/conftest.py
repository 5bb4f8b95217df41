"""What the tests of a learner share: how it is made, and how its scans are scripted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from learners import FAMILIAR, SMALL, values
from torch import Tensor

from backbone.sema_block import SEMAModules
from models.protocol import Hooks
from models.sema import Learner


@pytest.fixture
def make(config, events) -> Callable[..., Learner]:
    return lambda **keys: Learner(config(**{**SMALL, **keys}), hooks=Hooks(events))


@pytest.fixture
def script(monkeypatch) -> Callable[[dict[int, list[Any]]], list[int]]:
    """Let the z-scores of a layer follow a script, look by look, then be FAMILIAR; gives the looks each has seen."""

    def follow(scripts: dict[int, list[Any]]) -> list[int]:
        looks = [0, 0, 0, 0]

        def z_scores(slot: SEMAModules, mean: Tensor) -> Tensor:  # (B, D) -> (A, B)
            scripted = scripts.get(slot.layer, [])
            look = looks[slot.layer]
            looks[slot.layer] += 1
            value = scripted[look] if look < len(scripted) else FAMILIAR
            column = value if isinstance(value, list) else [value] * slot.num_adapters
            column = column + [FAMILIAR] * (slot.num_adapters - len(column))  # adapters added since the task began
            return torch.tensor(column, dtype=torch.float32)[:, None].expand(-1, len(mean))

        monkeypatch.setattr(SEMAModules, "z_scores", z_scores)
        return looks

    return follow


@pytest.fixture
def logits_of() -> Callable[[Learner], Tensor]:
    """What a learner answers to eight images, always the same."""
    images = torch.from_numpy(np.random.RandomState(9).randn(8, 3, 32, 32).astype(np.float32))

    def logits(learner: Learner) -> Tensor:
        with torch.no_grad():
            return learner.network.eval()(images)["logits"]

    return logits


@pytest.fixture
def before_the_end(monkeypatch, logits_of) -> dict[str, Any]:
    """The network as it was when the end of the last task began."""
    kept: dict[str, Any] = {}
    end = Learner._end_task

    def watched(learner: Learner) -> None:
        kept["values"] = values(learner.network)
        kept["accuracy"] = learner.eval_task()[0]
        kept["logits"] = logits_of(learner)
        end(learner)

    monkeypatch.setattr(Learner, "_end_task", watched)
    return kept
