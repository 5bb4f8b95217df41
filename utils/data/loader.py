"""Batches of a data set. Named random streams decide their order and augmentation.

Shapes: B batch, S image side.
"""

import logging
import os
import signal
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import util
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.errors import UserError
from utils.memory import cores
from utils.stopping import SIGNALS, follow
from utils.streams import generator, seeded

logger = logging.getLogger(__name__)

Stream = tuple[int | str, ...]
Request = tuple[Stream, list[int]]  # the stream of a batch's random numbers, and the indices of its images
Batch = tuple[Tensor, Tensor, Tensor]

WHY_KILLED = {  # the usual reasons why a worker gets these signals
    signal.SIGKILL: ", as the system does when memory runs out",
    signal.SIGBUS: ", as happens when shared memory (/dev/shm) is full",
}
LONGEST_TMPDIR = 70  # bytes; multiprocessing adds 32 for a socket, whose whole path has at most 103 on macOS


FILES = "this process may not open as many files as its loading workers need"


class LoadingError(UserError):
    """A worker process ended unexpectedly."""


class Images(Protocol):
    """A data set of (index, image, label), which draws from torch's global CPU generator.

    An image is (3, S, S), or whatever the loader's `Way` accepts.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[int, Any, int]: ...


class Way(NamedTuple):
    """How the images of a batch get from a data set to the device.

    Attributes:
        join: Collates the images, in the worker process.
        finish: Turns the result into images (B, 3, S, S) on a device, in the main process.
    """

    join: Callable[[list[Any]], Any]
    finish: Callable[[Any, torch.device], Tensor]


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


READY = Way(default_collate, _send)  # for images that are (3, S, S) tensors already


def warn_of_workers(workers: int) -> None:
    """Log a warning if there are more workers than cores for this process."""
    if workers > (available := cores()):
        logger.warning("num_workers = %d is more than the CPU cores, %d; that does not load faster", workers, available)


class StreamLoader:
    """Loads a data set in passes whose content does not depend on the number of workers.

    Args:
        dataset: The images.
        workers: Worker processes; they start with the first pass and run until `close`. 0: load in this process.
        device: Device of the batches.
        seed: First name of every random stream.
        way: See `Way`.
    """

    def __init__(self, dataset: Images, workers: int, device: torch.device, seed: int, way: Way = READY) -> None:
        self.dataset, self.workers, self.device, self.seed, self.way = dataset, workers, device, seed, way
        self._pass: object = None
        self._requests: list[Request] = []  # of the current pass
        self._running = _Running()
        weakref.finalize(self, self._running.end)  # also at exit: a killed worker would leave its sockets behind

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def batches(self, batch_size: int) -> int:
        """Return the number of batches of a pass, including a smaller last one."""
        return -(-len(self) // batch_size)

    def close(self) -> None:
        """End the workers. A later pass starts new ones."""
        self._pass = None
        self._running.end()

    def order(self, *stream: int | str, shuffle: bool) -> list[int]:
        """Return the indices of the images in the order of a pass, see `epoch`."""
        if not shuffle:
            return list(range(len(self)))
        return torch.randperm(len(self), generator=generator(self.seed, "order", *stream)).tolist()

    def epoch(self, *stream: int | str, batch_size: int, shuffle: bool, start: int = 0) -> Iterator[Batch]:
        """Iterate once over the data set. This ends an unfinished pass of the same loader.

        Args:
            stream: Names of the pass. The order is drawn from the stream (seed, "order", *stream), the augmentation of
                an image from (seed, "augment", *stream, index).
            batch_size: Images in a batch; the last one may have fewer.
            shuffle: Whether to draw the order; otherwise it is the data set's.
            start: Number of batches to leave out at the beginning, without loading them.

        Yields:
            Indices (B,) on the CPU; images (B, 3, S, S) and labels (B,) on the device.

        Raises:
            UserError: Raised by the data set, in any process.
            LoadingError: A worker was killed.
            RuntimeError: Another pass has begun, or the loader was closed, before this pass was complete.
        """
        order, names = self.order(*stream, shuffle=shuffle), (self.seed, "augment", *stream)
        firsts = range(start * batch_size, len(order), batch_size)
        self._requests[:] = [(names, order[first : first + batch_size]) for first in firsts]
        self._running.begin(self._new_loader)
        self._pass = this = object()
        while self._pass is this:
            if (batch := self._running.next()) is None:
                return
            yield self._on_device(batch)
        raise RuntimeError(f"the pass {stream} was cut off: its loader began another one or was closed")

    def _new_loader(self) -> "DataLoader[Batch | UserError]":
        return DataLoader(
            _Batches(self.dataset, self.way.join),
            batch_size=None,  # a request is a whole batch
            sampler=self._requests,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=_end_with_main_process,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # otherwise every pass would draw from the global generator
        )

    def _on_device(self, batch: Batch | UserError) -> Batch:
        if isinstance(batch, UserError):
            raise batch
        indices, images, labels = batch
        if self.workers:  # what is kept must not hold the shared memory of a worker, and with it an open file
            indices, labels = indices.clone(), labels.clone()
        return indices, self.way.finish(images, self.device), _send(labels, self.device)


def _end_with_main_process(_: int) -> None:
    """Let this worker end when its main process was killed, and when a batch cannot be sent.

    One that hangs, or waits to send, would not notice the first; of the second it would only print why, and the main
    process would wait.
    """
    follow(os.getppid(), partial(os._exit, 1))

    def end(error: Exception, _: object) -> None:
        with suppress(OSError):
            os.write(2, f"a batch could not be sent: {error}\n".encode(errors="backslashreplace"))
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def _place_sockets() -> None:
    """Put the sockets of this process and its workers into /tmp if the path of the temporary folder is too long."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) > LONGEST_TMPDIR:
        tempfile.tempdir = "/tmp"
        try:
            util.get_temp_dir()  # makes the folder, which workers inherit
        finally:
            tempfile.tempdir = usual


@contextmanager
def _starting_workers() -> Iterator[None]:
    """Let processes that are started inside ignore SIGINT and SIGTERM, and keep this process's SIGCHLD handler.

    Ctrl-C and a cluster's SIGTERM reach workers too, but this process needs them to finish its step. Workers inherit
    the blocked signals. DataLoader's handler for SIGCHLD would raise at any point of this process; without it, whoever
    waits for a batch learns of a dead worker within seconds.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # see `warn_of_workers`
            yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Running:
    """The DataLoader and its iterator, which keep the workers alive."""

    def __init__(self) -> None:
        self.loader: DataLoader[Batch | UserError] | None = None
        self.batches: Iterator[Batch | UserError] = iter(())

    def end(self) -> None:
        if self._workers:  # a traceback may keep the iterator alive, and with it the workers
            self.batches._shutdown_workers()  # type: ignore[attr-defined]
        self.loader, self.batches = None, iter(())

    def begin(self, new_loader: "Callable[[], DataLoader[Batch | UserError]]") -> None:
        """Begin a pass; start the workers if there are none."""
        _place_sockets()
        with self._watched(), _starting_workers():
            self.loader = self.loader or new_loader()
            self.batches = iter(self.loader)

    def next(self) -> Batch | UserError | None:
        """Return the next batch of the pass, or None at its end."""
        with self._watched():
            return next(self.batches, None)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Raise LoadingError if DataLoader fails because a worker has ended."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            workers = self._workers
            ending = wait([worker.sentinel for worker in workers], timeout=1) if workers else []
            for worker in workers:
                if worker.sentinel in ending:
                    worker.join()  # its exit code is known a moment after its files are closed
            codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
            if not codes and "Too many open files" in str(error):
                self.end()
                raise LoadingError(f"{FILES}; raise the limit (ulimit -n) or lower num_workers") from error
            if not codes:
                raise
            if codes[0] >= 0:
                how = f"ended with exit code {codes[0]}"
            else:
                how = f"was ended by {signal.Signals(-codes[0]).name}{WHY_KILLED.get(signal.Signals(-codes[0]), '')}"
            self.end()
            advice = f"lower num_workers (now {len(workers)}, 0: the main process loads) or the batch sizes"
            raise LoadingError(f"a process that loads images {how}; {advice}") from error

    @property
    def _workers(self) -> list[BaseProcess]:
        """The processes, including those that ended before multiprocessing registered them."""
        return getattr(self.batches, "_workers", [])


class _Batches(Dataset[Batch | UserError]):
    """Loads whole batches in the worker process."""

    def __init__(self, dataset: Images, join: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.join = dataset, join

    def __getitem__(self, request: Request) -> Batch | UserError:
        """Return the batch, or a UserError as a value, as DataLoader would hide its message in a traceback."""
        stream, wanted = request
        loaded = []
        try:
            for index in wanted:
                with seeded(*stream, index):
                    loaded.append(self.dataset[index])
        except UserError as error:
            return error
        indices, images, labels = map(list, zip(*loaded, strict=True))
        return default_collate(indices), self.join(images), default_collate(labels)
