"""Test images half way through the network, kept for the evaluations to come.

Once the blocks below the first expandable layer are frozen for good, what they make of a test image never changes
again: each later evaluation runs the rest of the network only. Whole batches are kept, so that an evaluation sees the
batches it would see without, and gives the same numbers bit by bit (unless they are kept in bfloat16).

Shapes: B batch, N tokens, D embedding width.
"""

import logging
import os
import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.memory import GIB

logger = logging.getLogger(__name__)

Branches = tuple[str, ...]


@dataclass(frozen=True)
class Kept:
    """A batch half way.

    Attributes:
        x: (B, N, D) input of the first block that can still change.
        labels: (B,) true classes.
    """

    x: Tensor
    labels: Tensor


class ActivationCache:
    """The first batches of the test set, for each way the adapters' branches can answer, up to a bound.

    Args:
        limit_gib: Bound on all of it together, GiB; 0: nothing is kept.
        where: "memory": the host's, "disk": a file in the temporary folder, which goes with the process.
        dtype: What activations are kept in; None: as they are.
    """

    def __init__(self, limit_gib: float, where: str = "memory", dtype: torch.dtype | None = None) -> None:
        self._left = int(limit_gib * GIB)
        self._where, self._dtype = where, dtype
        self._kept: dict[Branches, list[Kept]] = {}
        self._full: set[Branches] = set()

    def batches(self, branches: Branches) -> list[Kept]:
        """The batches that are kept, from the first on."""
        return self._kept.get(branches, [])

    def offer(self, branches: Branches, number: int, x: Tensor, labels: Tensor) -> None:
        """Keep a batch if it follows on those that are kept and there is room.

        Args:
            branches: The active branches it was computed with.
            number: Which batch of the test set, from 0.
            x: (B, N, D).
            labels: (B,).
        """
        kept = self._kept.setdefault(branches, [])
        dtype = self._dtype or x.dtype
        size = x.numel() * dtype.itemsize
        if number != len(kept) or branches in self._full:
            return
        if size > self._left:
            self._full.add(branches)  # a later, smaller batch must not fill a gap
            return
        try:
            kept.append(Kept(self._store(x.detach().to(dtype)), labels.cpu()))
        except OSError as error:
            logger.warning("no more test images are kept half way (eval_cache_on): %s", error)
            self._left = size = 0
        self._left -= size

    def clear(self) -> None:
        """Forget everything: the network is another one now."""
        self._left += sum(batch.x.nbytes for kept in self._kept.values() for batch in kept)
        self._kept.clear()
        self._full.clear()

    def _store(self, x: Tensor) -> Tensor:
        return x.cpu().clone() if self._where == "memory" else on_disk(x)


def on_disk(x: Tensor) -> Tensor:
    """A copy of a tensor in a file without a name, which goes with the tensor.

    Raises:
        OSError: The disk is full.
    """
    with tempfile.NamedTemporaryFile(prefix="activations-") as file:
        os.posix_fallocate(file.fileno(), 0, x.nbytes)  # without it a full disk would end the process at a later write
        mapped = torch.from_file(file.name, shared=True, size=x.numel(), dtype=x.dtype)
    return mapped.copy_(x.flatten()).view(x.shape)
