"""Which files the paths of a user stand for."""

import logging
from pathlib import Path

import pytest
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.data.listing import ENDINGS, find_images
from utils.errors import DataError


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_the_endings_are_those_of_torchvision_and_of_all_jpeg_files():
    assert set(ENDINGS) == {*IMG_EXTENSIONS, ".jfif", ".jpe"}


def test_a_folder_stands_for_the_images_below_it_in_the_order_of_their_names(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    touched(tmp_path, "b.png", "a.JPG", "für zwei/tief/größe 1.png", ".hidden.png", ".cache/x.png")
    assert [str(file.relative_to(tmp_path)) for file in find_images([tmp_path])] == [
        "a.JPG",
        "b.png",
        "für zwei/tief/größe 1.png",
    ]
    assert caplog.messages == []


def test_a_named_file_is_taken_whatever_its_ending_and_as_often_as_it_is_named(tmp_path):
    touched(tmp_path, "photo", "more/x.webp")
    paths = [tmp_path / "photo", str(tmp_path / "more"), tmp_path / "photo"]
    assert find_images(paths) == [tmp_path / "photo", tmp_path / "more" / "x.webp", tmp_path / "photo"]


def test_files_of_a_folder_that_are_no_images_are_named_in_a_warning(tmp_path, caplog):
    touched(tmp_path, "a.png", "sub/notes.txt", *(f"{n}.heic" for n in range(9)))
    assert find_images([tmp_path]) == [tmp_path / "a.png"]
    (message,) = caplog.messages
    assert message.endswith("left out: 0.heic, 1.heic, 2.heic, 3.heic, 4.heic, 5.heic, 6.heic, 7.heic and 2 more")


def test_links_are_followed_and_a_circle_of_folders_ends(tmp_path):
    touched(tmp_path, "here/a.png", "there/b.png")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "back").symlink_to(tmp_path / "here")
    assert [file.name for file in find_images([tmp_path / "here"])] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("holyday", "no such file or folder; did you mean holiday?"),
        ("holiday/cat.pgn", "no such file or folder; did you mean cat.png?"),
        ("nowhere/at/all.png", "no such file or folder"),
        ("empty", "no image in it; expected files with the endings .jpg"),
        ("texts", "found a.txt, more/b.heic"),
        ("broken.png", "no such file or folder"),
        ("n" * 300, "cannot be read: File name too long"),
    ],
)
def test_a_path_without_an_image_is_named_with_the_nearest_one(tmp_path, path, message):
    touched(tmp_path, "holiday/cat.png", "texts/a.txt", "texts/more/b.heic")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError) as error:
        find_images([tmp_path / "holiday", tmp_path / path])
    assert str(error.value).startswith(f"{tmp_path / path}: ")
    assert message in str(error.value)
