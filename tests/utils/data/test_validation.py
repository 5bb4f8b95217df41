"""Which training images are set aside for validation."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.contents import of_array
from utils.data.record import fingerprints, images_of
from utils.data.sources import ImageData, Split
from utils.data.tasks import DataManager
from utils.data.validation import with_validation
from utils.errors import ConfigError


def half(values: np.ndarray, labels: list[int]) -> Split:
    images = values.astype(np.uint16).view(np.uint8).reshape(-1, 1, 2)  # one image of two pixels for each number
    return Split(images, np.array(labels, dtype=np.int64), of_array(images))


def data_of(counts: list[int], first_test: int = 60_000) -> ImageData:
    labels = np.repeat(np.arange(len(counts)), counts).tolist()
    tests = list(range(len(counts)))
    train, test = half(np.arange(len(labels)), labels), half(first_test + np.arange(len(tests)), tests)
    return ImageData(train, test, tuple(f"class {n}" for n in tests))


def aside(data: ImageData) -> list[int]:
    assert data.validation is not None
    return np.flatnonzero(data.validation).tolist()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(4, 40), min_size=1, max_size=5), st.sampled_from([0.2, 0.25, 0.5, 0.7]), st.integers(0, 99))
def test_each_class_gives_its_rounded_share_and_every_image_is_in_one_part(counts, fraction, seed):
    data = with_validation(data_of(counts), fraction, seed)
    parts = {part: data.part(part).labels for part in ("train", "val")}
    for label, count in enumerate(counts):
        taken = int((parts["val"] == label).sum())
        assert abs(taken - count * fraction) <= 0.5
        assert taken + int((parts["train"] == label).sum()) == count
    assert ((parts["train"] == -1) == (parts["val"] >= 0)).all()
    assert (data.part("test").labels == data.test.labels).all()


def test_a_fraction_of_zero_changes_nothing():
    data = data_of([5, 5])
    assert with_validation(data, 0.0, 3) is data
    assert data.part("train") is data.train
    assert (data.part("val").labels == -1).all()
    assert fingerprints(data).keys() == {"train", "test"}


def test_the_draw_is_of_seed_and_class_alone():
    whole = with_validation(data_of([20, 20]), 0.5, 7)
    other = with_validation(data_of([20, 20]), 0.5, 8)
    assert aside(whole) != aside(other)
    assert [row - 20 for row in aside(whole) if row >= 20] != [row for row in aside(whole) if row < 20]
    order = np.random.RandomState(0).permutation(40)  # as if the files had other names, and came in another order
    data = data_of([20, 20])
    shuffled = Split(data.train.images[order], data.train.labels[order], of_array(data.train.images[order]))
    moved = with_validation(ImageData(shuffled, data.test, data.class_names), 0.5, 7)
    assert sorted(order[aside(moved)].tolist()) == aside(whole)
    first = data_of([20])  # without the other class
    assert aside(with_validation(first, 0.5, 7)) == [row for row in aside(whole) if row < 20]


def test_the_draw_is_not_always_of_the_same_rows():
    often = np.zeros(20)
    for seed in range(200):
        often[aside(with_validation(data_of([20]), 0.25, seed))] += 1
    assert 20 < often.min() <= often.max() < 85  # 50 on average, a standard deviation of 6.1


@pytest.mark.parametrize(
    ("counts", "fraction", "message"),
    [
        ([10, 4], 0.1, "val_fraction = 0.1: class class 1 has 4 training images, and 0 would be for validation"),
        ([10, 4], 0.9, "val_fraction = 0.9: class class 1 has 4 training images, and 4 would be for validation"),
        ([1, 9], 0.5, "val_fraction = 0.5: class class 0 has 1 training images, and 1 would be for validation"),
    ],
)
def test_a_class_that_would_be_empty_is_refused_in_one_line(counts, fraction, message):
    with pytest.raises(ConfigError) as caught:
        with_validation(data_of(counts), fraction, 0)
    text = str(caught.value)
    assert text.startswith(message)
    assert len(text.splitlines()) == 1


def test_no_test_image_is_drawn():
    values = np.arange(20)
    data = ImageData(half(values, [0] * 20), half(values[:12], [0] * 12), ("a",))
    for seed in range(20):
        assert min(aside(with_validation(data, 0.4, seed))) >= 12
    with pytest.raises(ConfigError, match="has 20 training images, of which 12 are test images too, and 10 would"):
        with_validation(data, 0.5, 0)


def test_copies_that_are_trained_on_are_counted_in_a_warning(caplog):
    data = ImageData(half(np.array([1] * 9 + [2]), [0] * 10), half(np.array([3]), [0]), ("a",))
    with caplog.at_level(logging.WARNING):
        validated = with_validation(data, 0.5, 0)
    copies = [row for row in aside(validated) if row < 9]
    (text,) = caplog.messages
    assert text.startswith(f"val_fraction, seed 0: {len(copies)} of 5 validation images are training images, too")
    caplog.clear()
    with_validation(data_of([10]), 0.5, 0)
    assert not caplog.messages


def test_the_record_lists_them_and_the_fingerprint_of_the_training_half_stays():
    data = data_of([10, 10])
    validated = with_validation(data, 0.2, 1)
    listed = images_of(validated)
    assert [row for row, image in enumerate(listed) if image.part == "val"] == aside(validated)
    assert [image._replace(part="train") if image.part == "val" else image for image in listed] == images_of(data)
    found, plain = fingerprints(validated), fingerprints(data)
    assert (found["train"], found["test"]) == (plain["train"], plain["test"])
    assert found["val"]["images"] == 4


def test_tasks_are_of_the_other_images():
    data = with_validation(data_of([10, 10, 20]), 0.2, 1)
    tasks = DataManager(data, shuffle=False, seed=0, init_cls=2, increment=1)
    counts = {part: [tasks.nb_images(part, task) for task in (0, 1)] for part in ("train", "val", "test")}
    assert counts == {"train": [16, 16], "val": [4, 4], "test": [2, 1]}
