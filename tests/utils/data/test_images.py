"""What a network sees of an image, whatever it was stored as."""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torchvision.transforms import Compose, InterpolationMode, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from utils.data import images
from utils.data.images import InputSpec, check_header, open_image, train_transform
from utils.errors import DataError
from utils.streams import seeded

RAMP = np.linspace(0, 255, 12 * 16 * 3).reshape(12, 16, 3).astype(np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def test_arrays_become_rgb():
    np.testing.assert_array_equal(pixels(open_image(RAMP)), RAMP)
    np.testing.assert_array_equal(pixels(open_image(RAMP[..., 0])), grey(RAMP[..., 0]))


def test_files_of_plain_modes(tmp_path: Path):
    rgb, solid = Image.fromarray(RAMP), Image.new("CMYK", (16, 12), (0, 255, 255, 0))
    for mode in ("RGB", "L", "RGBA", "LA", "1", "P"):
        rgb.convert(mode).save(tmp_path / f"{mode}.png")
    solid.save(tmp_path / "CMYK.tif")
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "RGB.png")), RAMP)
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "RGBA.png")), RAMP)
    for mode in ("L", "LA"):
        np.testing.assert_array_equal(pixels(open_image(tmp_path / f"{mode}.png")), grey(np.asarray(rgb.convert("L"))))
    assert set(np.unique(pixels(open_image(tmp_path / "1.png")))) == {0, 255}
    assert np.abs(pixels(open_image(tmp_path / "P.png")).astype(int) - RAMP).mean() < 40
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "CMYK.tif"))[0, 0], [255, 0, 0])


def test_alpha_is_dropped_and_a_palette_with_alpha_does_not_warn(tmp_path: Path):
    halves = np.dstack([RAMP, np.full((12, 16), 7, np.uint8)])
    Image.fromarray(halves).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "alpha.png")), RAMP)
    palette = Image.new("P", (16, 12), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=bytes([255, 128]))
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "palette.png"))[5, 5], [10, 20, 30])


def test_an_adobe_cmyk_jpeg_is_the_colour_it_shows(tmp_path: Path):
    Image.new("CMYK", (16, 12), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    assert np.abs(pixels(open_image(tmp_path / "red.jpg")).astype(int) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize("name", ["moves.gif", "moves.webp", "moves.png", "pages.tif"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, name: str):
    frames = [Image.new("RGB", (16, 12), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / name) as stored:
        assert stored.n_frames == 2
    assert np.abs(pixels(open_image(tmp_path / name)).astype(int) - [255, 0, 0]).max() < 6


def test_a_camera_s_pair_of_pictures_is_its_first_one(tmp_path: Path):
    frames = [Image.new("RGB", (16, 12), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "pair.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(pixels(open_image(tmp_path / "pair.jpg")).astype(int) - [255, 0, 0]).max() < 6


def test_which_side_is_up_is_left_as_stored(tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the orientation: a quarter turn
    Image.fromarray(RAMP).save(tmp_path / "turned.png", exif=turned)
    with Image.open(tmp_path / "turned.png") as stored:
        assert stored.getexif()[0x0112] == 6
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "turned.png")), RAMP)


def test_the_content_decides_and_not_the_name(tmp_path: Path):
    Image.fromarray(RAMP).save(tmp_path / "photo.jpg", "PNG")
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "photo.jpg")), RAMP)


def test_a_program_in_postscript_is_no_image(tmp_path: Path):
    Image.fromarray(RAMP).save(tmp_path / "photo.jpg", "EPS")
    with pytest.raises(DataError, match=r"photo\.jpg: .* none of BMP, GIF, JPEG"):
        open_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_sixteen_bits_keep_their_upper_half(tmp_path: Path, name: str):
    deep = (np.arange(12 * 16).reshape(12, 16) * 341).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / name)
    np.testing.assert_array_equal(pixels(open_image(tmp_path / name)), grey(deep // 256))


def damaged(kind: str, path: Path) -> None:
    Image.fromarray(RAMP).resize((160, 120)).save(path)
    whole = path.read_bytes()
    contents = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>404</html>",
        "flipped": whole[:60] + bytes(byte ^ 0x5A for byte in whole[60:90]) + whole[90:],
    }
    path.write_bytes(contents[kind])


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (1, 101), (303, 3), (2, 201)])
@pytest.mark.parametrize("look", [check_header, open_image])
def test_an_image_that_is_long_beyond_use_is_refused(
    tmp_path: Path, size: tuple[int, int], look: Callable[..., object]
):
    Image.new("RGB", size).save(tmp_path / "line.png")
    with pytest.raises(
        DataError, match=rf"line\.png: .*{size[0]} x {size[1]} pixels; expected sides of a ratio up to 100"
    ):
        look(tmp_path / "line.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (200, 2)])
def test_small_and_long_images_are_looked_at(tmp_path: Path, size: tuple[int, int]):
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "line.png")
    check_header(tmp_path / "line.png")
    for transform in (train_transform, images.test_transform):
        seen = transform(InputSpec(16))(open_image(tmp_path / "line.png"))
        torch.testing.assert_close(seen, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 16, 16))


def test_a_text_that_unpacks_to_megabytes_is_refused(tmp_path: Path):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 2**21, zip=True)
    Image.fromarray(RAMP).save(tmp_path / "cat.png", pnginfo=text)
    with pytest.raises(DataError, match=r"cat\.png: not a readable image: "):
        check_header(tmp_path / "cat.png")


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "flipped"])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str):
    path = tmp_path / "cat.png"
    damaged(kind, path)
    with pytest.raises(DataError, match=r"cat\.png: not a readable image: .+"):
        open_image(path)


def test_a_missing_file_a_decompression_bomb_and_pixels_without_a_range_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(DataError, match=r"gone\.png"):
        open_image(tmp_path / "gone.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: .*8 or 16 bits"):
        open_image(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: .*8 or 16 bits"):  # before any training
        check_header(tmp_path / "float.tif")
    Image.fromarray(RAMP).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 16 // 3)
    with pytest.raises(DataError, match=r"bomb\.png: .*decompression bomb"):
        open_image(tmp_path / "bomb.png")


def white(path: Path, width: int, height: int) -> None:
    """A PNG of one bit a pixel, which says how large it is in bytes 16 to 23 and holds a thousandth of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.new("1", (width, height), 1).save(path)


def test_pixels_are_bounded_where_pil_does_not_even_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    white(tmp_path / "most.png", 8192, 8192)
    check_header(tmp_path / "most.png")
    white(tmp_path / "more.png", 8192, 8193)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    for read in (open_image, check_header):
        with pytest.raises(DataError, match=r"more\.png: .*8192 x 8193 pixels; expected at most 67,108,864 in all"):
            read(tmp_path / "more.png")


def test_a_header_alone_tells_an_empty_file_another_kind_of_file_and_a_pipe(tmp_path: Path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_bytes(b"<html>404</html>")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    not_a_file = "it is not a regular file"
    expected = {"empty": "it is empty", "page": "none of BMP, GIF", "pipe": not_a_file, "folder": not_a_file}
    for name, problem in expected.items():
        with pytest.raises(DataError, match=rf"{name}\.png: not a readable image: .*{problem}"):
            check_header(tmp_path / f"{name}.png")
    Image.fromarray(RAMP).save(tmp_path / "sound.png")
    check_header(tmp_path / "sound.png")


def test_the_test_transform_is_the_scaled_middle():
    """At 32 px the shorter side becomes int(32 * 256 / 224) = 36, and 2 px are cut on each side of it."""
    image = Image.fromarray(RAMP).resize((96, 72))
    expected = image.resize((48, 36), Image.Resampling.BICUBIC).crop((8, 2, 40, 34))
    got = images.test_transform(InputSpec(32))(image)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.from_numpy(np.asarray(expected) / 255).permute(2, 0, 1).float())


def test_the_published_test_size_is_256_before_the_crop():
    assert images.test_transform(InputSpec(224)).transforms[0].size == 256


def coordinates(side: int = 200) -> Image.Image:
    """An image whose red and green are its columns and rows, scaled to 0 to 250."""
    rows, columns = np.mgrid[:side, :side] * 250 // (side - 1)
    return Image.fromarray(np.dstack([columns, rows, np.zeros_like(rows)]).astype(np.uint8))


def test_the_train_transform_draws_boxes_of_semas_distribution():
    """The boxes, read off an image of its own coordinates, against the documented intervals."""
    transform, image = train_transform(InputSpec(32)), coordinates()
    areas, ratios, mirrored = [], [], 0
    for number in range(400):
        with seeded("boxes", number):
            crop = transform(image)
        assert crop.shape == (3, 32, 32)
        assert 0 <= crop.min() <= crop.max() <= 1
        across, down = (crop[0, 16, -1] - crop[0, 16, 0]).item(), (crop[1, -1, 16] - crop[1, 0, 16]).item()
        mirrored += across < 0
        width, height = (abs(step) * 255 / 250 * 32 / 31 for step in (across, down))
        areas.append(width * height)
        ratios.append(width / height)
    assert min(areas) < 0.1
    assert max(areas) > 0.85
    assert min(areas) > 0.03  # 0.05, to the resolution of this reading
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.43
    assert abs(np.mean(np.log(ratios))) < 0.05
    assert abs(np.mean(areas) - 0.5) < 0.08
    assert abs(mirrored / 400 - 0.5) < 4 * math.sqrt(0.25 / 400)


@pytest.mark.parametrize("size", [(12, 16), (200, 200), (33, 7), (9, 90), (1, 1)])
def test_the_train_transform_is_torchvision_s_bit_by_bit(size: tuple[int, int]):
    """Against its own two transforms with the published numbers; the thin images often take the part in the middle."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    crop = RandomResizedCrop(32, (0.05, 1.0), (3 / 4, 4 / 3), InterpolationMode.BILINEAR)
    expected, transform = Compose([crop, RandomHorizontalFlip(0.5), ToTensor()]), train_transform(InputSpec(32))
    for number in range(50):
        with seeded("view", number):
            got = transform(image)
            then = torch.rand(1)
        with seeded("view", number):
            assert torch.equal(got, expected(image))
            assert torch.equal(then, torch.rand(1))  # as many draws, too


def test_the_train_transform_is_bilinear():
    """Against PIL's own resize of the part that is drawn."""
    transform, image = train_transform(InputSpec(32)), Image.fromarray(RAMP).resize((90, 70))
    with seeded("one"):
        top, left, height, width, mirror = images.draw_view(70, 90)
    with seeded("one"):
        got = transform(image)
    expected = image.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
    expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else expected
    torch.testing.assert_close(got, torch.from_numpy(np.asarray(expected) / 255).permute(2, 0, 1).float())


@pytest.mark.parametrize("name", ["train_transform", "test_transform"])
def test_normalisation_comes_last_and_only_when_asked_for(name: str):
    make, image = getattr(images, name), coordinates()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    with seeded("same"):
        plain = make(InputSpec(32))(image)
    with seeded("same"):
        normal = make(InputSpec(32, mean, std))(image)
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normal, expected)


def test_opening_leaves_no_file_open(tmp_path: Path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_image(tmp_path / "a.png")
        with pytest.raises(DataError):
            open_image(tmp_path / "b.png")
    assert caught == []
