"""CUDA graphs: what the host would tell a GPU again at every step or batch is recorded once.

The small steps of a run are shorter than the time the host takes to start their kernels. A graph starts the same
kernels, with the same numbers, by one call.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from utils.config.schema import Config
from utils.inc_net import SEMAVitNet

logger = logging.getLogger(__name__)

WARM_UP = 3  # runs before a recording, in which libraries choose kernels and take memory
Function = Callable[..., Sequence[Tensor]]


class Graph(Protocol):
    """What was recorded of a function: its inputs and outputs have fixed places."""

    @property
    def inputs(self) -> Sequence[Tensor]: ...
    @property
    def outputs(self) -> Sequence[Tensor]: ...
    def replay(self) -> None: ...


Recorder = Callable[[Function, Sequence[Tensor]], Graph]


class CudaGraph:
    """A function of tensors as a CUDA graph.

    Args:
        function: Reads no value and makes no random draw; it leaves nothing behind but what it returns.
        inputs: Of the first call; others have the same shapes.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        side, current = torch.cuda.Stream(inputs[0].device), torch.cuda.current_stream(inputs[0].device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*self.inputs)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that pins batches, may ask the driver for memory meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.outputs = list(function(*self.inputs))

    def replay(self) -> None:
        self._graph.replay()


def recorder(network: SEMAVitNet, config: Config) -> Recorder | None:
    """Return what records the steps of a network; None where nothing can.

    Adapters that are run by their own code may do in it what a graph does not repeat.
    """
    plain = not (config.compile or config.grad_checkpointing) and all(slot.tokenwise for slot in network.slots)
    return CudaGraph if plain and network.fc.weight.device.type == "cuda" else None


def recorded(record: Recorder, function: Function, inputs: Sequence[Tensor]) -> Graph | None:
    """Return the graph of a function; None, with a warning, if it cannot be recorded."""
    try:
        return record(function, inputs)
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        logger.warning("no CUDA graph can be recorded, which makes steps slower: %s", first)
        return None


def replayed(graph: Graph, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the outputs for other inputs of the same shapes; the next replay overwrites them."""
    for place, value in zip(graph.inputs, inputs, strict=True):
        place.copy_(value, non_blocking=True)
    graph.replay()
    return graph.outputs


class Recorded:
    """A function of one tensor that is replayed for inputs of the shape of its first, on a GPU.

    Its weights must stay where they are. A result is overwritten by the next.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], record: Recorder | None) -> None:
        self.function, self.record = function, record
        self._graph: Graph | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.record is None or not recording() or (self._graph and x.shape != self._graph.inputs[0].shape):
            return self.function(x)
        self._graph = self._graph or recorded(self.record, lambda x: [self.function(x)], [x])
        if self._graph is None:
            self.record = None
            return self.function(x)
        return replayed(self._graph, [x])[0]


_recording = True


def recording() -> bool:
    """Return whether `unrecorded` is off."""
    return _recording


@contextmanager
def unrecorded() -> Iterator[None]:
    """Compute every step as it comes, for what has to see single operators."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before
