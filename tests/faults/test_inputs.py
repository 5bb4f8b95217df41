"""Whole runs on images that are damaged, strange or few: they end with one clear message, or as they should."""

import io
import os
import signal
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from fault_record import fault
from input_runs import Caller, events, make_images, results
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.data import npz
from utils.data import tasks as data_manager
from utils.data.images import open_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", dict.fromkeys("abcd", 5))


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Caller:
    return Caller(tmp_path, capsys)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_that_claims(width: int, height: int) -> bytes:
    """A file of 70 bytes that says it is an image of this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# ---- files that are no images


def refused_before_training(call: Caller, images: Path, content: bytes) -> str:
    """The message about one bad file, once the run has ended with it before it began."""
    bad = images / "train" / "d" / "3.png"
    bad.write_bytes(content)
    code, message = call(images)
    assert code == 2
    assert message.startswith(f"{bad}: not a readable image: ")
    assert "Traceback" not in message
    assert not (images.parent / "logs").exists()
    return message


@fault("an image of 0 bytes", "an empty file among the training images")
def test_an_empty_file(call, images):
    assert "it is empty" in refused_before_training(call, images, b"")


@fault("a file that is no image", "an HTML page with the name of a PNG")
def test_a_page_instead_of_an_image(call, images):
    assert "none of BMP, GIF, JPEG" in refused_before_training(call, images, b"<html>404</html>")


@fault("a huge image", "a header of 70 bytes that claims 9000 x 9000 pixels")
def test_a_huge_image(call, images):
    assert "9000 x 9000 pixels" in refused_before_training(call, images, png_that_claims(9000, 9000))


@fault("a decompression bomb", "a header of 70 bytes that claims 60000 x 60000 pixels")
def test_a_decompression_bomb(call, images):
    assert "decompression bomb" in refused_before_training(call, images, png_that_claims(60000, 60000))


def test_an_image_that_is_one_long_line(call, images):
    Image.new("L", (1, 30_000)).save(long := io.BytesIO(), "PNG")
    assert "1 x 30000 pixels; expected sides" in refused_before_training(call, images, long.getvalue())


@fault("a pipe among the images", "mkfifo with the name of a PNG, which nobody writes to")
def test_a_pipe(call, images):
    (images / "train" / "d" / "3.png").unlink()
    os.mkfifo(images / "train" / "d" / "3.png")
    code, message = call(images)
    assert code == 2
    assert "3.png: not a readable image: it is not a regular file" in message


@pytest.mark.parametrize("workers", [0, 2])
@fault("a truncated image", "a PNG cut off behind its header; its class is that of the second task")
def test_a_truncated_image_stops_the_run_where_it_is_loaded(call, images, workers):
    bad = images / "train" / "c" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    code, message = call(images, num_workers=workers)
    assert code == 2
    assert message.splitlines()[-1].startswith(f"{bad}: not a readable image: ")
    assert "Traceback" not in message
    assert any('"task": 0' in line for line in events(images.parent / "logs"))


@fault("a corrupt image", "bytes of a PNG's pixels flipped")
def test_a_corrupt_image(call, images):
    bad = images / "train" / "a" / "1.png"
    content = bytearray(bad.read_bytes())
    content[60:90] = bytes(byte ^ 0x5A for byte in content[60:90])
    bad.write_bytes(content)
    code, message = call(images)
    assert code == 2
    assert message.splitlines()[-1].startswith(f"{bad}: not a readable image: ")


@pytest.mark.parametrize("workers", [0, 2])
@fault("bad images that are to be skipped", "an empty, a truncated and a claimed huge file with on_bad_image skip")
def test_a_run_that_skips_bad_images_is_the_run_without_them(call, images, caplog, workers):
    """Bit by bit, whoever loads: other images keep their streams, and every count is that of what is left."""
    bad = [images / "train" / "a" / "0.png", images / "train" / "c" / "4.png", images / "test" / "d" / "0.png"]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:60])
    bad[2].write_bytes(png_that_claims(9000, 9000))
    assert call(images, "skipped", on_bad_image="skip", num_workers=workers)[0] == 0
    assert [caplog.text.count(f"{path}: not a readable image: ") for path in bad] == [1, 1, 1]
    (log,) = (images.parent / "skipped").glob("*/log.txt")
    assert "18 training and 7 test images; left out: 3 unreadable: " in log.read_text()
    for path in bad:
        path.unlink()
    assert call(images, "without")[0] == 0
    assert results(images.parent / "skipped") == results(images.parent / "without")
    assert events(images.parent / "skipped") == events(images.parent / "without")
    assert results(images.parent / "skipped")["accuracy"]["count"] == [4, 3]


@fault("a class whose images are all bad", "all its training images truncated, with on_bad_image skip")
def test_a_class_whose_images_are_all_bad(call, images):
    for path in (images / "train" / "b").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    code, message = call(images, on_bad_image="skip")
    assert code == 2
    assert "no training image of b" in message


# ---- arrays


def save_archive(path: Path, **members: bytes) -> Path:
    """An .npz of two classes, with any content in place of some arrays, compressed."""
    pixels, labels = np.zeros((2, 16, 16), np.uint8), np.array([0, 1])
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents |= {f"{name}.npy": content for name, content in members.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def npy_header(*shape: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


@fault("an array that claims terabytes", "an .npz of 1 kB whose header says (10 million, 1000, 1000) pixels")
def test_an_array_that_claims_terabytes(call, tmp_path):
    path = save_archive(tmp_path / "a.npz", x_train=npy_header(10**7, 1000, 1000))
    code, message = call(path, dataset="npz")
    assert (code, "10,000,000,000,000 bytes; stored are 0" in message) == (2, True)


@fault("a zip bomb", "an .npz of 20 kB that unpacks to 20 MB, on a machine said to have 10 MB")
def test_a_zip_bomb(call, tmp_path, monkeypatch):
    path = save_archive(tmp_path / "a.npz", x_train=npy_header(20, 1000, 1000) + bytes(20 * 10**6))
    assert path.stat().st_size < 30_000
    monkeypatch.setattr(npz, "memory", lambda: 10**7)
    code, message = call(path, dataset="npz")
    assert (code, "bytes, more than the 10,000,000 of this machine" in message) == (2, True)


@fault("a truncated file of arrays", "an .npz cut to half its length")
def test_a_truncated_file_of_arrays(call, tmp_path):
    path = save_archive(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, message = call(path, dataset="npz")
    assert (code, message.startswith(f"{path}: not a readable .npz file: ")) == (2, True)


# ---- processes that load


@fault("a killed worker", "the process that loads the second task's images sends itself SIGKILL")
def test_a_killed_worker(call, images, monkeypatch):
    def deadly(path: Path) -> Image.Image:
        if path.parts[-2:] == ("c", "0.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return open_image(path)

    monkeypatch.setattr(data_manager, "open_image", deadly)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))  # seconds, instead of 5
    code, message = call(images, num_workers=2, image_cache_gib=0)
    assert code == 2
    assert message.splitlines()[-1] == (
        "a process that loads images was ended by SIGKILL, as the system does when memory runs out; "
        "lower num_workers (now 2, 0: the main process loads) or the batch sizes"
    )
    assert any('"task": 0' in line for line in events(images.parent / "logs"))


# ---- images of other kinds


@fault("images of other kinds", "grey, palette, alpha, CMYK, 16-bit, one-bit, animated and turned images in one class")
def test_images_of_other_kinds_are_learnt_from(call, images):
    folder = images / "train" / "a"
    colour, turned = Image.open(folder / "0.png"), Image.Exif()
    turned[0x0112] = 6
    for mode in ("L", "P", "RGBA", "LA", "1"):
        colour.convert(mode).save(folder / f"of {mode}.png")
    colour.convert("CMYK").save(folder / "CMYK.jpg")
    Image.fromarray(np.full((18, 18), 40_000, np.uint16)).save(folder / "16.png")
    colour.save(folder / "moves.webp", save_all=True, append_images=[colour.rotate(90)])
    colour.save(folder / "turned.jpg", exif=turned)
    code, _ = call(images, max_tasks=1)
    assert code == 0
    (log,) = (images.parent / "logs").glob("*/log.txt")
    assert "29 training" in log.read_text()


# ---- few of everything


@fault("a class with one image, a last batch of one, fewer than five classes", "3 classes of 1, 4 and 5 images")
def test_few_of_everything(call, tmp_path):
    """Task 0 has batches of 4 and 1 images, task 1 one of 5 split 4 and 1 in one single class."""
    root = make_images(tmp_path / "images", {"a": 1, "b": 4, "c": 5})
    assert call(root)[0] == 0
    found = results(tmp_path / "logs")
    assert found["accuracy"]["task_sizes"] == [2, 1]
    assert found["accuracy"]["count"] == [4, 2]
    assert found["tasks"][-1]["accuracy"]["top5"] == 100.0  # three classes are all among the first five


@fault("a class missing in the test set", "the last task's only class has no test image")
def test_a_class_missing_in_the_test_set(call, tmp_path, caplog):
    root = make_images(tmp_path / "images", {"a": 3, "b": 3, "c": 3})
    for path in (root / "test" / "c").iterdir():
        path.unlink()
    assert call(root)[0] == 0
    assert "no test image of c" in caplog.text
    found = results(tmp_path / "logs")
    assert found["accuracy"]["count"] == [4, 0]
    assert found["task_accuracy"][1] is None
    assert found["forgetting"] is not None


@fault("no test image of a whole first task", "the test folders of its classes are empty")
def test_no_test_image_of_the_first_task(call, images):
    for name in "ab":
        for path in (images / "test" / name).iterdir():
            path.unlink()
    code, message = call(images)
    assert code == 2
    assert message.splitlines()[-1] == "there is no test image of any of these classes: a, b"


@fault("labels out of range", "an .npz whose test labels go beyond its classes")
def test_labels_out_of_range(call, tmp_path):
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    arrays = {"x_train": pixels, "y_train": np.array([0, 1, 0, 1]), "x_test": pixels, "y_test": np.array([0, 1, 2, 0])}
    np.savez(tmp_path / "a.npz", **arrays)
    code, message = call(tmp_path / "a.npz", dataset="npz")
    assert code == 2
    assert "y_test holds labels from 0 to 2, expected 0 to 1" in message


@fault("fewer classes than the first task takes", "init_cls 5 on a data set of 4 classes")
def test_fewer_classes_than_the_first_task_takes(call, images):
    code, message = call(images, init_cls=5)
    assert (code, message.strip()) == (
        2,
        "init_cls = 5: the data set has 4 classes; expected at most that",
    )
