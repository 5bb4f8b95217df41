"""From a stored image to what a network sees.

Shapes: H height, W width, S image side.
"""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from torchvision.transforms.functional import hflip, resized_crop

from utils.errors import DataError

Transform = Callable[[Image.Image], Tensor]  # RGB -> (3, S, S)

# What a file may be, whatever its name says. PIL knows more; EPS, for one, it hands to an interpreter of programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 2**26  # 8192 x 8192; as PIL keeps them 268 MB. A few bytes of a file can claim any number


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


class View(NamedTuple):
    """What an augmentation takes of an image: a part of it, in pixels, and whether to mirror that."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def draw_view(height: int, width: int) -> View:
    """SEMA's augmentation: a random part of the image, 5 % to all of it, and a coin toss for its mirror image.

    Drawn from torch's global CPU generator as torchvision's RandomResizedCrop and RandomHorizontalFlip do.
    """
    nothing = torch.empty(0, height, width)  # torchvision asks an image for its size alone
    top, left, height, width = RandomResizedCrop.get_params(nothing, [0.05, 1.0], [3 / 4, 4 / 3])
    return View(top, left, height, width, mirrored=bool(torch.rand(1) < 0.5))


@dataclass(frozen=True)
class RandomView:
    """A view of an image, drawn anew every time and resized by PIL."""

    size: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """The view, (S, S)."""
        *part, mirrored = draw_view(image.height, image.width)
        view = resized_crop(image, *part, [self.size, self.size], InterpolationMode.BILINEAR)
        return hflip(view) if mirrored else view


def train_transform(spec: InputSpec) -> Transform:
    """A random view of the image."""
    return Compose([RandomView(spec.size), *_to_tensor(spec)])


def test_transform(spec: InputSpec) -> Transform:
    """The middle of the image: its shorter side becomes 256 / 224 of the network's."""
    resize = Resize(int(spec.size * 256 / 224), InterpolationMode.BICUBIC)
    return Compose([resize, CenterCrop(spec.size), *_to_tensor(spec)])


def _to_tensor(spec: InputSpec) -> list[Callable[..., Tensor]]:
    return [ToTensor()] if spec.mean is None else [ToTensor(), Normalize(spec.mean, spec.std)]


def open_image(image: Path | np.ndarray) -> Image.Image:
    """An image in RGB, whatever it was, as torchvision's loader and SEMA take it.

    Transparency is dropped, of an animation the first frame counts, and a camera's note on which side is up (EXIF) is
    not acted on.

    Args:
        image: A file, or uint8 pixels (H, W) or (H, W, 3).

    Raises:
        DataError: The file cannot be read as an image, or claims more than `MOST_PIXELS`; the message names it.
    """
    if isinstance(image, np.ndarray):
        whole = Image.fromarray(image)
        return whole if whole.mode == "RGB" else whole.convert("RGB")  # which would copy the one that is RGB
    with _opened(image) as opened:
        return _rgb(opened)


def open_pixels(image: Path | np.ndarray) -> np.ndarray:
    """The pixels of `open_image`, uint8 (H, W, 3); of an array that has them, a view."""
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return image
    return np.asarray(open_image(image))


def check_header(path: Path) -> tuple[int, int]:
    """Look at the first bytes of a file, which say what it is and how large, without decoding it.

    Returns:
        Height and width.

    Raises:
        DataError: As `open_image`, as far as these bytes tell.
    """
    with _opened(path) as opened:
        return opened.height, opened.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A file of pixels still to be decoded; whatever goes wrong meanwhile is a DataError that names it."""
    try:
        _refuse_no_content(path)
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels; expected at most {MOST_PIXELS:,} in all")
            yield opened
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a readable image: its content is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # a damaged file can raise nearly anything in PIL's decoders
        raise DataError(f"{path}: not a readable image: {error}") from error


def _refuse_no_content(path: Path) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")  # to read a pipe would be to wait for its writer
    if found.st_size == 0:
        raise ValueError("it is empty")


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
