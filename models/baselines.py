"""Baselines: learners that do not expand. They share data, evaluation and files with SEMA's learner.

Shapes: D embedding width, M width of the random projection, C classes of the whole data set.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import torch

from backbone.heads import ProjectedHead
from models.base import Setup
from models.protocol import Hooks
from models.readouts import NearestMean, RandomProjection, Readout, draw
from models.sema import Learner, Position
from utils.choices import LEARNERS
from utils.inc_net import SEMAVitNet


@LEARNERS.register("finetune")
class Finetune(Learner):
    """One adapter in every layer, which trains on in every task; the loss is SEMA's, over the classes of the task."""


@LEARNERS.register("linear")
class Linear(Learner):
    """The head alone is trained, on frozen features."""

    def begin_task(self) -> None:
        super().begin_task()
        for slot in self.network.slots:
            slot.requires_grad_(False)

    def settled_layers(self) -> int:
        return len(self.network.slots)


@LEARNERS.register("joint")
class Joint(Learner):
    """Trains a new network after every task, on the images of all classes seen: what no incremental learner can do."""

    def __init__(
        self, args: Setup | Mapping[str, Any], network: SEMAVitNet | None = None, hooks: Hooks | None = None
    ) -> None:
        super().__init__(args, network, hooks)
        self._new = {name: value.clone() for name, value in self.network.learned_state().items()}

    @property
    def task_classes(self) -> range:
        return range(self.total_classes)

    def images_of(self, counts: Sequence[int]) -> list[int]:
        return list(accumulate(counts))

    def begin_task(self) -> None:
        if self.cur_task:
            self.network.load_learned(self._new)
            self.evaluator.forget()
        super().begin_task()


class FromStatistics(Learner):
    """A learner whose head is computed from class statistics of the features, see `models.readouts`.

    With the key `first_session_adaptation` the adapters are trained in the first task, with a head of their own, and
    then frozen; without it they stay the zero map.
    """

    readout: ClassVar[type[Readout]]

    @cached_property
    def statistics(self) -> Readout:
        """The sums over all training images so far."""
        return self.readout(self.seed, self.network.backbone.embed_dim)

    @abstractmethod
    def set_head(self) -> None:
        """Compute the head from `statistics`."""

    @property
    def uses_features(self) -> bool:
        return True

    def begin_task(self) -> None:
        if self.config.first_session_adaptation and self.cur_task == 0:
            return super().begin_task()
        self.trained = {}
        self.position = Position("done")

    def learn_task(self) -> None:
        super().learn_task()
        self.statistics.observe(*self.train_features(), self.total_classes)
        self.set_head()

    def settled_layers(self) -> int:
        return len(self.network.slots) if self.position.stage == "done" else 0

    def state(self) -> dict[str, Any]:
        return {**super().state(), "statistics": self.statistics.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.statistics.load_state_dict(state["statistics"])


@LEARNERS.register("simplecil")
class SimpleCIL(FromStatistics):
    """The nearest class mean by cosine: the rows of the head are the normalised class means (arXiv 2303.07338)."""

    readout = NearestMean

    @torch.no_grad()
    def set_head(self) -> None:
        fc, weights = self.network.fc, self.statistics.weights.T
        known = ~weights.isnan().any(dim=1)
        fc.weight[: len(weights)] = weights.nan_to_num().to(fc.weight)
        fc.bias[: len(weights)] = torch.where(known, 0.0, torch.finfo(fc.bias.dtype).min).to(fc.bias)


@LEARNERS.register("ranpac")
class RanPAC(FromStatistics):
    """Ridge regression on a random projection of the features (arXiv 2307.02251)."""

    readout = RandomProjection

    @torch.no_grad()
    def set_head(self) -> None:
        old, weights = self.network.fc.weight, self.statistics.weights.T  # (C seen, M)
        padded = old.new_zeros(len(old), weights.shape[1])
        padded[: len(weights)] = weights.to(old)
        self.network.fc = ProjectedHead(self.network.backbone.embed_dim, padded, draw(self.seed)).to(old.device)
