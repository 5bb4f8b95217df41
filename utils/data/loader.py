"""Batches of a data set, in an order and with an augmentation that named streams decide.

Shapes: B batch, S image side.
"""

import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.errors import UserError
from utils.stopping import SIGNALS
from utils.streams import generator, seeded

Stream = tuple[int | str, ...]
Request = tuple[Stream, list[int]]  # which images, and the stream their draws come from
Batch = tuple[Tensor, Tensor, Tensor]

WHY_KILLED = {  # what usually sends these signals to a process that only loads images
    signal.SIGKILL: ", as the system does when memory runs out",
    signal.SIGBUS: ", as happens when shared memory (/dev/shm) is full",
}


class LoadingError(UserError):
    """A process that loads images ended before its time."""


class Images(Protocol):
    """A data set: (index, image, label) for every index, drawing from torch's global CPU generator.

    An image is (3, S, S), or whatever a way is there for.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[int, Any, int]: ...


class Way(NamedTuple):
    """How the images of a batch get from a data set to the device.

    Attributes:
        join: Makes of them what is handed over; in the process that loads.
        finish: Makes of that the images (B, 3, S, S) on a device; in this process.
    """

    join: Callable[[list[Any]], Any]
    finish: Callable[[Any, torch.device], Tensor]


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


READY = Way(default_collate, _send)  # for a data set of images that are (3, S, S) already


class StreamLoader:
    """Loads a data set, pass after pass, the same whatever the number of workers.

    Args:
        dataset: What to load.
        workers: Processes that load; they start with the first pass and stay until `close`. 0: this process loads.
        device: Where images and labels go.
        seed: First name of every stream.
        way: Which way the images go.
    """

    def __init__(self, dataset: Images, workers: int, device: torch.device, seed: int, way: Way = READY) -> None:
        self.dataset, self.workers, self.device, self.seed, self.way = dataset, workers, device, seed, way
        self._pass: object = None
        self._requests: list[Request] = []  # of the current pass
        self._running = _Running()
        weakref.finalize(self, self._running.end)  # at exit too: a worker that is killed leaves its sockets behind

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def batches(self, batch_size: int) -> int:
        """Number of batches of a pass, the smaller last one included."""
        return -(-len(self) // batch_size)

    def close(self) -> None:
        """End the workers; a later pass starts new ones."""
        self._pass = None
        self._running.end()

    def _new_loader(self) -> "DataLoader[Batch | UserError]":
        return DataLoader(
            _Batches(self.dataset, self.way.join),
            batch_size=None,  # a request is a whole batch
            sampler=self._requests,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without one, every pass would draw from the global generator
        )

    def epoch(self, *stream: int | str, batch_size: int, shuffle: bool, start: int = 0) -> Iterator[Batch]:
        """One pass over the data set. It ends an earlier pass of this loader that is not complete.

        Args:
            stream: Names of the pass. Its order comes from (seed, "order", *stream), what happens to an image from
                (seed, "augment", *stream, index).
            batch_size: Images in a batch; the last one may hold fewer.
            shuffle: Whether the order is drawn; otherwise it is the data set's.
            start: Batches to leave out at the beginning, without loading them.

        Yields:
            Indices (B,) on the CPU; images (B, 3, S, S) and labels (B,) on the device.

        Raises:
            UserError: The data set raised it, in whichever process.
            LoadingError: A worker was killed.
            RuntimeError: Another pass has begun, or the loader was closed, before this one was complete.
        """
        this = self._begin((self.seed, "augment", *stream), self.order(*stream, shuffle=shuffle), batch_size, start)
        while self._pass is this:
            if (batch := self._running.next()) is None:
                return
            yield self._on_device(batch)
        raise RuntimeError(f"the pass {stream} was cut off: its loader began another one or was closed")

    def order(self, *stream: int | str, shuffle: bool) -> list[int]:
        """The indices of the images in the order of a pass, see `epoch`."""
        if not shuffle:
            return list(range(len(self)))
        return torch.randperm(len(self), generator=generator(self.seed, "order", *stream)).tolist()

    def _begin(self, stream: Stream, order: list[int], size: int, start: int) -> object:
        """Make this the current pass; what stands for it."""
        self._requests[:] = [(stream, order[first : first + size]) for first in range(start * size, len(order), size)]
        self._running.begin(self._new_loader)
        self._pass = object()
        return self._pass

    def _on_device(self, batch: Batch | UserError) -> Batch:
        if isinstance(batch, UserError):
            raise batch
        indices, images, labels = batch
        return indices, self.way.finish(images, self.device), _send(labels, self.device)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that are started inside never notice what asks a run to stop.

    Ctrl-C and a cluster's SIGTERM reach them too, and this process needs them to finish its step; then it ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which children inherit; here they wait until after
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Running:
    """What keeps workers alive: their DataLoader and its iterator."""

    def __init__(self) -> None:
        self.loader: DataLoader[Batch | UserError] | None = None
        self.batches: Iterator[Batch | UserError] = iter(())

    def end(self) -> None:
        if self._workers:  # an error's traceback may keep the iterator, and with it the workers, alive
            self.batches._shutdown_workers()  # type: ignore[attr-defined]
        self.loader, self.batches = None, iter(())

    def begin(self, new_loader: "Callable[[], DataLoader[Batch | UserError]]") -> None:
        """Begin a pass, with the workers there are; at first they are started."""
        with self._watched(), _children_end_silently(), deaf_children():
            self.loader = self.loader or new_loader()
            self.batches = iter(self.loader)

    def next(self) -> Batch | UserError | None:
        """The next batch of the pass; None at its end."""
        with self._watched():
            return next(self.batches, None)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Say what happened when DataLoader fails because a worker is gone; every other error stays what it is."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            if not (ended := self._ended()):
                raise
            message = f"{_how(ended[0])}; lower num_workers (now {len(self._workers)}, 0: the main process loads)"
            self.end()
            raise LoadingError(f"{message} or the batch sizes") from error

    def _ended(self) -> list[int]:
        """Exit codes of the workers that have ended; one that was just killed takes a moment to."""
        ending = wait([worker.sentinel for worker in self._workers], timeout=1) if self._workers else []
        for worker in self._workers:
            if worker.sentinel in ending:
                worker.join()  # its files are closed before it has an exit code
        return [worker.exitcode for worker in self._workers if worker.exitcode is not None]

    @property
    def _workers(self) -> list[BaseProcess]:
        """The processes; torch alone knows those that ended so soon that multiprocessing has forgotten them."""
        return getattr(self.batches, "_workers", [])


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"a process that loads images ended with exit code {exit_code}"
    name = signal.Signals(-exit_code)
    return f"a process that loads images was ended by {name.name}{WHY_KILLED.get(name, '')}"


@contextmanager
def _children_end_silently() -> Iterator[None]:
    """Keep the handler that DataLoader sets for the end of child processes from staying.

    It would raise in the middle of whatever this process is then doing. Without it, whoever waits for a batch learns
    of a dead worker, within seconds.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


class _Batches(Dataset[Batch | UserError]):
    """Whole batches by request, in the loading process."""

    def __init__(self, dataset: Images, join: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.join = dataset, join

    def __getitem__(self, request: Request) -> Batch | UserError:
        """The batch, or a user's error as a value: DataLoader would bury its message in a worker's traceback."""
        stream, wanted = request
        try:
            loaded = [self._image(stream, index) for index in wanted]
        except UserError as error:
            return error
        indices, images, labels = map(list, zip(*loaded, strict=True))
        return default_collate(indices), self.join(images), default_collate(labels)

    def _image(self, stream: Stream, index: int) -> tuple[int, Any, int]:
        with seeded(*stream, index):
            return self.dataset[index]
