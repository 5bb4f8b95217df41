"""From a stored image to what a network sees.

Shapes: H height, W width, S image side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)

from utils.config import UserError

Transform = Callable[[Image.Image], Tensor]  # RGB -> (3, S, S)


class DataError(UserError):
    """A data set or an image is not there, not complete or not readable."""


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to see.

    Attributes:
        size: Side S in pixels.
        mean: Of each channel, on the scale 0 to 1; None, as in SEMA: values stay in [0, 1].
        std: Of each channel, given with the mean.
    """

    size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def train_transform(spec: InputSpec) -> Transform:
    """SEMA's augmentation: a random part of the image, 5 % to all of it, and a coin toss for its mirror image."""
    crop = RandomResizedCrop(spec.size, (0.05, 1.0), (3 / 4, 4 / 3), InterpolationMode.BILINEAR)
    return Compose([crop, RandomHorizontalFlip(p=0.5), *_to_tensor(spec)])


def test_transform(spec: InputSpec) -> Transform:
    """The middle of the image: its shorter side becomes 256 / 224 of the network's."""
    resize = Resize(int(spec.size * 256 / 224), InterpolationMode.BICUBIC)
    return Compose([resize, CenterCrop(spec.size), *_to_tensor(spec)])


def _to_tensor(spec: InputSpec) -> list[Callable[..., Tensor]]:
    return [ToTensor()] if spec.mean is None else [ToTensor(), Normalize(spec.mean, spec.std)]


def open_image(image: Path | np.ndarray) -> Image.Image:
    """An image in RGB, whatever it was; transparency is dropped, as SEMA does.

    Args:
        image: A file, or uint8 pixels (H, W) or (H, W, 3).

    Raises:
        DataError: The file cannot be read as an image; the message names it.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image).convert("RGB")
    try:
        with Image.open(image) as opened:
            return _rgb(opened)
    except Exception as error:  # a damaged file can raise nearly anything in PIL's decoders
        raise DataError(f"{image}: not a readable image: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # the direct way gives the same and warns
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper halves of 16-bit pixels; PIL would make everything above 255 white."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("its pixels have more than 16 bits and no fixed range; save it with 8 or 16 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
