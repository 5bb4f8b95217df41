"""The list of a run's images."""

import gzip
import hashlib
from pathlib import Path

import pytest

from utils.errors import DataError
from utils.runs.images import Image, fingerprint, read_images, write_images

IMAGES = [Image("train", "ca\tt", "a\nb.png", "1", "00"), Image("test", 'd"ö', "b.png", "2", "ff")]


def test_a_list_is_read_as_it_was_written(tmp_path: Path):
    write_images(tmp_path, IMAGES)
    assert read_images(tmp_path) == IMAGES


@pytest.mark.parametrize("text", [None, b"", b"a\tb\n", b"\xff"], ids=["no gzip", "empty", "two cells", "no text"])
def test_a_damaged_list_is_said(tmp_path: Path, text: bytes | None):
    with pytest.raises(DataError, match=r"images\.tsv\.gz: cannot be read"):
        read_images(tmp_path)
    (tmp_path / "images.tsv.gz").write_bytes(b"text" if text is None else gzip.compress(text))
    with pytest.raises(DataError, match=r"images\.tsv\.gz: cannot be read"):
        read_images(tmp_path)


def test_a_fingerprint_depends_on_everything_listed_and_on_the_order():
    a, b = Image("train", "x", "a", "1", "00"), Image("train", "x", "b", "1", "00")
    lists = [
        [a, b],
        [b, a],
        [a._replace(class_name="y"), b],
        [a],
        [a, b._replace(size="2")],
        [a, b._replace(digest="1")],
    ]
    found = [fingerprint(images, "train") for images in lists]
    assert [each["images"] for each in found] == [2, 2, 2, 1, 2, 2]
    assert len({each["sha256"] for each in found}) == 6
    assert found[3]["sha256"] == hashlib.sha256(b"x\ta\t1\t00\n").hexdigest()
    assert fingerprint(IMAGES, "test")["images"] == 1
    assert fingerprint([*lists[0], IMAGES[1]], "train") == found[0]
