"""What identifies images: names, sizes and hashes, which are kept while a file does not change."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data import contents
from utils.data.contents import Content, of_array, of_files
from utils.errors import DataError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three images below root/train/<class>, made an hour ago."""
    found = []
    for number, name in enumerate(("cat/a.png", "cat/deep/b.png", "dog/a.png")):
        path = tmp_path / "root" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        found.append(path)
    return found


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def look(files: list[Path], decode: bool = False) -> tuple[dict[Path, Content], dict[Path, str]]:
    return of_files(files, files[0].parents[2], decode)


def test_a_file_is_its_name_below_the_class_its_size_and_a_hash_of_its_bytes(files: list[Path]):
    found, bad = look(files)
    assert bad == {}
    assert [content.name for content in found.values()] == ["a.png", "deep/b.png", "a.png"]
    for file, content in found.items():
        assert content[1:] == (len(file.read_bytes()), digest(file.read_bytes()))


def test_an_array_is_the_hash_of_its_pixels():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    rows = [(str(row), 12, digest(bytes(range(12 * row, 12 * row + 12)))) for row in (0, 1)]
    assert list(of_array(pixels)) == rows
    assert list(of_array(np.asfortranarray(pixels))) == rows


def old(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: file.stat().st_ctime + 60)


def test_a_file_that_did_not_change_is_read_once(cache: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch):
    old(files[0], monkeypatch)
    first = look(files)
    with monkeypatch.context() as patched:
        patched.setattr(contents, "check_header", lambda _: pytest.fail("looked at it again"))
        assert look(files) == first
    was = files[1].stat()
    Image.new("RGB", (4, 4), (9, 0, 0)).save(files[1])
    os.utime(files[1], ns=(was.st_atime_ns, was.st_mtime_ns))  # of the same size and time
    again, _ = look(files)
    assert [again[file] == first[0][file] for file in files] == [True, False, True]


def test_headers_alone_do_not_count_as_decoded(cache: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch):
    old(files[0], monkeypatch)
    files[2].write_bytes(files[2].read_bytes()[:45])
    assert look(files)[1] == {}
    assert list(look(files, decode=True)[1]) == [files[2]]
    assert look(files)[1] == {}


def test_a_file_that_was_just_written_is_not_kept(cache: Path, files: list[Path]):
    look(files)
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"train/cat/a.png": [1]}', b'{"a": [[1, 2, "x"], "", 0]}'])
def test_a_damaged_cache_is_not_used(cache: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, content: bytes):
    old(files[0], monkeypatch)
    found = look(files)
    (kept,) = cache.iterdir()
    kept.write_bytes(content)
    assert look(files) == found


@pytest.mark.parametrize("place", ["", "file"])
def test_without_a_place_for_the_cache_everything_is_read(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, place: str
):
    (tmp_path / "file").touch()
    for variable in ("SEMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, place and str(tmp_path / place))
    if not place:
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    old(files[0], monkeypatch)
    assert len(look(files)[0]) == 3


def test_bad_files_come_in_order_with_their_reasons(files: list[Path], tmp_path: Path):
    files[2].write_bytes(b"")
    gone = tmp_path / "root" / "train" / "cat" / "gone.png"
    found, bad = look([files[2], *files[:2], gone])
    assert list(found) == files[:2]
    assert list(bad) == [files[2], gone]
    assert "it is empty" in bad[files[2]]
    assert "No such file" in bad[gone]


def test_another_error_is_not_a_bad_file(files: list[Path], monkeypatch: pytest.MonkeyPatch):
    def broken(file: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(contents, "check_header", broken)
    with pytest.raises(ZeroDivisionError):
        look(files)
    assert DataError is not ZeroDivisionError
