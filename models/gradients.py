"""The gradients of a step, on a GPU by a graph that repeats the whole step.

Shapes: B batch.
"""

from collections.abc import Sequence

from torch import Tensor, optim

from models import graphs
from models.graphs import Graph, Recorder, recorded, recording, replayed
from models.losses import Loss
from utils.config.schema import Config
from utils.data.loader import Batch


class Gradients:
    """Computes the loss of batches, and the gradients of an optimizer's parameters.

    Whole batches are computed by a graph if one can be recorded, others as they come.

    Args:
        optimizer: Whose parameters get the gradients.
        loss: Of the phase; its network is in the mode in which it trains, and keeps its structure.
        size: B of a whole batch.
        record: Makes the graph; None: there is none.
    """

    def __init__(self, optimizer: optim.Optimizer, loss: Loss, size: int, record: Recorder | None) -> None:
        self.optimizer, self.loss, self.size, self.record = optimizer, loss, size, record
        self._graph: Graph | None = None
        self._descriptors = [slot.newest for slot in loss.network.expandable]

    @classmethod
    def of(cls, optimizer: optim.Optimizer, loss: Loss, config: Config, size: int | None = None) -> "Gradients":
        """Return those of a run's phase; a graph is recorded on a GPU, if nothing in a step forbids it.

        `size` is the configuration's batch_size unless given.
        """
        return cls(optimizer, loss, size or config.batch_size, graphs.recorder(loss.network, config))

    def __call__(self, batch: Batch, seen: bool = False) -> tuple[Tensor, Tensor]:
        """Compute the gradients; return the loss () of a batch and its number of correct predictions ().

        Args:
            batch: See `StreamLoader`.
            seen: Whether hooks have to see what the network computes.
        """
        if self.record is None or seen or not recording() or len(batch[0]) != self.size:
            return self._now(batch)
        indices, *inputs = batch
        if self._graph is None:
            self._graph = recorded(self.record, lambda *inputs: self._outputs((indices, *inputs)), inputs)
        if self._graph is None:
            self.record = None
            return self._now(batch)
        return self._took(replayed(self._graph, inputs))

    def _now(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss, hits = self.loss(batch)
        loss.backward()
        return loss.detach(), hits

    def _outputs(self, batch: Batch) -> list[Tensor]:
        """Return loss, hits, gradients and the losses of descriptors, which `_took` records; note whose they are."""
        for module in self._descriptors:
            module.defers, module.deferred = True, None
        try:
            loss, hits = self._now(batch)
        finally:
            for module in self._descriptors:
                module.defers = False
        groups = self.optimizer.param_groups
        self._learning = [p for group in groups for p in group["params"] if p.grad is not None]
        self._observing = [module for module in self._descriptors if module.deferred is not None]
        gradients = [parameter.grad for parameter in self._learning if parameter.grad is not None]
        return [loss, hits, *gradients, *(module.deferred for module in self._observing if module.deferred is not None)]

    def _took(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        loss, hits, *others = outputs
        for parameter, gradient in zip(self._learning, others, strict=False):
            parameter.grad = gradient
        for module, losses in zip(self._observing, others[len(self._learning) :], strict=True):
            module.records.add(losses)
        return loss.clone(), hits.clone()  # the next step overwrites them
