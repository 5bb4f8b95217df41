"""Class order, tasks, and which images a task holds."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils.data.images import InputSpec
from utils.data.loader import StreamLoader
from utils.data.sources import ImageData, Split, load_dataset
from utils.data.tasks import DataManager
from utils.errors import ConfigError, DataError

CPU = torch.device("cpu")
SPEC = InputSpec(8)

# The class order of CIFAR-100 in the literature since iCaRL's successors fixed the seed 1993; its first 20 classes.
ORDER_1993 = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38]


def flat_data(train: list[int], test: list[int], nb_classes: int) -> ImageData:
    """Grey images that show their stored label times 10, plus 1 for a test image."""
    train_labels, test_labels = np.array(train, dtype=np.int64), np.array(test, dtype=np.int64)

    def split(labels: np.ndarray, offset: int) -> Split:
        values = (labels * 10 + offset).astype(np.uint8)
        return Split(np.broadcast_to(values[:, None, None], (len(labels), 10, 10)).copy(), labels)

    return ImageData(split(train_labels, 0), split(test_labels, 1), tuple(f"class {n}" for n in range(nb_classes)))


def one_each(nb_classes: int) -> ImageData:
    labels = np.arange(nb_classes)
    split = Split(np.zeros((nb_classes, 1, 1), np.uint8), labels)
    return ImageData(split, split, tuple(map(str, labels)))


def manager(data: ImageData, **changes: object) -> DataManager:
    settings = {"shuffle": False, "seed": 0, "init_cls": 2, "increment": 2}
    return DataManager(data, **{**settings, **changes})  # type: ignore[arg-type]


def contents(tasks: DataManager, labels: list[int], source: str, mode: str) -> list[tuple[int, int, int]]:
    """(index, what the image shows, label) of each image."""
    dataset = tasks.get_dataset(labels, source=source, mode=mode, spec=SPEC)  # type: ignore[arg-type]
    return [(index, round(image.mean().item() * 255), label) for index, image, label in dataset]  # type: ignore[attr-defined]


# ---- class order


def test_the_class_order_is_the_one_of_the_literature():
    tasks = manager(one_each(100), shuffle=True, seed=1993, init_cls=10, increment=10)
    assert tasks.class_order[:20] == ORDER_1993
    assert sorted(tasks.class_order) == list(range(100))
    assert tasks.class_names[:3] == ("68", "56", "78")


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_the_class_order_is_numpys_and_leaves_numpy_alone(seed: int, nb_classes: int):
    before = np.random.get_state()
    tasks = manager(one_each(nb_classes), shuffle=True, seed=seed, init_cls=1)
    after = np.random.get_state()
    np.random.seed(seed)
    expected = np.random.permutation(nb_classes).tolist()
    np.random.set_state(before)
    assert tasks.class_order == expected
    np.testing.assert_equal(after, before)


def test_without_shuffle_classes_come_as_stored():
    assert manager(one_each(7), shuffle=False, seed=3).class_order == list(range(7))


# ---- tasks


def sizes_by_hand(nb_classes: int, init_cls: int, increment: int) -> list[int]:
    """Class after class: a new task whenever the last one is full."""
    sizes = [0]
    for _ in range(nb_classes):
        if sizes[-1] == (init_cls if len(sizes) == 1 else increment):
            sizes.append(0)
        sizes[-1] += 1
    return sizes


@given(st.data(), st.integers(1, 120))
def test_tasks_take_all_classes_and_max_tasks_cuts_the_rest(data: st.DataObject, nb_classes: int):
    init_cls, increment = data.draw(st.integers(1, nb_classes)), data.draw(st.integers(1, 130))
    max_tasks = data.draw(st.none() | st.integers(1, 12))
    tasks = manager(one_each(nb_classes), init_cls=init_cls, increment=increment, max_tasks=max_tasks)
    expected = sizes_by_hand(nb_classes, init_cls, increment)[:max_tasks]
    assert [tasks.get_task_size(task) for task in range(tasks.nb_tasks)] == expected
    assert tasks.nb_classes == nb_classes


def test_fifty_and_ten_of_cifar_are_six_tasks_of_which_two_can_be_asked_for():
    assert manager(one_each(100), init_cls=50, increment=10).nb_tasks == 6
    assert manager(one_each(100), init_cls=50, increment=10, max_tasks=2).nb_tasks == 2


def test_listed_tasks_and_classes_take_the_place_of_sizes_and_shuffle():
    data = one_each(6)
    tasks = manager(data, shuffle=True, init_cls=99, tasks=[["3", 1], [5]])
    assert (tasks.class_order, tasks.nb_tasks, tasks.nb_classes) == ([3, 1, 5, 0, 2, 4], 2, 6)
    assert [tasks.get_task_size(task) for task in (0, 1)] == [2, 1]
    assert tasks.names_of(0) == ("3", "1")
    assert manager(data, tasks=[["3", 1], [5]], max_tasks=1).nb_tasks == 1
    listed = manager(data, shuffle=True, class_order=[5, 4, "3", 2, 1, 0])
    assert (listed.class_order, listed.nb_tasks) == ([5, 4, 3, 2, 1, 0], 3)
    with pytest.raises(ConfigError, match="tasks: these are 2,001 tasks"):
        manager(one_each(2001), tasks=[[label] for label in range(2001)])


def test_tasks_that_are_left_out_have_the_last_labels_and_the_rows_of_the_head_go_with_their_classes():
    data = one_each(7)
    whole = manager(data, shuffle=True, seed=5, transient=[1, 3])
    assert (whole.transient, whole.head_rows) == ([1, 3], list(range(7)))
    without = manager(data, shuffle=True, seed=5, transient=[1, 3], leave_out=True)
    assert (without.nb_tasks, without.transient) == (2, [])
    assert [without.names_of(task) for task in (0, 1)] == [whole.names_of(task) for task in (0, 2)]
    assert set(without.class_names[4:]) == {*whole.names_of(1), *whole.names_of(3)}
    assert [whole.class_order[row] for row in without.head_rows] == without.class_order
    cut = manager(data, transient=[1], leave_out=True, max_tasks=2)
    assert (cut.nb_tasks, cut.class_order) == (1, [0, 1, 2, 3, 4, 5, 6])
    with pytest.raises(ConfigError, match="transient = 4: there are 4 tasks"):
        manager(data, transient=[4])
    with pytest.raises(ConfigError, match="transient = 1: there is one task, counted from 0"):
        manager(data, transient=[1], max_tasks=1)


def test_a_task_after_the_last_is_an_error():
    tasks = manager(one_each(4), max_tasks=1)
    with pytest.raises(IndexError):
        tasks.get_task_size(1)


def test_too_many_first_classes_name_the_key():
    with pytest.raises(ConfigError, match="init_cls = 5: the data set has 4 classes"):
        manager(one_each(4), init_cls=5)


def test_more_tasks_than_can_be_evaluated_are_refused_before_training():
    with pytest.raises(
        ConfigError, match=r"init_cls = 1, increment = 1: these are 2,001 tasks; expected at most 2,000"
    ):
        manager(one_each(2001), init_cls=1, increment=1)
    assert manager(one_each(2001), init_cls=1, increment=1, max_tasks=2000).nb_tasks == 2000


# ---- images


def test_images_come_class_after_class_with_their_new_labels():
    data = flat_data([2, 0, 1, 2, 0, 2], [1, 0, 2], 3)
    tasks = manager(data, shuffle=True, seed=14, init_cls=1, increment=1)
    order = tasks.class_order
    assert order == [1, 2, 0]  # unlike its inverse, [2, 0, 1]
    shown = {new: 10 * order[new] for new in range(3)}
    counts = {0: 2, 1: 1, 2: 3}
    for new in range(3):
        count = counts[order[new]]
        assert contents(tasks, [new], "train", "test") == [(index, shown[new], new) for index in range(count)]
        assert tasks.nb_images("train", new) == count
    expected = [(0, shown[2] + 1, 2), (1, shown[0] + 1, 0)]
    assert contents(tasks, [2, 0], "test", "test") == expected


@given(st.data())
def test_every_image_is_in_exactly_one_task(data: st.DataObject):
    nb_classes = data.draw(st.integers(1, 12))
    labels = data.draw(st.permutations([*range(nb_classes), *data.draw(st.lists(st.integers(0, nb_classes - 1)))]))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1)
    split = Split(images, np.array(labels, dtype=np.int64))
    seed = data.draw(st.integers(0, 9))
    init_cls, increment = data.draw(st.integers(1, nb_classes)), data.draw(st.integers(1, 4))
    tasks = manager(
        ImageData(split, split, tuple(map(str, range(nb_classes)))),
        shuffle=True, seed=seed, init_cls=init_cls, increment=increment,
    )  # fmt: skip
    seen: list[int] = []
    for task in range(tasks.nb_tasks):
        first = sum(tasks.get_task_size(earlier) for earlier in range(task))
        wanted = range(first, first + tasks.get_task_size(task))
        dataset = tasks.get_dataset(wanted, source="train", mode="test", spec=InputSpec(1))
        assert len(dataset) == tasks.nb_images("train", task)
        for _, image, label in dataset:  # type: ignore[attr-defined]
            assert label in wanted
            number = round(image[0, 0, 0].item() * 255)
            assert label == tasks.class_order.index(labels[number])
            seen.append(number)
    assert sorted(seen) == list(range(len(labels)))


def test_the_mode_chooses_the_transform_and_the_spec_its_size():
    edges = np.zeros((1, 64, 64, 3), np.uint8)
    edges[:, :, 32:] = 255
    split = Split(edges, np.zeros(1, dtype=np.int64))
    tasks = manager(ImageData(split, split, ("only",)), init_cls=1)
    for source in ("train", "test"):
        fixed = tasks.get_dataset([0], source=source, mode="test", spec=InputSpec(16))  # type: ignore[arg-type]
        drawn = tasks.get_dataset([0], source=source, mode="train", spec=InputSpec(16))  # type: ignore[arg-type]
        assert fixed[0][1].shape == drawn[0][1].shape == (3, 16, 16)
        assert torch.equal(fixed[0][1], fixed[0][1])
        assert len({drawn[0][1].numpy().tobytes() for _ in range(5)}) > 1


def test_classes_without_an_image_of_the_kind_are_named():
    tasks = manager(flat_data([0, 1], [0], 2), init_cls=1, increment=1)
    with pytest.raises(DataError, match="no test image of any of these classes: class 1"):
        tasks.get_dataset([1], source="test", mode="test", spec=SPEC)


# ---- files, through the loader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of four noisy images in three formats."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b", "c"):
            (tmp_path / split / name).mkdir(parents=True)
            for number, ending in enumerate(("png", "jpg", "bmp", "png")):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.{ending}")
    return tmp_path


def batches_of(folder: Path, workers: int, epoch: int = 0) -> list[tuple[torch.Tensor, ...]]:
    tasks = manager(load_dataset("imagefolder", folder), shuffle=True, seed=1)
    loader = StreamLoader(tasks.get_dataset(range(2), source="train", mode="train", spec=SPEC), workers, CPU, seed=1)
    batches = list(loader.epoch("func", 0, epoch, batch_size=3, shuffle=True))
    loader.close()
    return batches


def test_augmented_files_are_the_same_for_0_and_2_workers(folder: Path):
    batches = batches_of(folder, 0)
    assert [tuple(images.shape) for _, images, _ in batches] == [(3, 3, 8, 8), (3, 3, 8, 8), (2, 3, 8, 8)]
    assert sorted(torch.cat([labels for _, _, labels in batches]).tolist()) == [0] * 4 + [1] * 4
    torch.testing.assert_close(batches_of(folder, 2), batches, rtol=0, atol=0)
    assert not torch.equal(batches_of(folder, 0, epoch=1)[0][1], batches[0][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_file_is_named_by_whoever_loads_it(folder: Path, workers: int):
    order = manager(load_dataset("imagefolder", folder), shuffle=True, seed=1).class_names
    path = folder / "train" / order[0] / "2.bmp"
    path.write_bytes(path.read_bytes()[:200])  # its first bytes are sound
    with pytest.raises(DataError) as caught:
        batches_of(folder, workers)
    assert str(caught.value).startswith(f"{path}: not a readable image: ")
    assert "\n" not in str(caught.value)


# ---- thumbnails


def test_thumbnails_show_the_images_at_the_positions_of_the_test_set():
    stored = [1, 0, 2, 1]
    tasks = manager(flat_data([0, 1, 2], stored, 3), shuffle=True, seed=3)
    shown = contents(tasks, [0, 1, 2], "test", "test")
    found = tasks.thumbnails(range(3), [2, 0])
    for position, (name, jpeg) in zip((2, 0), found, strict=True):
        with Image.open(io.BytesIO(jpeg)) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (10, 10), "RGB")
            assert abs(np.asarray(image).mean() - shown[position][1]) < 2
        row = int(name.removeprefix("test image "))
        assert stored[row] == tasks.class_order[shown[position][2]]


def test_a_thumbnail_of_a_file_is_small_and_one_that_is_gone_is_empty(tmp_path, caplog):
    file = tmp_path / "ant" / "1.png"
    file.parent.mkdir()
    Image.new("L", (400, 100)).save(file)
    split = Split([file, tmp_path / "ant" / "2.png"], np.array([0, 0]))
    tasks = manager(ImageData(split, split, ("ant",)), init_cls=1)
    (name, jpeg), gone = tasks.thumbnails([0], [0, 1])
    assert (name, Image.open(io.BytesIO(jpeg)).size) == ("ant/1.png", (96, 24))
    assert gone == ("ant/2.png", b"")
    assert "2.png: not a readable image" in caplog.text
