import numpy as np
import pytest

from utils.errors import RunError
from utils.runs.predictions import WHOLE, predictions_file, read_predictions, save_predictions


@pytest.mark.parametrize(("top", "dtype"), [(9, np.uint8), (255, np.uint8), (300, np.uint16)])
def test_predictions_come_back_and_are_stored_small(tmp_path, top, dtype):
    labels, answers = np.array([0, 1, top]), {WHOLE: np.array([0, 2, 1]), "slow": np.array([1, 1, 1])}
    file = predictions_file(tmp_path, 3)
    save_predictions(file, labels, answers)
    assert file == tmp_path / "predictions" / "task_3.npz"
    assert {array.dtype for array in np.load(file).values()} == {np.dtype(dtype)}
    found, by_name = read_predictions(file)
    assert found.tolist() == labels.tolist()
    assert {name: array.tolist() for name, array in by_name.items()} == {WHOLE: [0, 2, 1], "slow": [1, 1, 1]}


def test_missing_damaged_or_unlike_arrays_are_named(tmp_path):
    with pytest.raises(RunError, match=r"task_0\.npz: cannot be read"):
        read_predictions(tmp_path / "task_0.npz")
    (tmp_path / "task_0.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(RunError, match=r"task_0\.npz: cannot be read"):
        read_predictions(tmp_path / "task_0.npz")
    save_predictions(tmp_path / "task_1.npz", np.array([1, 2]), {WHOLE: np.array([1])})
    with pytest.raises(RunError, match="of equal length"):
        read_predictions(tmp_path / "task_1.npz")
