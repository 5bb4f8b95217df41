"""Opening images, and the transforms of training and testing.

Shapes: H height, W width, S image side.
"""

import io
import logging
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

# Formats that are accepted, whatever a file's name says. PIL knows more, such as EPS, for which it runs Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
NO_RANGE = "its pixels have more than 16 bits and no fixed range; save it with 8 or 16 bits"
MOST_PIXELS = 2**26  # 8192 x 8192, 268 MB in PIL; a header of a few bytes can claim any size
THUMBNAIL = 96  # longest side in pixels
LONGEST = 100  # times the shorter side; the test transform resizes the shorter side to the network's input

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputSpec:
    """The input of a network.

    Attributes:
        size: Side S in pixels.
        mean: Mean of each channel, on the scale 0 to 1; None: images are not normalised, as in SEMA.
        std: Standard deviation of each channel, given with the mean.
    """

    size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class View(NamedTuple):
    """A part of an image, in pixels, and whether to mirror it."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def draw_view(height: int, width: int) -> View:
    """Draw SEMA's augmentation: a random part of 5 % to 100 % of the image, mirrored with probability 1/2.

    It makes the same draws from torch's global CPU generator as torchvision's RandomResizedCrop and
    RandomHorizontalFlip.
    """
    nothing = torch.empty(0, height, width)  # only its size is used
    top, left, height, width = RandomResizedCrop.get_params(nothing, [0.05, 1.0], [3 / 4, 4 / 3])
    return View(top, left, height, width, mirrored=bool(torch.rand(1) < 0.5))


@dataclass(frozen=True)
class RandomView:
    """A random view of an image, resized by PIL."""

    size: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the view, (S, S)."""
        *part, mirrored = draw_view(image.height, image.width)
        view = resized_crop(image, *part, [self.size, self.size], InterpolationMode.BILINEAR)
        return hflip(view) if mirrored else view


def train_transform(spec: InputSpec) -> Transform:
    """Return the transform of training: a random view."""
    return Compose([RandomView(spec.size), *_to_tensor(spec)])


def test_transform(spec: InputSpec) -> Transform:
    """Return the transform of testing: the shorter side is resized to 256 / 224 of S, and the centre is cropped."""
    resize = Resize(int(spec.size * 256 / 224), InterpolationMode.BICUBIC)
    return Compose([resize, CenterCrop(spec.size), *_to_tensor(spec)])


def _to_tensor(spec: InputSpec) -> list[Callable[..., Tensor]]:
    return [ToTensor()] if spec.mean is None else [ToTensor(), Normalize(spec.mean, spec.std)]


def open_image(image: Path | np.ndarray | Image.Image) -> Image.Image:
    """Open an image in RGB, as torchvision's loader and SEMA do.

    Transparency is dropped, an animation gives its first frame, and the EXIF orientation is ignored.

    Args:
        image: A file, uint8 pixels (H, W) or (H, W, 3), or an image of PIL.

    Raises:
        DataError: The file cannot be read as an image, has more than `MOST_PIXELS`, or is longer than `LONGEST`.
    """
    if isinstance(image, Image.Image):
        try:
            return _rgb(image)
        except Exception as error:  # it may be read only now
            raise DataError(f"a PIL image of mode {image.mode} cannot be read: {error}") from error
    if isinstance(image, np.ndarray):
        whole = Image.fromarray(image)
        return whole if whole.mode == "RGB" else whole.convert("RGB")  # convert copies even if it is RGB
    with _opened(image) as opened:
        return _rgb(opened)


def open_pixels(image: Path | np.ndarray) -> np.ndarray:
    """Return the pixels of `open_image`, uint8 (H, W, 3); for an array of that shape without a copy."""
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return image
    return np.asarray(open_image(image))


def thumbnail(image: Path | np.ndarray, name: str) -> tuple[str, bytes]:
    """Return a name and a small JPEG of an image; for a file that cannot be read, a warning and no JPEG.

    Args:
        image: See `open_image`.
        name: Of an array. The name of a file is its own, with its folder.
    """
    name = name if isinstance(image, np.ndarray) else f"{image.parent.name}/{image.name}"
    content = io.BytesIO()
    try:
        small = open_image(image).copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(content, format="JPEG", quality=90, subsampling=0)
    except DataError as error:
        logger.warning("%s; it has no thumbnail", error)
    return name, content.getvalue()


def check_header(path: Path) -> tuple[int, int]:
    """Return the height and width of an image file from its header, without decoding it.

    Raises:
        DataError: The header shows that `open_image` would fail.
    """
    with _opened(path) as opened:
        if opened.mode == "F":
            raise ValueError(NO_RANGE)
        return opened.height, opened.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a file without decoding it; errors in the `with` block become a DataError with the file's name."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for its writer
            raise ValueError("it is not a regular file")
        if found.st_size == 0:
            raise ValueError("it is empty")
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels; expected at most {MOST_PIXELS:,} in all")
            if max(opened.size) > LONGEST * min(opened.size):
                raise ValueError(f"{opened.width} x {opened.height} pixels; expected sides of a ratio up to {LONGEST}")
            yield opened
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a readable image: its content is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # PIL's decoders raise nearly anything on damaged files
        raise DataError(f"{path}: not a readable image: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(NO_RANGE)
        image = Image.fromarray((pixels >> 8).astype(np.uint8))  # PIL would make every value above 255 white
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # converting to RGB directly gives the same result with a warning
    return image.convert("RGB")
