"""The list of a run's images, which identifies them.

    <run>/images.tsv.gz      part, class, name, size in bytes and hash of every image, in the stored order

The part is train, test, or val: images of the training half that the run did not train on.

Imports no torch, so that finished runs can be read quickly.
"""

import csv
import gzip
import io
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import DataError
from utils.files import atomic_write

RECORD, IMAGES = "data.json", "images.tsv.gz"
VAL = "val"


class Image(NamedTuple):
    """An image as it is listed. `part` is train, val or test; `name` is below the folder of the class, or a row."""

    part: str
    class_name: str
    name: str
    size: str
    digest: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from other images of the data set."""
        return self[:3]


def fingerprint(images: Iterable[Image], part: str) -> dict[str, Any]:
    """Return the number of images of a part, and the SHA-256 (hex) over all that is listed of them.

    For `train` these are the images of the whole training half, so that it does not depend on the draw.
    """
    parts = {"train": ("train", VAL)}.get(part, (part,))
    lines = ["\t".join(image[1:]) + "\n" for image in images if image.part in parts]
    return {"images": len(lines), "sha256": sha256("".join(lines).encode()).hexdigest()}


def write_images(run: Path, images: Iterable[Image]) -> None:
    """Write the list. Equal lists give equal files."""
    text = io.StringIO()
    csv.writer(text, csv.excel_tab, lineterminator="\n").writerows(images)
    atomic_write(run / IMAGES, gzip.compress(text.getvalue().encode(), mtime=0))


def read_images(run: Path) -> list[Image]:
    """Read the list.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        text = gzip.decompress((run / IMAGES).read_bytes()).decode()
        if images := [Image(*line) for line in csv.reader(io.StringIO(text, newline=""), csv.excel_tab)]:
            return images
        raise ValueError("it is empty")
    except (OSError, EOFError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{run / IMAGES}: cannot be read: {error}") from error
