"""Files of arrays: what is read from them, and every way they can be wrong."""

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.sources import load_dataset
from utils.errors import DataError


def make_arrays(**changes: object) -> dict[str, object]:
    """Arrays of three classes; a change of None leaves an array out."""
    arrays: dict[str, object] = {
        "x_train": np.arange(6 * 4 * 5 * 3, dtype=np.uint16).reshape(6, 4, 5, 3).astype(np.uint8),
        "y_train": np.array([2, 0, 1, 1, 0, 2], dtype=np.int32),
        "x_test": np.full((3, 4, 5), 7, np.uint8),
        "y_test": np.array([0, 1, 2], dtype=np.uint8),
        "class_names": np.array(["cat", "dog", "emu"]),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def save_arrays(path: Path, **changes: object) -> Path:
    np.savez(path, **make_arrays(**changes))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("whole_path", [True, False])
def test_arrays_are_read_from_a_file_or_its_folder(tmp_path: Path, whole_path: bool):
    path = save_arrays(tmp_path / "small.npz")
    data = load_dataset("npz", path if whole_path else tmp_path)
    np.testing.assert_array_equal(data.train.images, make_arrays()["x_train"])
    np.testing.assert_array_equal(data.test.images, np.full((3, 4, 5), 7))
    assert data.train.labels.tolist() == [2, 0, 1, 1, 0, 2]
    assert data.test.labels.tolist() == [0, 1, 2]
    assert data.train.labels.dtype == data.test.labels.dtype == np.int64
    assert data.class_names == ("cat", "dog", "emu")


def test_classes_without_names_are_numbered(tmp_path: Path):
    assert load_dataset("npz", save_arrays(tmp_path / "a.npz", class_names=None)).class_names == ("0", "1", "2")


BAD_ARRAYS = {
    "no array y_train; it holds x_train, x_test, y_test, class_names, y_trian; did you mean y_trian?": {
        "y_train": None,
        "y_trian": np.zeros(6, int),
    },
    "x_train is float64 of shape (6, 4, 5, 3), expected uint8": {"x_train": np.zeros((6, 4, 5, 3))},
    "x_train is uint8 of shape (6, 3, 4, 5), expected uint8 of shape (N, H, W)": {
        "x_train": np.zeros((6, 3, 4, 5), np.uint8)
    },
    "x_test is uint8 of shape (3, 20), expected": {"x_test": np.zeros((3, 20), np.uint8)},
    "x_test is uint8 of shape (3, 4, 5, 3, 1), expected": {"x_test": np.zeros((3, 4, 5, 3, 1), np.uint8)},
    "x_test is uint8 of shape (0, 4, 5), expected": {
        "x_test": np.zeros((0, 4, 5), np.uint8),
        "y_test": np.zeros(0, int),
    },
    "y_train is int64 of shape (5,), expected integers of shape (6,)": {"y_train": np.zeros(5, int)},
    "y_train is float64 of shape (6,), expected integers": {"y_train": np.zeros(6)},
    "y_test is int64 of shape (3, 1), expected integers of shape (3,)": {"y_test": np.zeros((3, 1), int)},
    "y_test holds labels from 0 to 3, expected 0 to 2, as there are 3 classes": {"y_test": np.array([0, 3, 1])},
    "y_train holds labels from -1 to 2, expected 0 to 2": {"y_train": np.array([2, 0, 1, -1, 0, 2])},
    "y_train holds labels from 0 to 18446744073709551615, expected": {
        "y_train": np.array([0, 1, 2, 2, 2, 2**64 - 1], np.uint64)
    },
    "y_train holds labels from 0 to 1000000000000, expected 0 to 1, as there are 2 classes": {
        "y_train": np.array([0, 0, 0, 0, 0, 10**12]),
        "class_names": None,
    },
    "class_names is int64 of shape (3,), expected text": {"class_names": np.arange(3)},
    "class_names is <U3 of shape (), expected text of shape (C,)": {"class_names": np.array("cat")},
    "class_names holds text that is not valid": {
        "class_names": np.array([[97], [98], [2**21]], "<u4").view("<U1")[:, 0]
    },
    "class_names holds text that is not valid Unicode": {"class_names": np.array(["cat", "dog", "\ud800"])},
    "no training image of dog": {"y_train": np.array([2, 0, 0, 0, 0, 2])},
    "class_names holds Python objects, expected text, such as class_names.astype(str)": {
        "class_names": np.array(["cat", "dog", "emu"], dtype=object)
    },
}


@pytest.mark.parametrize("message", BAD_ARRAYS)
def test_wrong_arrays_are_named(tmp_path: Path, message: str):
    path = save_arrays(tmp_path / "a.npz", **BAD_ARRAYS[message])
    with pytest.raises(DataError) as caught:
        load_dataset("npz", path)
    assert f"{path}: {message}" in str(caught.value)


def save_members(path: Path, members: dict[str, bytes]) -> Path:
    """An archive with members of any content in place of some arrays."""
    save_arrays(path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()} | members
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def npy_bytes(shape: tuple[int, ...], descr: str = "|u1", content: bytes = b"") -> bytes:
    """An array's header with whatever claims, and its content."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue() + content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x_train",
            npy_bytes((10**6, 1000, 1000, 3)),
            r"uint8 of shape \(1000000, 1000, 1000, 3\), 3,000,000,000,000 b",
        ),
        ("x_test", npy_bytes((3, 4, 5), content=b"0" * 59), r"60 bytes; stored are 59"),
        ("x_test", npy_bytes((3, 4, 5), content=b"0" * 61), r"60 bytes; stored are 61"),
        ("x_test", npy_bytes((-3, -4, 5), content=b"0" * 60), r"shape \(-3, -4, 5\), 60 bytes; stored are 60"),
        ("class_names", npy_bytes((10**15,), "<U0"), r"<U0 of shape \(1000000000000000,\), 0 bytes; stored are 0"),
    ],
)
def test_what_an_array_claims_is_held_against_what_is_stored(tmp_path: Path, name: str, content: bytes, message: str):
    path = save_members(tmp_path / "a.npz", {f"{name}.npy": content})
    with pytest.raises(DataError, match=rf"a\.npz: {name} says it is .*{message}"):
        load_dataset("npz", path)


def test_arrays_that_only_compression_makes_small_are_refused_where_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save_members(tmp_path / "a.npz", {"x_test.npy": npy_bytes((3, 1000, 1000), content=bytes(3 * 10**6))})
    assert path.stat().st_size < 10_000
    assert load_dataset("npz", path).test.images.shape == (3, 1000, 1000)  # type: ignore[union-attr]
    monkeypatch.setattr("utils.data.npz.memory", lambda: 2 * 10**6)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(DataError, match=r"its arrays would take 3,000,\d+ bytes, more than the 2,000,000 of this"):
        load_dataset("npz", path)


def test_a_member_that_is_no_array_is_none(tmp_path: Path):
    path = save_members(tmp_path / "a.npz", {"y_test.npy": b"plain bytes"})
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file: "):
        load_dataset("npz", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train", b"no ending")
    with pytest.raises(DataError, match="no array x_train; it holds nothing"):
        load_dataset("npz", path)


def test_a_folder_must_hold_one_file_of_arrays(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected one \.npz file in this folder, found none\nexpected layout"):
        load_dataset("npz", tmp_path)
    for name in ("a", "b"):
        save_arrays(tmp_path / f"{name}.npz")
    with pytest.raises(DataError, match=r"found a\.npz, b\.npz\n"):
        load_dataset("npz", tmp_path)


def test_a_missing_file_of_arrays(tmp_path: Path):
    save_arrays(tmp_path / "small.npz")
    with pytest.raises(DataError, match=r"smal\.npz: not found; \S+ holds small\.npz; did you mean small\.npz\?"):
        load_dataset("npz", tmp_path / "smal.npz")


def test_one_array_or_none_is_not_a_file_of_arrays(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "b.npz").write_bytes(b"")
    for name in ("a.npy", "b.npz"):
        with pytest.raises(DataError, match=rf"{name}: not a readable \.npz file"):
            load_dataset("npz", tmp_path / name)


@pytest.fixture(scope="module")
def valid_bytes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = save_arrays(tmp_path_factory.mktemp("fuzz") / "a.npz")
    return path, path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_of_arrays_is_read_or_refused(valid_bytes: tuple[Path, bytes], data: st.DataObject):
    path, valid = valid_bytes
    content = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    with contextlib.suppress(DataError):
        load_dataset("npz", path)


def test_arrays_have_no_files_to_leave_out(tmp_path: Path):
    data = load_dataset("npz", save_arrays(tmp_path / "a.npz"), "skip")
    np.testing.assert_array_equal(data.train.images, make_arrays()["x_train"])
