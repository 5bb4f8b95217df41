import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import files
from utils.files import atomic_write, json_line, naming, plain, read_text, write_json


def test_content_is_written_replaced_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    atomic_write(path, b"one")
    assert path.read_bytes() == b"one"
    atomic_write(path, b"")
    assert path.read_bytes() == b""
    assert list(path.parent.iterdir()) == [path]


def test_until_the_bytes_are_on_the_disk_the_old_content_stands(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen = []
    fsync = os.fsync

    def watched(descriptor):
        temporary = [entry.read_bytes() for entry in tmp_path.iterdir() if entry != path]
        seen.append((path.read_bytes(), temporary))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    atomic_write(path, b"new")
    assert seen == [(b"old", [b"new"]), (b"new", [])]  # the file, then its folder


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_where_a_folder_cannot_be_flushed_one_warning_says_what_is_lost(tmp_path, monkeypatch, caplog, number, call):
    real = getattr(os, call)

    def refusing(what, *more):
        if stat.S_ISDIR(os.stat(what).st_mode):
            raise OSError(number, os.strerror(number))
        return real(what, *more)

    monkeypatch.setattr(os, call, refusing)
    monkeypatch.setattr(files, "_warned", set())
    for name in ("a", "b"):
        atomic_write(tmp_path / name, b"new")
    assert (tmp_path / "b").read_bytes() == b"new"
    (warning,) = caplog.messages
    assert warning.startswith(f"{tmp_path}: cannot be flushed to the disk here; after a power failure")
    assert warning.endswith(f"({os.strerror(number)})")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_an_error_of_the_disk_stays_an_error_for_folders_too(tmp_path, monkeypatch, number):
    def refusing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        atomic_write(tmp_path / "a", b"new")
    assert error.value.filename == str(tmp_path)


def test_a_failed_write_leaves_the_old_content_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def disk_full(descriptor):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_over_the_size_limit_of_a_process_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from utils.files import atomic_write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: atomic_write(Path(sys.argv[1]), bytes(100_000))\n"
        "except OSError as error: print(error.filename); sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, f"{path}\n")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_that_names_a_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as missing, naming(tmp_path / "other"):
        (tmp_path / "this").read_bytes()
    assert missing.value.filename == str(tmp_path / "this")


def test_an_error_that_is_no_errno_stays_as_it_is(tmp_path):
    with pytest.raises(OSError, match=r"^by hand$"), naming(tmp_path):
        raise OSError("by hand")


def test_a_folder_in_the_way_is_an_error_without_debris(tmp_path):
    (tmp_path / "file" / "inner").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as error:
        atomic_write(tmp_path / "file", b"new")
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "file"), None)  # not the temporary file
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    atomic_write(tmp_path / "ours", b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "ours")]
    assert modes[0] == modes[1]


def test_no_more_of_a_file_is_read_than_is_allowed(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf123")
    assert read_text(tmp_path / "a", 6) == "123"
    with pytest.raises(ValueError, match="larger than 5 bytes"):
        read_text(tmp_path / "a", 5)
    with pytest.raises(ValueError, match="larger than 1,000 bytes"):
        read_text(Path("/dev/zero"), 1000)


def test_what_is_no_utf8_is_an_error_or_replaced(tmp_path):
    (tmp_path / "a").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        read_text(tmp_path / "a", 10)
    assert read_text(tmp_path / "a", 10, "replace") == "a\ufffd"


def test_arrays_and_tensors_become_lists_and_what_json_lacks_becomes_null():
    values = {
        "scalar": np.float32(0.5),
        "count": np.int64(3),
        "array": np.array([[1.0, np.nan]]),
        "tensor": torch.tensor([1, 2]),
        "loss": torch.tensor(float("inf")),
        "nested": [{"a": (float("nan"), -float("inf"), 1.5)}],
        "flag": True,
        "text": "größer",
    }
    assert plain(values) == {
        "scalar": 0.5,
        "count": 3,
        "array": [[1.0, None]],
        "tensor": [1, 2],
        "loss": None,
        "nested": [{"a": [None, None, 1.5]}],
        "flag": True,
        "text": "größer",
    }


def test_what_json_does_not_know_is_an_error():
    with pytest.raises(TypeError, match="not JSON serializable"):
        json_line({"what": object()})


@given(st.dictionaries(st.text(), st.floats() | st.text() | st.integers() | st.lists(st.floats())))
def test_a_line_is_one_line_of_strict_json(values):
    line = json_line(values)
    assert line.endswith("\n")
    assert line.count("\n") == 1

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(line, parse_constant=refuse) == plain(values)


def test_write_json_is_utf8_and_reads_back(tmp_path):
    write_json(tmp_path / "file.json", {"a": [1, float("nan")], "name": "größer"})
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": [1, None], "name": "größer"}
    assert "größer" in text


def test_write_json_of_something_else_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
