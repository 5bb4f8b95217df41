"""Set training images aside for validation.

Each image draws a number from a stream named by the seed of the run, its class and its content, and those with the
smallest numbers of each class are set aside. The draw does not depend on the order of the classes, on the tasks or on
the names of files.
"""

import logging
from dataclasses import replace

import numpy as np

from utils.data.sources import ImageData
from utils.errors import ConfigError
from utils.streams import derive

logger = logging.getLogger(__name__)


def with_validation(data: ImageData, fraction: float, seed: int) -> ImageData:
    """Return the data set with a share of each class's training images, rounded, as validation images.

    An image that is a test image too, by its content, is not drawn. Copies of validation images that stay among the
    training images are counted in a warning.

    Args:
        data: The data set.
        fraction: The share, 0 to 1; 0: none.
        seed: Of the run.

    Raises:
        ConfigError: A class would have no training image, or no validation image.
    """
    if not fraction:
        return data
    tested = {content.digest for content in data.test.contents}
    digests = [content.digest for content in data.train.contents]
    aside = np.zeros(len(digests), bool)
    for label, name in enumerate(data.class_names):
        rows = np.flatnonzero(data.train.labels == label).tolist()
        free = [row for row in rows if digests[row] not in tested]
        count = int(len(rows) * fraction + 0.5)
        if not 0 < count < len(rows) or count > len(free):
            has = f"class {name} has {len(rows)} training images"
            has += f", of which {len(rows) - len(free)} are test images too" if len(free) < len(rows) else ""
            left = f"{count} would be for validation; expected at least one for validation and one for training"
            raise ConfigError(f"val_fraction = {fraction}: {has}, and {left}")
        aside[sorted(free, key=lambda row: (derive(seed, "validation", name, digests[row]), row))[:count]] = True
    _warn_of_copies(data, aside, seed)
    return replace(data, validation=aside)


def _warn_of_copies(data: ImageData, aside: np.ndarray, seed: int) -> None:
    """Warn of validation images that are training images as well."""
    rows = data.rows("train")
    learned = {c.digest: f"{name}/{c.name}" for (name, c), out in zip(rows, aside, strict=True) if not out}
    held = [(f"{name}/{c.name}", c.digest) for (name, c), out in zip(rows, aside, strict=True) if out]
    if both := [(place, learned[digest]) for place, digest in held if digest in learned]:
        counted = f"{len(both)} of {len(held)} validation images are training images, too"
        logger.warning("val_fraction, seed %d: %s; the first one, train/%s, is train/%s", seed, counted, *both[0])
