"""What the network answered on the test images after every task, so that the accuracy matrix can be counted again.

    <run>/predictions/task_T.npz    labels (n,), and (n,) predicted classes for each way of answering

Shapes: n test images of all classes seen.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import atomic_write

FOLDER, LABELS, WHOLE = "predictions", "labels", "whole"


class PredictionsError(UserError):
    """Predictions that are missing or damaged."""


def predictions_file(run: Path, task: int) -> Path:
    """Where the predictions after a task lie."""
    return run / FOLDER / f"task_{task}.npz"


def save_predictions(file: Path, labels: np.ndarray, answers: Mapping[str, np.ndarray]) -> None:
    """Write the answers on the test images of all classes seen, in integers as small as will do.

    Args:
        file: As `predictions_file`.
        labels: (n,) true classes.
        answers: (n,) predicted classes by the network as it is, under `WHOLE`, and by single branches.
    """
    arrays = {LABELS: labels, **answers}
    small = np.min_scalar_type(max((int(array.max()) for array in arrays.values() if array.size), default=0))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: array.astype(small) for name, array in arrays.items()})
    atomic_write(file, buffer.getvalue())


def read_predictions(file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The labels, and the answers by name, as `save_predictions` took them.

    Raises:
        PredictionsError: The file is missing or damaged.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name].astype(np.int64) for name in archive}
    except Exception as error:  # a damaged archive fails in zip, zlib or array headers, each with errors of its own
        raise PredictionsError(f"{file}: cannot be read: {error}") from error
    labels = arrays.pop(LABELS, None)
    if labels is None or WHOLE not in arrays or any(array.shape != labels.shape for array in arrays.values()):
        raise PredictionsError(f"{file}: expected arrays {LABELS} and {WHOLE} of one length")
    return labels, arrays
