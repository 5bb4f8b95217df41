"""Parts of images resized by matrix products: what PIL makes of them, whatever the batch they are in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from utils.data.images import InputSpec
from utils.data.loader import READY, Batch, StreamLoader
from utils.data.resample import ROOM, Part, join, random_part, resample, resampling
from utils.data.sources import ImageData, Split
from utils.data.tasks import DataManager
from utils.streams import seeded

CPU = torch.device("cpu")
STEP = 1 / 255  # of PIL's 8 bits


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pil(part: Part, side: int) -> torch.Tensor:
    """PIL's own bilinear resize in floating point, channel by channel, (3, S, S) on the scale 0 to 1."""
    planes = [Image.fromarray(part.pixels[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR)) for plane in planes]
    image = torch.from_numpy(np.stack(resized)) / 255
    return image.flip(2) if part.mirrored else image


PARTS = [
    Part(noise(height, width, height), mirrored)
    for height, width, mirrored in [
        (22, 20, False), (32, 32, True), (1, 1, True), (1, 40, False), (56, 17, True), (56, 56, False), (64, 63, True),
        (130, 90, False), (7, 300, True),
    ]
]  # fmt: skip


@pytest.mark.parametrize("side", [1, 8, 56, 224])
@pytest.mark.parametrize("room", [0, 30_000, 2**24])
def test_every_part_becomes_what_pil_makes_of_it_in_floating_point(side: int, room: int):
    images = resample(join(PARTS, room), CPU, InputSpec(side))
    assert (images.shape, images.dtype) == ((len(PARTS), 3, side, side), torch.float32)
    for part, image in zip(PARTS, images, strict=True):
        torch.testing.assert_close(image, by_pil(part, side), rtol=0, atol=2e-5)


def test_padding_counts_nothing():
    parts = join(PARTS, 2**24)
    assert len(parts.groups) == 1
    expected = resample(parts, CPU, InputSpec(16))
    (n, height, width), used = parts.groups[0], torch.zeros(parts.pixels.shape, dtype=torch.bool)
    for place, (h, w) in zip(used.view(n, height, width, 3), parts.sizes.tolist(), strict=True):
        place[:h, :w] = True
    other = parts._replace(pixels=torch.where(used, parts.pixels, 255))
    assert not torch.equal(other.pixels, parts.pixels)
    torch.testing.assert_close(resample(other, CPU, InputSpec(16)), expected, rtol=0, atol=0)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12), st.integers(0, 900))
def test_groups_keep_the_order_and_stay_within_their_room(sizes: list[tuple[int, int]], room: int):
    parts = join([Part(np.full((*size, 3), row, np.uint8), False) for row, size in enumerate(sizes)], room)
    assert sum(n for n, *_ in parts.groups) == len(sizes)
    assert parts.sizes.tolist() == [list(size) for size in sizes]
    first = 0
    for n, height, width in parts.groups:
        assert n == 1 or 3 * n * height * width <= room
        assert [height, width] == [max(side) for side in zip(*sizes[first : first + n], strict=True)]
        first += n
    means = resample(parts, CPU, InputSpec(2)).mean(dim=(1, 2, 3)) * 255
    torch.testing.assert_close(means, torch.arange(float(len(sizes))), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (64, 50), (9, 90)])
def test_parts_are_those_that_torchvision_draws(size: tuple[int, int]):
    """An image that shows its own coordinates says which part it is."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.dstack([rows, columns, 0 * rows]).astype(np.uint8)
    for number in range(200):
        with seeded("part", number):
            part = random_part(image)
        with seeded("part", number):
            top, left, height, width = RandomResizedCrop.get_params(Image.fromarray(image), [0.05, 1.0], [3 / 4, 4 / 3])
            mirrored = bool(torch.rand(1) < 0.5)
        assert (part.pixels.shape, part.pixels[0, 0].tolist()) == ((height, width, 3), [top, left, 0])
        assert part.mirrored == mirrored


# ---- through the loader, beside the host's


def data_of(images: list[np.ndarray] | np.ndarray, folder: Path) -> DataManager:
    """One class of these images, as an array or else in files."""
    stored: list[Path] | np.ndarray = images if isinstance(images, np.ndarray) else []
    for number, pixels in enumerate(images if isinstance(images, list) else ()):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        stored.append(folder / f"{number}.png")  # type: ignore[union-attr]
    split = Split(stored, np.zeros(len(images), dtype=np.int64))
    return DataManager(ImageData(split, split, ("only",)), shuffle=False, seed=0, init_cls=1, increment=1)


SETS: dict[str, tuple[list[np.ndarray] | np.ndarray, int]] = {
    "32 to 224": (np.stack([noise(32, 32, seed) for seed in range(9)]), 224),
    "64 to 56": (np.stack([noise(64, 64, seed) for seed in range(9)]), 56),
    "grey": (np.stack([noise(20, 30, seed)[..., 0] for seed in range(9)]), 24),
    "files": ([noise(30 + 17 * seed, 200 - 20 * seed, seed) for seed in range(9)], 64),
    "grey files": ([noise(40, 30 + seed, seed)[..., 0] for seed in range(9)], 32),
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., list[Batch]]:
    def batches(name: str, on_device: bool, workers: int = 0, decoded_gib: float = 0.0, **keys: int) -> list[Batch]:
        images, side = SETS[name]
        spec = InputSpec(side, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)) if "grey" in name else InputSpec(side)
        mode, way = ("part", resampling(spec, CPU)) if on_device else ("train", READY)
        dataset = data_of(images, tmp_path).get_dataset([0], "train", mode, spec, decoded_gib)  # type: ignore[arg-type]
        loader = StreamLoader(dataset, workers, CPU, 3, way)
        found = list(loader.epoch("func", 0, batch_size=4, shuffle=True, **keys))
        loader.close()
        return found

    return batches


@pytest.mark.parametrize("name", SETS)
def test_images_are_the_host_s_but_for_its_rounding(load: Callable[..., list[Batch]], name: str):
    smallest_std = 0.2 if "grey" in name else 1.0
    apart = []
    for host, device in zip(load(name, on_device=False), load(name, on_device=True), strict=True):
        assert torch.equal(host[0], device[0])
        assert torch.equal(host[2], device[2])
        apart.append(((host[1] - device[1]) * smallest_std / STEP).flatten())
    gaps = torch.cat(apart)
    assert gaps.abs().max() < 1.01
    assert gaps.abs().mean() < 0.4
    assert gaps.mean().abs() < 0.05  # PIL rounds a half up


@pytest.mark.parametrize(("workers", "decoded_gib"), [(0, 1.0), (2, 0.0), (2, 1.0)])
@pytest.mark.parametrize("name", ["64 to 56", "files"])
def test_who_loads_and_what_is_decoded_already_changes_nothing(
    load: Callable[..., list[Batch]], name: str, workers: int, decoded_gib: float
):
    whole = load(name, on_device=True)
    others = load(name, True, workers, decoded_gib)
    torch.testing.assert_close(others, whole, rtol=0, atol=0)
    torch.testing.assert_close(load(name, True, workers, decoded_gib, start=1), whole[1:], rtol=0, atol=0)


def test_only_what_is_needed_of_an_image_is_handed_over():
    """Less than a hundredth of the bytes of the images that a network at 224 px sees, also when padded for a GPU."""
    parts = []
    for number in range(32):
        with seeded("part", number):
            parts.append(random_part(noise(32, 32)))
    seen = 32 * 3 * 224 * 224 * 4
    for handed in (join(parts, ROOM["cuda"]), resampling(InputSpec(224), CPU).join(parts)):
        assert sum(tensor.nbytes for tensor in (handed.pixels, handed.sizes, handed.mirrored)) < seen / 100
    assert [n for n, *_ in join(parts, ROOM["cuda"]).groups] == [32]
