import numpy as np
import pytest

from utils.errors import RunError
from utils.runs.predictions import (
    MOST_MISTAKES,
    WHOLE,
    Mistake,
    confident_mistakes,
    predictions_file,
    read_mistakes,
    read_predictions,
    save_mistakes,
    save_predictions,
)

JPEG = b"\xff\xd8\xff\xe0 any \0\xff\xd9"


@pytest.mark.parametrize(("top", "dtype"), [(9, np.uint8), (255, np.uint8), (300, np.uint16)])
def test_predictions_come_back_and_are_stored_small(tmp_path, top, dtype):
    labels, answers = np.array([0, 1, top]), {WHOLE: np.array([0, 2, 1]), "slow": np.array([1, 1, 1])}
    file = predictions_file(tmp_path, 3)
    save_predictions(file, labels, answers)
    assert file == tmp_path / "predictions" / "task_3.npz"
    assert {array.dtype for array in np.load(file).values()} == {np.dtype(dtype)}
    found, by_name, confidence = read_predictions(file)
    assert found.tolist() == labels.tolist()
    assert {name: array.tolist() for name, array in by_name.items()} == {WHOLE: [0, 2, 1], "slow": [1, 1, 1]}
    assert confidence is None


def test_confidence_comes_back_and_is_no_branch(tmp_path):
    given = np.array([0.1, 0.99999], np.float64)
    save_predictions(tmp_path / "x.npz", np.array([0, 1]), {WHOLE: np.array([0, 0])}, given)
    _, answers, confidence = read_predictions(tmp_path / "x.npz")
    assert list(answers) == [WHOLE]
    assert confidence is not None
    assert (confidence.dtype, confidence.tolist()) == (np.float32, given.astype(np.float32).tolist())


def test_missing_damaged_or_unlike_arrays_are_named(tmp_path):
    with pytest.raises(RunError, match=r"task_0\.npz: cannot be read"):
        read_predictions(tmp_path / "task_0.npz")
    (tmp_path / "task_0.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(RunError, match=r"task_0\.npz: cannot be read"):
        read_predictions(tmp_path / "task_0.npz")
    for short in ({"answers": {WHOLE: np.array([1])}}, {"answers": {WHOLE: np.ones(2)}, "confidence": np.array([1])}):
        save_predictions(tmp_path / "task_1.npz", np.array([1, 2]), **short)
        with pytest.raises(RunError, match="of equal length"):
            read_predictions(tmp_path / "task_1.npz")


def test_the_most_confident_mistakes_come_first_and_equal_ones_in_their_order():
    labels, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 2, 1])
    assert confident_mistakes(labels, predicted, np.array([1.0, 0.5, 0.7, 0.5, 0.9])) == [4, 2, 1, 3]
    assert confident_mistakes(labels, labels, np.ones(5)) == []
    many = np.zeros(100, np.int64)
    assert confident_mistakes(many, many + 1, np.ones(100)) == list(range(MOST_MISTAKES))


@pytest.mark.parametrize("mistakes", [[], [Mistake(7, "ant/ä.jpg", JPEG), Mistake(0, "test image 3", b"")]])
def test_mistakes_come_back(tmp_path, mistakes):
    assert read_mistakes(tmp_path) is None
    save_mistakes(tmp_path, mistakes)
    assert read_mistakes(tmp_path) == mistakes


def test_damaged_mistakes_and_other_images_are_refused(tmp_path):
    save_mistakes(tmp_path, [Mistake(7, "x", b"<svg onload=alert(1)>")])
    with pytest.raises(RunError, match=r"mistakes\.npz: a thumbnail is not a JPEG file"):
        read_mistakes(tmp_path)
    file = tmp_path / "predictions" / "mistakes.npz"
    for arrays in ({"names": np.array(["x"])}, {"positions": np.arange(2), "names": np.array([]), "thumbnails": []}):
        np.savez(file, **arrays)
        with pytest.raises(RunError, match="expected arrays positions, names and thumbnails"):
            read_mistakes(tmp_path)
