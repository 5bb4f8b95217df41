"""SEMA's augmentation on the device: image parts of different sizes, resized as one batch by matrix products.

A line of pixels becomes S weighted sums with the weights of PIL's antialiased bilinear filter: a triangle centred on
the new pixel, with a half-width of one old or one new pixel, whichever is larger, cut off at the ends of the line and
normalised to sum 1. Applied to rows and columns, this is PIL's result before it rounds to 8 bits in each direction: no
value differs by more than 1/255, up to the last bits of PIL's weights.

Shapes: B batch, n images of a group, H height and W width of the group's largest part, S image side.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.data.images import InputSpec, draw_view
from utils.data.loader import Way

# Largest number of values in a group, by type of device. Large products are fast on a GPU (2**24 values take 64 MiB in
# float32). On a CPU, groups that exceed the cache are not faster, and padding costs time.
ROOM = {"cuda": 2**24, "cpu": 2**18}


class Part(NamedTuple):
    """A random view before it is resized: its pixels, uint8 (h, w, 3), and whether to mirror it."""

    pixels: np.ndarray
    mirrored: bool


class Parts(NamedTuple):
    """The parts of a batch.

    Attributes:
        pixels: (sum of n * H * W * 3,) uint8, group after group; each part is in the upper left of its place.
        groups: n, H, W of every group.
        sizes: (B, 2) height and width of every part.
        mirrored: (B,) whether to mirror it.
    """

    pixels: Tensor
    groups: list[list[int]]
    sizes: Tensor
    mirrored: Tensor


def random_part(pixels: np.ndarray) -> Part:
    """Return the part of an image (H, W, 3) that the train transform would resize, with the same draws."""
    top, left, height, width, mirrored = draw_view(*pixels.shape[:2])
    return Part(pixels[top : top + height, left : left + width], mirrored)


def resampling(spec: InputSpec, device: torch.device) -> Way:
    """Return the `Way` for a data set of parts."""
    return Way(partial(join, room=ROOM[device.type]), partial(resample, spec=spec))


def join(parts: Sequence[Part], room: int) -> Parts:
    """Concatenate the parts of a batch, in groups that are padded to one size.

    Args:
        parts: In the order of the batch.
        room: Largest number of values in a group, with its padding; a larger part is a group of its own.
    """
    sizes = [part.pixels.shape[:2] for part in parts]
    groups: list[list[int]] = []
    for height, width in sizes:
        n, most_high, most_wide = groups[-1] if groups else (0, 0, 0)
        grown = [n + 1, max(most_high, height), max(most_wide, width)]
        if groups and _values(grown) <= room:
            groups[-1] = grown
        else:
            groups.append([1, height, width])
    pixels = torch.zeros(sum(map(_values, groups)), dtype=torch.uint8)
    places = [place for block in _blocks(pixels, groups) for place in block.numpy()]
    for place, (height, width), part in zip(places, sizes, parts, strict=True):
        place[:height, :width] = part.pixels
    return Parts(pixels, groups, torch.tensor(sizes), torch.tensor([part.mirrored for part in parts]))


def _values(group: list[int]) -> int:
    return 3 * math.prod(group)


def _blocks(pixels: Tensor, groups: list[list[int]]) -> list[Tensor]:
    """Return the view of each group in `pixels`, (n, H, W, 3)."""
    blocks = pixels.split([_values(group) for group in groups])
    return [block.view(*group, 3) for block, group in zip(blocks, groups, strict=True)]


def resample(parts: Parts, device: torch.device, spec: InputSpec) -> Tensor:
    """Resize, mirror and normalise parts to (B, 3, S, S) on the device, without synchronising with it."""
    pixels, sizes, mirrored = (
        tensor.to(device, non_blocking=True) for tensor in (parts.pixels, parts.sizes, parts.mirrored)
    )
    images = torch.empty(len(sizes), 3, spec.size, spec.size, device=device)
    numbers = [n for n, *_ in parts.groups]
    by_group = (tensor.split(numbers) for tensor in (sizes, mirrored, images))
    for block, *of_group in zip(_blocks(pixels, parts.groups), *by_group, strict=True):
        _resample(block, *of_group)
    for plane, mean, std in zip(images.unbind(1), spec.mean or (), spec.std or (), strict=False):
        plane.sub_(mean).div_(std)  # Python numbers need no transfer to the device
    return images


def _resample(pixels: Tensor, sizes: Tensor, mirrored: Tensor, images: Tensor) -> None:
    """Resize the parts of a group (n, H, W, 3) into `images` (n, 3, S, S)."""
    n, height, width, _ = pixels.shape
    side = images.shape[-1]
    rows = weights(sizes[:, 0], height, side, torch.zeros_like(mirrored)) / 255  # (n, S, H)
    columns = weights(sizes[:, 1], width, side, mirrored)  # (n, S, W)
    tall = torch.bmm(rows, pixels.float().view(n, height, width * 3)).view(n, side, width, 3)
    planes = tall.permute(0, 3, 1, 2).reshape(n, 3 * side, width)
    torch.bmm(planes, columns.transpose(1, 2), out=images.view(n, 3 * side, side))


def weights(extents: Tensor, width: int, side: int, mirrored: Tensor) -> Tensor:
    """Return the weights of a line's pixels in the new pixels, (n, S, width); they sum to 1 over `width`.

    Args:
        extents: (n,) pixels of each line; the rest up to `width` is padding with weight 0.
        width: Pixels of a line with its padding.
        side: S.
        mirrored: (n,) whether to reverse the new line.
    """
    step = (extents / side)[:, None]  # (n, 1), pixels of the line to a new one
    places = torch.arange(side, device=extents.device) + 0.5
    middles = torch.where(mirrored[:, None], side - places, places) * step  # (n, S)
    pixels = torch.arange(width, device=extents.device) + 0.5
    away = (pixels - middles[..., None]).abs() / step.clamp(min=1)[..., None]  # (n, S, width)
    counted = (1 - away).clamp(min=0) * (pixels < extents[:, None, None])
    return counted / counted.sum(dim=2, keepdim=True)
