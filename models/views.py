"""Kept views: augmented views of a task's training images, as activations that are computed once (the key `views`).

After the first task nothing below the first expandable layer learns. Then each image has `views` augmented views, epoch
e of a phase trains on view e mod `views`, and what the frozen blocks make of a view is kept until the task ends.

Shapes: B batch, n training images, K views, N tokens, D embedding width.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from models.evaluation import allocate
from models.protocol import Hooks
from utils.config.schema import Config
from utils.data.loader import Batch
from utils.errors import ConfigError, UserError
from utils.inc_net import SEMAVitNet
from utils.memory import GIB, memory
from utils.progress import progress

logger = logging.getLogger(__name__)

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
    """Return a tensor in a file without a name, which ends with the process; raise UserError if the disk is full."""
    count = torch.Size(shape).numel()
    try:
        with tempfile.NamedTemporaryFile(prefix="views-", dir=folder) as file:
            allocate(file, count * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
    except OSError as error:
        raise UserError(f"views: {count * dtype.itemsize / GIB:.2f} GiB do not fit into {folder}: {error}") from error


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
        folder: Of the file that holds the values; None: they are in memory.
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
        folder: Path | None = None,
        dtype: torch.dtype = torch.float32,
        wait: Callable[[], object] = lambda: None,
    ) -> None:
        self.source, self.compute, self.views, self.task = source, compute, views, task
        self.batch_size, self.folder, self.dtype, self.wait = batch_size, folder, dtype, wait
        self.device = source.device
        self._values: Tensor | None = None  # (K, n, ...)
        self._labels = torch.empty(len(source), dtype=torch.int64)
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
        for indices in order.split(batch_size)[start:]:
            x = values[indices].to(self.device, torch.float32, non_blocking=True)
            yield indices, x, self._labels[indices].to(self.device)

    @torch.no_grad()
    def _view(self, view: int) -> Tensor:  # (n, ...)
        if view not in self._known:
            batches = self.source.epoch("view", self.task, view, batch_size=self.batch_size, shuffle=False)
            total, what = self.source.batches(self.batch_size), f"task {self.task} view {view + 1}/{self.views}"
            for indices, images, labels in progress(batches, what, total):
                self._keep(view, indices, self.compute(images))
                self._labels[indices] = labels.cpu()
                self.wait()
            self._known.add(view)
        assert self._values is not None
        return self._values[view]

    def _keep(self, view: int, indices: Tensor, x: Tensor) -> None:
        if self._values is None:
            shape = (self.views, len(self), *x.shape[1:])
            if self.folder is None:
                self._values = torch.empty(shape, dtype=self.dtype)
            else:
                self._values = on_disk(shape, self.dtype, self.folder)
        self._values[view][indices] = x.to("cpu", self.dtype)


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

    def place(self, images: int) -> Path | None:
        """Return where they are kept, see `place`."""
        limits = self.config.views_gib, self.config.views_disk_gib
        return place(self.bytes(images), *limits, self.hooks.folder)

    def plan(self, counts: Sequence[int]) -> str:
        """Return what is kept as a line for the log, given the number of training images of every task."""
        if not (self.config.views and len(counts) > 1):
            return ""
        if self.network.expandable and not self.network.settled:
            first = self.network.slots[0].expandable
            keys = "adapt_start_layer" if first else "adapter_lifetime, nested_lora_continual_layers"
            return f"views: none are kept, as adapters of the first layer learn in later tasks ({keys})"
        most = max(counts[1:])
        where = self.place(most) or "memory"
        return f"views: from task 1 on, at most {self.bytes(most) / GIB:.2f} GiB are kept in {where}"

    def inputs(self, source: Source, layer: int, task: int) -> KeptViews:
        """Return the images of a source as the input (B, N, D) of block `layer`."""
        where = self.place(len(source))
        return self._kept(source, lambda images: self.network.forward_to(images, layer), task, where)

    def features(self, source: Source, task: int) -> KeptViews:
        """Return the images of a source as features (B, D)."""
        return self._kept(source, lambda x: self.network(x)["features"], task, None)

    def _kept(self, source: Source, compute: Callable[[Tensor], Tensor], task: int, folder: Path | None) -> KeptViews:
        return KeptViews(
            source,
            compute,
            views=self.config.views,
            task=task,
            batch_size=self.config.eval_batch_size,
            folder=folder,
            dtype=self.dtype,
            wait=lambda: self.hooks.keep("wait"),
        )


def place(size: int, in_memory: float, on_disk: float, folder: Path | None) -> Path | None:
    """Return where so many bytes are kept: None is memory, else a folder.

    Args:
        size: Bytes.
        in_memory: The key views_gib.
        on_disk: The key views_disk_gib.
        folder: Of the run, which may not exist yet; None: the temporary folder.

    Raises:
        ConfigError: Neither limit, nor the machine, holds it.
    """
    wanted = f"{size / GIB:.2f} GiB"
    if size <= in_memory * GIB:
        if size > memory():
            raise ConfigError(f"views: a task keeps {wanted}, and this machine has {memory() / GIB:.2f} GiB of memory")
        return None
    folder = folder or Path(tempfile.gettempdir())
    if size > on_disk * GIB:
        raise ConfigError(
            f"views: a task keeps {wanted}, more than views_gib ({in_memory:g}, in memory) and views_disk_gib "
            f"({on_disk:g}, in a file of the run directory); raise one of them, lower views, or set views_bf16"
        )
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if size + HEADROOM > (free := shutil.disk_usage(there).free):
        raise ConfigError(f"views: a task keeps {wanted} on the disk of {folder}, which has {free / GIB:.2f} GiB free")
    return folder
