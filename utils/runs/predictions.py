"""Predictions on the test images after every task, so that the accuracy matrix can be computed again.

    <run>/predictions/task_T.npz    labels (n,), and predicted classes (n,) of the network and of its branches

Shapes: n test images of all classes seen.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import RunError
from utils.files import atomic_write

FOLDER, LABELS, WHOLE = "predictions", "labels", "whole"


def predictions_file(run: Path, task: int) -> Path:
    """Return the file with the predictions after a task."""
    return run / FOLDER / f"task_{task}.npz"


def save_predictions(file: Path, labels: np.ndarray, answers: Mapping[str, np.ndarray]) -> None:
    """Write labels (n,) and predicted classes (n,) in the smallest integer type that holds them.

    The predictions of the whole network are under `WHOLE`, those with only some of its branches under other names.
    """
    arrays = {LABELS: labels, **answers}
    small = np.min_scalar_type(max((int(array.max()) for array in arrays.values() if array.size), default=0))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: array.astype(small) for name, array in arrays.items()})
    atomic_write(file, buffer.getvalue())


def read_predictions(file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the labels, and the predictions by name.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name].astype(np.int64) for name in archive}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise RunError(f"{file}: cannot be read: {error}") from error
    labels = arrays.pop(LABELS, None)
    if labels is None or WHOLE not in arrays or any(array.shape != labels.shape for array in arrays.values()):
        raise RunError(f"{file}: expected arrays {LABELS} and {WHOLE} of equal length")
    return labels, arrays
