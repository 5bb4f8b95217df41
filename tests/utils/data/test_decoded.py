"""Files decoded once: the same pixels, within the bound, and the files are not needed any more."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.decoded import DecodedImages
from utils.data.images import InputSpec, open_image
from utils.data.loader import Batch, StreamLoader
from utils.data.sources import load_dataset
from utils.data.tasks import DataManager, TaskImages
from utils.errors import DataError
from utils.memory import GIB

ONE = 3 * 20 * 30  # bytes of one of the images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of five noisy images in two formats."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number, ending in enumerate(("png", "jpg", "png", "jpg", "png")):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.{ending}")
    return tmp_path


def train_images(folder: Path, decoded_gib: float) -> TaskImages:
    tasks = DataManager(load_dataset("imagefolder", folder), shuffle=False, seed=1, init_cls=2, increment=2)
    return tasks.get_dataset(range(2), source="train", mode="train", spec=InputSpec(8), decoded_gib=decoded_gib)


def batches(images: TaskImages, workers: int) -> list[Batch]:
    loader = StreamLoader(images, workers, torch.device("cpu"), seed=1)
    found = [batch for epoch in range(2) for batch in loader.epoch("func", epoch, batch_size=4, shuffle=True)]
    loader.close()
    return found


def test_pixels_of_any_size_and_mode_are_those_that_opening_gives(tmp_path: Path):
    colour, turned = Image.fromarray(np.arange(13 * 17 * 3, dtype=np.uint8).reshape(13, 17, 3)), Image.Exif()
    turned[0x0112] = 6  # a quarter turn, which of these formats PIL acts on in TIFF alone
    for number, mode in enumerate(("RGB", "L", "P", "RGBA", "LA", "1")):
        colour.convert(mode).resize((17 + number, 13)).save(tmp_path / f"{mode}.png")
    colour.save(tmp_path / "turned.tif", exif=turned)
    colour.save(tmp_path / "turned.jpg", exif=turned)
    colour.save(tmp_path / "moves.gif", save_all=True, append_images=[colour.rotate(90)])
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(tmp_path / "deep.png")
    files = sorted(tmp_path.iterdir())
    images = DecodedImages(files, 1.0)
    assert len(images) == images.kept == 10
    for row, file in enumerate(files):
        np.testing.assert_array_equal(images[row], np.asarray(open_image(file)), err_msg=file.name)
    assert {image.shape for image in images} >= {(17, 13, 3), (13, 17, 3), (13, 18, 3), (5, 6, 3)}


@pytest.mark.parametrize(
    ("room", "kept"), [(0, 0), (ONE - 1, 0), (ONE, 1), (3 * ONE, 3), (3.9 * ONE, 3), (99 * ONE, 5)]
)
def test_the_first_are_decoded_as_far_as_the_bound_goes(folder: Path, room: float, kept: int):
    files = sorted((folder / "train" / "a").iterdir())
    images = DecodedImages(files, room / GIB)
    assert images.kept == kept
    assert [images[row] for row in range(kept, 5)] == files[kept:]
    assert all(isinstance(images[row], np.ndarray) for row in range(kept))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("room", [4, 10])
def test_batches_are_the_same_whether_and_how_many_are_decoded_and_whoever_loads(folder: Path, workers: int, room: int):
    plain = batches(train_images(folder, 0), 0)
    torch.testing.assert_close(batches(train_images(folder, room * ONE / GIB), workers), plain, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_decoded_file_is_not_opened_again(folder: Path, workers: int):
    plain, images = batches(train_images(folder, 0), 0), train_images(folder, 1)
    for file in folder.glob("train/*/*"):
        file.unlink()
    torch.testing.assert_close(batches(images, workers), plain, rtol=0, atol=0)


def test_the_first_damaged_file_is_named_at_once_and_no_thread_stays(folder: Path):
    files = sorted((folder / "train" / "a").iterdir())
    for path in files[2:4]:
        path.write_bytes(path.read_bytes()[:-200])  # the header is sound
    before = threading.active_count()
    with pytest.raises(DataError) as caught:
        train_images(folder, 1)
    assert str(caught.value).startswith(f"{files[2]}: not a readable image: ")
    train_images(folder, 2 * ONE / GIB)  # has no room for it, and leaves it to whoever loads it
    assert threading.active_count() == before
