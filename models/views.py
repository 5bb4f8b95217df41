"""Kept views: augmented views of a task's training images, as activations that are computed once (the key `views`).

After the first task nothing below the first expandable layer learns. Then each image has `views` augmented views, epoch
e of a phase trains on view e mod `views`, and what the frozen blocks make of a view is kept until the task ends. An rd
phase of any task keeps token means in this way (the keys `views` and `rd_views`).

Shapes: B batch, n training images, K views, N tokens, D embedding width.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models import graphs
from models.evaluation import mapped
from models.graphs import Recorded
from models.protocol import Hooks
from utils.config.schema import Config
from utils.data.loader import Batch
from utils.errors import ConfigError
from utils.inc_net import SEMAVitNet
from utils.memory import GIB, memory, size_text
from utils.progress import progress

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
HEADROOM = 2**30  # bytes of a disk that are left free


class Source(Protocol):
    """Passes over training images, as `StreamLoader` makes them."""

    device: torch.device

    def __len__(self) -> int: ...
    def batches(self, batch_size: int) -> int: ...
    def order(self, *stream: int | str, shuffle: bool) -> list[int]: ...
    def epoch(self, *stream: int | str, batch_size: int, shuffle: bool, start: int = 0) -> Iterator[Batch]: ...
    def close(self) -> None: ...


def on_disk(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    """Return a new tensor in a file, see `mapped`; raise OSError, with size and folder, if the disk is full."""
    try:
        return mapped(shape, dtype, folder)
    except OSError as error:
        size = torch.Size(shape).numel() * dtype.itemsize
        what = f"{error.strerror}, where views take {size_text(size)} (views_disk_gib)"
        raise OSError(error.errno, what, str(folder)) from error


class KeptViews:
    """A `Source` whose batches have what a function makes of the images instead of the images.

    A pass named (..., e) has view e mod K. A view is computed when a pass first needs it, in the order of the data set,
    with the augmentation of the stream ("view", task, number of the view). The order of a pass is that of its source.

    Args:
        source: Of the images.
        compute: Maps a batch of the source to the values that are kept, (B, ...).
        views: K.
        task: Names the streams of the views.
        batch_size: Images that are computed at a time.
        where: Device in whose memory the values are kept, or folder of the file that holds them; None: the device of
            the source.
        dtype: In which values are kept; batches have that of the computed ones.
        wait: Called after each computed batch.
    """

    def __init__(
        self,
        source: Source,
        compute: Callable[[Tensor], Tensor],
        *,
        views: int,
        task: int,
        batch_size: int,
        where: torch.device | Path | None = None,
        dtype: torch.dtype = torch.float32,
        wait: Callable[[], object] = lambda: None,
    ) -> None:
        self.source, self.compute, self.views, self.task = source, compute, views, task
        self.batch_size, self.where, self.dtype, self.wait = batch_size, where or source.device, dtype, wait
        self.device = source.device
        self._values: Tensor | None = None  # (K, n, ...)
        self._labels = torch.empty(0)  # (n,), where the values are
        self._known: set[int] = set()  # views

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, batch_size: int) -> int:
        return self.source.batches(batch_size)

    def order(self, *stream: int | str, shuffle: bool) -> list[int]:
        return self.source.order(*stream, shuffle=shuffle)

    def close(self) -> None:
        """Free what is kept, and close the source."""
        self._values = None
        self._known.clear()
        self.source.close()

    def epoch(self, *stream: int | str, batch_size: int, shuffle: bool, start: int = 0) -> Iterator[Batch]:
        """Iterate once over the images, see `StreamLoader.epoch`; the last name of the stream is a number."""
        values = self._view(int(stream[-1]) % self.views)
        order = torch.tensor(self.order(*stream, shuffle=shuffle))
        chosen = [part.split(batch_size)[start:] for part in (order, order.to(values.device))]
        pairs = zip(*chosen, strict=True)
        taken = ((indices, self._take(values, at), self._take(self._labels, at)) for indices, at in pairs)
        yield from prefetched(taken, values.device, self.device)

    def _take(self, values: Tensor, indices: Tensor) -> Tensor:
        """Return the rows of these indices; what is to be copied to a GPU is in pinned memory."""
        shape, sends = (len(indices), *values.shape[1:]), to_a_gpu(values.device, self.device)
        out = torch.empty(shape, dtype=values.dtype, device=values.device, pin_memory=sends)
        return torch.index_select(values, 0, indices, out=out)

    @torch.no_grad()
    def _view(self, view: int) -> Tensor:  # (n, ...)
        if view not in self._known:
            batches = self.source.epoch("view", self.task, view, batch_size=self.batch_size, shuffle=False)
            total, what = self.source.batches(self.batch_size), f"task {self.task} view {view + 1}/{self.views}"
            for indices, images, labels in progress(batches, what, total):
                self._keep(view, indices, self.compute(images), labels)
                self.wait()
            self._known.add(view)
        assert self._values is not None
        return self._values[view]

    def _keep(self, view: int, indices: Tensor, x: Tensor, labels: Tensor) -> None:
        if self._values is None:
            shape = (self.views, len(self), *x.shape[1:])
            if isinstance(self.where, Path):
                self._values = on_disk(shape, self.dtype, self.where)
            else:
                self._values = torch.empty(shape, dtype=self.dtype, device=self.where)
            self._labels = labels.new_empty(len(self), device=self._values.device)
        indices = indices.to(self._values.device)
        self._values[view][indices] = x.to(self.dtype).to(self._values.device)  # in this order: fewer bytes to copy
        self._labels[indices] = labels.to(self._labels)


def to_a_gpu(origin: torch.device, device: torch.device) -> bool:
    """Return whether values go from the host to a GPU."""
    return (origin.type, device.type) == ("cpu", "cuda")


def prefetched(batches: Iterable[Batch], origin: torch.device, device: torch.device) -> Iterator[Batch]:
    """Yield batches of one device on another, with float32 values; each is copied while the one before it is used.

    Args:
        batches: Indices on the CPU, values and labels on `origin`, pinned if that is the CPU and `device` a GPU.
        origin: Where they are.
        device: Where they are used. A GPU copies on a stream of its own.
    """
    side = torch.cuda.Stream(device) if to_a_gpu(origin, device) else None

    def sent() -> Iterator[Batch]:
        for indices, x, labels in batches:
            with torch.cuda.stream(side) if side else nullcontext():
                x = x.to(device, non_blocking=True).to(torch.float32)  # in this order: half the bytes of bfloat16
                batch = indices, x, labels.to(device, non_blocking=True)
            yield batch

    copies = sent()
    ahead = next(copies, None)
    while ahead is not None:
        batch = ahead
        if side:
            current = torch.cuda.current_stream(device)
            current.wait_stream(side)  # now, as the next copy is not to be waited for
            for tensor in batch[1:]:
                tensor.record_stream(current)  # else the next copy might be put into its memory too early
        ahead = next(copies, None)
        yield batch


class ViewKeeper:
    """Keeps views for a learner, as the keys `views`, `views_gib`, `views_disk_gib` and `views_bf16` say."""

    def __init__(self, network: SEMAVitNet, config: Config, hooks: Hooks) -> None:
        self.network, self.config, self.hooks = network, config, hooks
        self.dtype = torch.bfloat16 if config.views_bf16 else torch.float32

    def bytes(self, images: int) -> int:
        """Return how much the views of a task of so many images take: block inputs, and features."""
        vit = self.network.backbone
        tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens if self.network.expandable else 0
        return self.config.views * images * (tokens + 1) * vit.embed_dim * self.dtype.itemsize

    def place(self, images: int) -> torch.device | Path:
        """Return where they are kept, see `place`."""
        limits, device = (self.config.views_gib, self.config.views_disk_gib), self.network.fc.weight.device
        return place(self.bytes(images), *limits, self.hooks.folder, device, free_on(device))

    def plan(self, counts: Sequence[int]) -> str:
        """Return what is kept as a line for the log, given the number of training images of every task."""
        if not (self.config.views and len(counts) > 1):
            return ""
        if self.network.expandable and not self.network.settled:
            first = self.network.slots[0].expandable
            keys = "adapt_start_layer" if first else "adapter_lifetime, nested_lora_continual_layers"
            return f"views: none are kept, as adapters of the first layer learn in later tasks ({keys})"
        most = max(counts[1:])
        return f"views: from task 1 on, at most {size_text(self.bytes(most))} are kept in {named(self.place(most))}"

    def inputs(self, source: Source, layer: int, task: int) -> KeptViews:
        """Return the images of a source as the input (B, N, D) of block `layer`."""
        return self._views_of(source, partial(self.network.forward_to, layer=layer), task, self._where(source, task))

    def features(self, source: Source, task: int) -> KeptViews:
        """Return the images of a source as features (B, D), where their block inputs are, if these are kept."""
        where = source.where if isinstance(source, KeptViews) else self._where(source, task)
        return self._views_of(source, lambda x: self.network(x)["features"], task, where)

    def _where(self, source: Source, task: int) -> torch.device | Path:
        """Return where the views of a task are kept, and say it."""
        where, views = self.place(len(source)), self.config.views
        logger.info("task %d: %d views of %d images are kept in %s", task, views, len(source), named(where))
        return where

    def _views_of(
        self, source: Source, compute: Callable[[Tensor], Tensor], task: int, where: torch.device | Path
    ) -> KeptViews:
        return self.kept(source, compute, views=self.config.views, task=task, where=where, dtype=self.dtype)

    def kept(self, source: Source, compute: Callable[[Tensor], Tensor], **how: Any) -> KeptViews:
        """Return the images of a source as what a function makes of them; see `KeptViews`.

        What the function reads of the network does not change as long as they are kept, so that a graph can repeat it.
        """
        size, compute = self.config.eval_batch_size, Recorded(compute, graphs.recorder(self.network, self.config))
        return KeptViews(source, compute, batch_size=size, wait=lambda: self.hooks.keep("wait"), **how)


def free_on(device: torch.device) -> int:
    """Return the bytes that are free in the memory of a GPU, with those that torch holds without use; else 0."""
    if device.type != "cuda":
        return 0
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def named(where: torch.device | Path) -> str:
    """Return the name of a place for the log."""
    return str(where) if isinstance(where, Path) else "memory" if where == CPU else f"the memory of {where}"


def place(
    size: int, in_memory: float, on_disk: float, folder: Path | None, device: torch.device = CPU, free: int = 0
) -> torch.device | Path:
    """Return where so many bytes are kept: a device, whose memory it is, or a folder.

    Args:
        size: Bytes.
        in_memory: The key views_gib.
        on_disk: The key views_disk_gib.
        folder: Of the run, which may not exist yet; None: the temporary folder.
        device: Where the network is.
        free: Bytes that are free there, if it has memory of its own; at most half of them are taken.

    Raises:
        ConfigError: Neither limit, nor the machine, holds it.
    """
    wanted = size_text(size)
    if size <= in_memory * GIB:
        if size <= free // 2:
            return device
        if size > memory():
            raise ConfigError(
                f"views: a task keeps {wanted}, less than views_gib ({in_memory:g}), and this machine has "
                f"{size_text(memory())} of memory; lower views, set views_bf16, or lower views_gib and raise "
                "views_disk_gib"
            )
        return CPU
    folder = folder or Path(tempfile.gettempdir())
    if size > on_disk * GIB:
        raise ConfigError(
            f"views: a task keeps {wanted}, more than views_gib ({in_memory:g}, in memory) and views_disk_gib "
            f"({on_disk:g}, in a file of the run directory); raise one of them, lower views, or set views_bf16"
        )
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if size + HEADROOM > (free := shutil.disk_usage(there).free):
        raise ConfigError(f"views: a task keeps {wanted} on the disk of {folder}, which has {size_text(free)} free")
    return folder
