"""Image files that are decoded once and kept in memory while a task trains on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from utils.data.images import check_header, open_pixels
from utils.data.readable import read_all
from utils.memory import GIB


class DecodedImages:
    """Files of which the first ones are decoded, as many as fit into `limit_gib`.

    All pixels are in one tensor that is filled before workers start, so that the workers share its memory.

    Raises:
        DataError: A file is not a readable image.
    """

    def __init__(self, files: Sequence[Path], limit_gib: float) -> None:
        self._files = list(files)
        self._sizes = read_all(check_header, self._files, "sizes of images")
        self._ends = np.cumsum([3 * height * width for height, width in self._sizes], dtype=np.int64)
        self.kept = int(np.searchsorted(self._ends, limit_gib * GIB, side="right"))
        self._pixels = torch.empty(int(self._ends[self.kept - 1]) if self.kept else 0, dtype=torch.uint8)
        read_all(self._decode, range(self.kept), "decoding images")

    def __len__(self) -> int:
        return len(self._files)

    @property
    def nbytes(self) -> int:
        """Bytes of all files when they are decoded, whether or not they fit."""
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Path | np.ndarray:
        """Return the pixels (height, width, 3) if the file is decoded, otherwise its path."""
        return self._place(row) if row < self.kept else self._files[row]

    def _decode(self, row: int) -> None:
        self._place(row)[:] = open_pixels(self._files[row])

    def _place(self, row: int) -> np.ndarray:
        (height, width), end = self._sizes[row], int(self._ends[row])
        part: np.ndarray = self._pixels[end - 3 * height * width : end].numpy()
        return part.reshape(height, width, 3)
