"""Every data set read from disk, and every way it can be wrong."""

import itertools
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR100, ImageFolder, cifar

from utils.config.schema import schemas
from utils.config.wording import choices
from utils.data.__main__ import main
from utils.data.sources import DATASETS, ImageData, load_dataset
from utils.errors import DataError

CLASSES = {"cat": 2, "dog": 3, "emu": 1}  # training images; one test image each


def save_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, 0, 0)).save(path)


def make_folders(root: Path, classes: dict[str, int] = CLASSES) -> None:
    for name, count in classes.items():
        for number in range(count):
            save_image(root / "train" / name / f"{number}.png")
        save_image(root / "test" / name / "0.jpg")


def make_cifar(root: Path) -> None:
    """CIFAR-100's files in the format of its python version, with two images of each class and one for testing."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, count in (("train", 200), ("test", 100)):
        labels = [(7 * number) % 100 for number in range(count)]
        pixels = np.zeros((count, 3, 32, 32), np.uint8)
        pixels[:, 1] = np.array(labels, np.uint8)[:, None, None]  # green is the label
        pixels[:, :, 0, 1] = 255  # row 0, column 1 is white
        content = {"data": pixels.reshape(count, 3072), "fine_labels": labels, "coarse_labels": [0] * count}
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))
    names = {"fine_label_names": [f"class {number:02d}" for number in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made by hand do not have CIFAR-100's checksums: only their presence is checked."""
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())


def relative(data: ImageData, root: Path) -> list[str]:
    assert not isinstance(data.train.images, np.ndarray)
    return [path.relative_to(root).as_posix() for path in data.train.images]


# ---- the registry


def test_the_configuration_knows_the_same_data_sets():
    assert set(DATASETS) == set(choices(schemas()["dataset"]))


def test_folders_and_class_counts_are_semas():
    stated = {
        "imagenetr": ("imagenet-r", 200),
        "imageneta": ("imagenet-a", 200),
        "cub": ("cub", 200),
        "objectnet": ("objectnet", 200),
        "omnibenchmark": ("omnibenchmark", 300),
        "vtab": ("vtab", 50),
    }
    assert {name: (DATASETS[name].folder, DATASETS[name].nb_classes) for name in stated} == stated


# ---- folders


def test_folders_are_read_in_sorted_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_folders(tmp_path, {"b": 1, "a": 1, "B": 2})
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(path.glob("*"), reverse=True)))
    data = load_dataset("imagefolder", tmp_path)
    assert data.class_names == ("B", "a", "b")
    assert relative(data, tmp_path) == ["train/B/0.png", "train/B/1.png", "train/a/0.png", "train/b/0.png"]
    assert data.train.labels.tolist() == [0, 0, 1, 2]
    assert data.test.labels.tolist() == [0, 1, 2]
    assert data.train.labels.dtype == np.int64


def test_a_benchmark_lies_in_its_own_folder(tmp_path: Path):
    make_folders(tmp_path / "vtab", {f"{number:02d}": 1 for number in range(50)})
    data = load_dataset("vtab", tmp_path)
    assert (data.nb_classes, len(data.train.labels), len(data.test.labels)) == (50, 50, 50)


def test_a_benchmark_with_another_number_of_classes_is_refused(tmp_path: Path):
    make_folders(tmp_path / "imagenet-r")
    with pytest.raises(DataError, match=r"imagenet-r: 3 classes instead of 200\n.*\n.*zhoudw-zdw/RevisitingCIL"):
        load_dataset("imagenetr", tmp_path)


def test_a_missing_folder_is_explained(tmp_path: Path):
    make_folders(tmp_path / "imagenet_r")
    (tmp_path / "coco").mkdir()
    with pytest.raises(DataError) as caught:
        load_dataset("imagenetr", tmp_path)
    first, layout, origin = str(caught.value).splitlines()
    path = tmp_path / "imagenet-r"
    assert first == f"{path / 'train'}: not found; {tmp_path} holds coco, imagenet_r; did you mean imagenet_r?"
    assert layout == (
        "expected layout: <data_root>/imagenet-r/{train,test}/<class>/<image>, 200 classes; "
        "test may be called val or valid or validation"
    )
    assert origin.startswith("where to get it: ")
    assert "https://" in origin


@pytest.mark.parametrize(
    ("dataset", "given"), [("imagefolder", "x/train"), ("imagefolder", "x/test"), ("imagenetr", "x/imagenet-r")]
)
def test_a_data_root_that_is_one_folder_too_deep_is_noticed(tmp_path: Path, dataset: str, given: str):
    make_folders(tmp_path / "x" / "imagenet-r")
    make_folders(tmp_path / "x")
    with pytest.raises(DataError) as caught:
        load_dataset(dataset, tmp_path / given)
    assert str(caught.value).splitlines()[0].endswith(f"; did you mean the folder above, {tmp_path / 'x'}?")


def test_a_missing_data_root_is_explained_where_it_begins_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset").mkdir()
    with pytest.raises(
        DataError,
        match=r"deep/train: not found \(a relative path starts at .*\); \S+ holds dataset; did you mean dataset\?",
    ):
        load_dataset("imagefolder", Path("datasets/deep"))


@pytest.mark.parametrize("name", ["imagefolder", "cub", "cifar224"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, name: str):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file is not a folder\nexpected layout"):
        load_dataset(name, tmp_path / "file")


def test_train_and_test_must_hold_the_same_classes(tmp_path: Path):
    make_folders(tmp_path)
    (tmp_path / "test" / "emu").rename(tmp_path / "test" / "gnu")
    with pytest.raises(DataError, match="different classes; only in train: emu; only in test: gnu\n"):
        load_dataset("imagefolder", tmp_path)


def test_a_long_list_of_classes_is_cut(tmp_path: Path):
    make_folders(tmp_path, {f"{number:02d}": 1 for number in range(20)})
    for number in range(10):
        (tmp_path / "test" / f"{number:02d}" / "0.jpg").unlink()
        (tmp_path / "test" / f"{number:02d}").rmdir()
    with pytest.raises(DataError, match="only in train: 00, 01, 02, 03, 04, 05, 06, 07 and 2 more\n"):
        load_dataset("imagefolder", tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_test_images_can_be_in_a_folder_of_another_usual_name(tmp_path: Path, name: str):
    make_folders(tmp_path)
    expected = load_dataset("imagefolder", tmp_path)
    (tmp_path / "test").rename(tmp_path / name)
    found = load_dataset("imagefolder", tmp_path)
    assert found.rows("test") == expected.rows("test")
    assert expected.summary == "3 classes, 6 training and 3 test images"
    assert found.summary == f"3 classes, 6 training and 3 test images; test images from {name}/"


def test_of_several_folders_of_test_images_one_is_taken_and_the_others_are_named(tmp_path: Path):
    make_folders(tmp_path)
    save_image(tmp_path / "val" / "cat" / "x.png")
    (tmp_path / "validation").mkdir()
    found = load_dataset("imagefolder", tmp_path)
    assert found.summary.endswith("test images from test/, val/ is not used, validation/ is not used")
    (tmp_path / "test" / "emu").rename(tmp_path / "emu")
    with pytest.raises(DataError, match="only in train: emu; val/ is not used, as there is test/; validation/"):
        load_dataset("imagefolder", tmp_path)


def test_a_folder_of_test_images_without_classes_is_not_taken_if_another_has_them(tmp_path: Path):
    make_folders(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    save_image(tmp_path / "test" / "unlabelled.png")
    found = load_dataset("imagefolder", tmp_path)
    assert (found.test_folder, found.unused_folders) == ("val", ("test",))


def test_without_any_folder_of_test_images_the_usual_names_are_listed(tmp_path: Path):
    make_folders(tmp_path)
    (tmp_path / "test").rename(tmp_path / "Valid")
    with pytest.raises(DataError, match=r"test: not found; .* holds Valid, train\n.*may be called val or valid"):
        load_dataset("imagefolder", tmp_path)


@pytest.mark.parametrize("inner", [["n01"], ["n01", "n02"]])
def test_classes_that_are_one_folder_too_deep_are_refused(tmp_path: Path, inner: list[str]):
    for half in ("train", "test"):
        for name in inner:
            save_image(tmp_path / half / "data" / name / "0.png")
    with pytest.raises(DataError, match=f"train/data: the only class, .*: {', '.join(inner)}; .* move them up to"):
        load_dataset("imagefolder", tmp_path)
    save_image(tmp_path / "train" / "data" / "1.png")
    assert load_dataset("imagefolder", tmp_path).class_names == ("data",)


def test_a_data_root_that_is_one_folder_too_high_is_noticed(tmp_path: Path):
    make_folders(tmp_path / "archive")
    with pytest.raises(DataError, match=rf"did you mean {tmp_path / 'archive'}\?"):
        load_dataset("imagefolder", tmp_path)


def test_no_classes_at_all(tmp_path: Path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(DataError, match=r"train: no folder in it\nexpected layout"):
        load_dataset("imagefolder", tmp_path)


def test_a_class_without_training_images_is_refused_and_one_without_test_images_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_folders(tmp_path)
    (tmp_path / "test" / "dog" / "0.jpg").unlink()
    assert load_dataset("imagefolder", tmp_path).test.labels.tolist() == [0, 2]
    assert "no test image of dog" in caplog.text
    (tmp_path / "train" / "emu" / "0.png").unlink()
    with pytest.raises(DataError, match=r"no training image of emu\nexpected layout"):
        load_dataset("imagefolder", tmp_path)


def test_labels_are_integers_where_no_test_image_is(tmp_path: Path):
    make_folders(tmp_path)
    for file in list((tmp_path / "test").rglob("*.jpg")):
        file.unlink()
    assert load_dataset("imagefolder", tmp_path).test.labels.dtype == np.int64


def test_what_is_no_image_by_its_name_is_left_out_and_told(tmp_path: Path):
    make_folders(tmp_path)
    for name in ("notes.txt", ".hidden.png"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"")
    (tmp_path / "train" / ".cache").mkdir()
    save_image(tmp_path / "train" / "cat" / "LOUD.PNG")
    save_image(tmp_path / "test" / "lost.png")
    (tmp_path / "test" / "cat" / "a.HEIC").write_bytes(b"")
    (tmp_path / "test" / "cat" / "b.HEIC").write_bytes(b"")
    (tmp_path / "test" / "cat" / "images").symlink_to(tmp_path / "nowhere")
    data = load_dataset("imagefolder", tmp_path)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert data.left_out == (
        ("test/lost.png", "in no class folder"),
        ("train/cat/notes.txt", "ending in .txt"),
        ("test/cat/a.HEIC", "ending in .HEIC"),
        ("test/cat/b.HEIC", "ending in .HEIC"),
        ("test/cat/images", "broken link"),
    )
    assert data.summary.endswith(
        "test images; left out: 1 in no class folder, 1 ending in .txt, 2 ending in .HEIC, 1 broken link: "
        "test/lost.png, train/cat/notes.txt, test/cat/a.HEIC, test/cat/b.HEIC, test/cat/images"
    )


def test_jpeg_files_of_rare_endings_are_read_and_counted(tmp_path: Path):
    make_folders(tmp_path)
    for name in ("a.jfif", "b.JFIF", "c.jpe"):
        shutil.copy(tmp_path / "test" / "cat" / "0.jpg", tmp_path / "test" / "cat" / name)
    assert load_dataset("imagefolder", tmp_path).summary == (
        "3 classes, 6 training and 6 test images; 2 end in .jfif, which torchvision leaves out; "
        "1 end in .jpe, which torchvision leaves out"
    )


def test_images_in_folders_within_a_class_folder_are_read_as_torchvision_reads_them(tmp_path: Path):
    make_folders(tmp_path)
    for place in ("train/dog/images/x.png", "train/dog/a.b/y.png", "train/cat/images/deep/z.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        save_image(tmp_path / place)
    (tmp_path / "train" / "dog" / "again").symlink_to(tmp_path / "train")  # endless
    (tmp_path / "train" / "cat" / "linked").symlink_to(tmp_path / "train" / "emu")
    data = load_dataset("imagefolder", tmp_path)
    found = {(str(file), int(label)) for file, label in zip(data.train.images, data.train.labels, strict=True)}
    (tmp_path / "train" / "dog" / "again").unlink()  # torchvision would not come back
    assert found == set(ImageFolder(tmp_path / "train").samples)


def test_folders_that_a_system_makes_are_no_classes_and_hold_no_images(tmp_path: Path):
    make_folders(tmp_path)
    expected = load_dataset("imagefolder", tmp_path)
    for place in ("train/lost+found", "test/__MACOSX", "train/cat/@eaDir/0.png", "test/dog/$RECYCLE.BIN"):
        (tmp_path / place).mkdir(parents=True)
        save_image(tmp_path / place / "SYNOFILE_THUMB_M.png")
    found = load_dataset("imagefolder", tmp_path)
    assert (found.summary, found.class_names) == (expected.summary, expected.class_names)


def test_an_image_in_two_classes_is_told_and_a_copy_in_one_class_is_not(tmp_path: Path, caplog):
    for value, place in enumerate(("train/cat/a.png", "test/cat/b.png", "train/dog/c.png", "test/dog/d.png")):
        save_image(tmp_path / place, value)
    shutil.copy(tmp_path / "train/cat/a.png", tmp_path / "test/cat/a.png")
    load_dataset("imagefolder", tmp_path)
    assert "more than one class" not in caplog.text
    shutil.copy(tmp_path / "train/cat/a.png", tmp_path / "train/dog/x.png")
    shutil.copy(tmp_path / "train/dog/c.png", tmp_path / "test/cat/y.png")
    load_dataset("imagefolder", tmp_path)
    assert [text for text in caplog.messages if "test images" not in text] == [
        f"{tmp_path}: 2 images are in more than one class, the first one as train/cat/a.png and train/dog/x.png"
    ]


def test_a_test_image_that_is_a_training_image_is_told_with_the_folder_it_is_in(tmp_path: Path, caplog):
    save_image(tmp_path / "train" / "cat" / "a.png")
    save_image(tmp_path / "val" / "cat" / "b.png")
    load_dataset("imagefolder", tmp_path)
    assert "the first one, val/cat/b.png, is train/cat/a.png" in caplog.text


@pytest.mark.parametrize("how", ["link", "hard link", "copy"])
def test_a_test_image_that_is_a_training_image_is_told_once(tmp_path: Path, caplog, how: str):
    make_folders(tmp_path, CLASSES)
    trained = sorted((tmp_path / "train").glob("*/*.png"))
    for number, file in enumerate(trained):
        save_image(file, value=number)
    for number, file in enumerate(sorted((tmp_path / "test").glob("*/*"))):
        save_image(file, value=100 + 40 * number)
    load_dataset("imagefolder", tmp_path)
    assert "training images, too" not in caplog.text
    for number, file in enumerate(trained[:2]):
        target = tmp_path / "test" / file.parent.name / f"z{number}.png"
        makers = {"link": target.symlink_to, "hard link": target.hardlink_to, "copy": partial(shutil.copy, dst=target)}
        makers[how](file)
    tested = len(list((tmp_path / "test").glob("*/*")))
    load_dataset("imagefolder", tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    first = trained[0].relative_to(tmp_path)
    told = f"2 of {tested} test images are training images, too; the first one, test/{first.parent.name}/z0.png"
    assert warning == f"{tmp_path}: {told}, is {first}"


def test_rows_of_an_array_that_are_in_both_halves_are_told(tmp_path: Path, caplog):
    pixels = np.arange(3 * 12, dtype=np.uint8).reshape(3, 2, 2, 3)
    labels = np.array([0, 1, 1])
    arrays = {
        "x_train": pixels,
        "y_train": labels,
        "x_test": pixels[[2, 1]] + [[[[0]]], [[[1]]]],
        "y_test": labels[[2, 1]],
    }
    arrays["x_test"] = arrays["x_test"].astype(np.uint8)
    np.savez(tmp_path / "some.npz", **arrays)
    load_dataset("npz", tmp_path / "some.npz")
    assert "1 of 2 test images are training images, too; the first one, test/1/0, is train/1/2" in caplog.text


def test_a_long_listing_is_told_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """A single folder can hold all files, so that counting folders would tell nothing."""
    make_folders(tmp_path, {"a": 3})
    clock = itertools.count(step=2)  # two seconds between two looks at it
    monkeypatch.setattr("utils.progress.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("utils.progress.on_terminal", lambda: False)
    load_dataset("imagefolder", tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert f"listing {tmp_path}: 2 so far" in lines
    assert any(line.startswith("checking images: 2 of ") for line in lines)


def test_class_names_are_compared_and_sorted_in_one_unicode_form(tmp_path: Path):
    one, other = "caf\u00e9", "cafe\u0301"
    make_folders(tmp_path, {one: 2, "cafz": 1})
    (tmp_path / "test" / one).rename(tmp_path / "test" / other)
    data = load_dataset("imagefolder", tmp_path)
    assert (data.class_names, data.test.labels.tolist()) == (("cafz", one), [0, 1])
    (tmp_path / "test" / one).mkdir()
    with pytest.raises(DataError, match=f"two folders are named {one}"):
        load_dataset("imagefolder", tmp_path)


def test_a_class_folder_that_is_a_link_to_nothing_is_refused(tmp_path: Path):
    make_folders(tmp_path)
    for half in ("train", "test"):
        (tmp_path / half / "fox").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"train/fox: a link to .*gone, which does not exist"):
        load_dataset("imagefolder", tmp_path)


def test_what_the_system_refuses_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_folders(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"data set imagefolder: .*Permission denied.*train"):
        load_dataset("imagefolder", tmp_path)


def test_the_size_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_folders(tmp_path)
    with caplog.at_level(logging.INFO):
        load_dataset("imagefolder", tmp_path)
    assert "3 classes, 6 training and 3 test images" in caplog.text


# ---- files that are no images


def cut_off(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:45])  # enough for its size, and for none of its pixels
    return path


@pytest.fixture
def with_bad(tmp_path: Path) -> list[Path]:
    """The folders with three bad files, in the order in which they are read."""
    make_folders(tmp_path)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(b"")
    (tmp_path / "test" / "cat" / "1.png").write_bytes(b"<html>404</html>")
    return [
        tmp_path / "train" / "cat" / "1.png",
        cut_off(tmp_path / "train" / "dog" / "0.png"),
        tmp_path / "test" / "cat" / "1.png",
    ]


def test_what_is_no_image_by_its_first_bytes_is_refused_with_all_others_of_its_kind(tmp_path: Path, with_bad):
    with pytest.raises(DataError) as caught:
        load_dataset("imagefolder", tmp_path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == [str(with_bad[0]), str(with_bad[2])]
    assert "on_bad_image" in lines[-1]


def test_a_long_list_of_bad_files_is_cut(tmp_path: Path):
    make_folders(tmp_path, {"cat": 12})
    for number in range(11):
        (tmp_path / "train" / "cat" / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"and 3 more files\nrepair or remove these files, or set on_bad") as caught:
        load_dataset("imagefolder", tmp_path)
    assert len(str(caught.value).splitlines()) == 10


def test_bad_files_are_left_out_if_that_is_asked_for_each_named_once(tmp_path: Path, with_bad, caplog):
    data = load_dataset("imagefolder", tmp_path, "skip")
    assert relative(data, tmp_path) == ["train/cat/0.png", "train/dog/1.png", "train/dog/2.png", "train/emu/0.png"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 1, 2], [0, 1, 2])
    names = [path.relative_to(tmp_path).as_posix() for path in with_bad]
    assert data.left_out == tuple((name, "unreadable") for name in names)
    assert [caplog.text.count(f"{path}: not a readable image: ") for path in with_bad] == [1, 1, 1]
    assert data.summary == (f"3 classes, 4 training and 3 test images; left out: 3 unreadable: {', '.join(names)}")


def test_a_bad_file_with_a_name_that_is_no_unicode_is_named_in_a_log_too(tmp_path: Path, caplog):
    make_folders(tmp_path)
    name = os.fsdecode(b"\xff.png")
    (tmp_path / "train" / "cat" / name).write_bytes(b"")
    data = load_dataset("imagefolder", tmp_path, "skip")
    assert data.summary.endswith(r"cat/\udcff.png")
    assert caplog.text.encode().count(rb"cat/\udcff.png: not a readable image: it is empty") == 1


def test_a_class_whose_training_images_are_all_bad_cannot_be_learnt(tmp_path: Path):
    make_folders(tmp_path)
    cut_off(tmp_path / "train" / "emu" / "0.png")
    with pytest.raises(DataError, match=r"no training image of emu\nexpected layout"):
        load_dataset("imagefolder", tmp_path, "skip")


def test_without_bad_files_leaving_them_out_changes_nothing(tmp_path: Path):
    make_folders(tmp_path)
    skipped, plain = (load_dataset("imagefolder", tmp_path, choice) for choice in ("skip", "error"))
    assert relative(skipped, tmp_path) == relative(plain, tmp_path)
    np.testing.assert_array_equal(skipped.train.labels, plain.train.labels)
    assert skipped.left_out == ()


# ---- CIFAR-100


@pytest.mark.usefixtures("any_checksum")
def test_cifar_is_kept_as_pixels_with_its_stored_labels(tmp_path: Path):
    make_cifar(tmp_path)
    data = load_dataset("cifar224", tmp_path)
    assert isinstance(data.train.images, np.ndarray)
    assert (data.train.images.shape, data.train.images.dtype) == ((200, 32, 32, 3), np.uint8)
    assert data.test.labels.tolist() == [(7 * number) % 100 for number in range(100)]
    np.testing.assert_array_equal(data.train.images[:, 5, 5, 1], data.train.labels)
    assert data.train.images[3, 0, 1].tolist() == [255, 255, 255]
    assert data.class_names[:2] == ("class 00", "class 01")


def test_missing_cifar_is_explained(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        load_dataset("cifar224", tmp_path)
    first, layout, origin = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'cifar-100-python'}: not found; {tmp_path} holds nothing"
    assert layout == "expected layout: <data_root>/cifar-100-python/{train,test,meta}"
    assert "python -m utils.data cifar224 --data_root" in origin
    assert "https://" in origin


def test_cifar_with_wrong_checksums_is_never_unpickled(tmp_path: Path):
    make_cifar(tmp_path)
    with pytest.raises(DataError, match=r"cifar-100-python: a file in it is missing or damaged\nexpected layout"):
        load_dataset("cifar224", tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_no_pickle_of_a_stranger_under_cifar_s_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """Each of the three files, where the others have the checksums of the published ones."""

    class Stranger:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    make_cifar(tmp_path)
    (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(Stranger()))
    check = cifar.check_integrity
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).name != name or check(path, md5))
    with pytest.raises(DataError, match=r"cifar-100-python: a file in it is missing or damaged"):
        load_dataset("cifar224", tmp_path)
    assert not (tmp_path / "ran").exists()


# ---- the command


def test_the_command_says_how_large_a_data_set_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_folders(tmp_path)
    assert main(["imagefolder", "--data_root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "imagefolder: 3 classes, 6 training and 3 test images\n"


def test_the_command_names_every_bad_file(
    tmp_path: Path, with_bad, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    assert main(["imagefolder", "--data_root", str(tmp_path), "--on_bad_image", "skip"]) == 0
    assert "4 training and 3 test images; left out: 3 unreadable: " in capsys.readouterr().out
    assert all(str(path) in caplog.text for path in with_bad)


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cub", "--data_root", str(tmp_path)]) == 2
    assert "where to get it" in capsys.readouterr().err


@pytest.mark.usefixtures("any_checksum")
def test_the_command_downloads_cifar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CIFAR100, "download", lambda self: make_cifar(Path(self.root)))
    assert main(["cifar224", "--data_root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "cifar224: 100 classes, 200 training and 100 test images\n"


def test_a_download_that_fails_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def offline(self: CIFAR100) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("socket.setdefaulttimeout", lambda seconds: None)  # for the other tests
    monkeypatch.setattr(CIFAR100, "download", offline)
    assert main(["cifar224", "--data_root", str(tmp_path)]) == 2
    message = (
        f"^{CIFAR100.url} could not be fetched \\(no network\\); .* put {CIFAR100.filename} into {tmp_path}, and give"
    )
    assert re.match(message, capsys.readouterr().err)
