"""What a run keeps of its predictions, so that its accuracies can be computed again and its mistakes looked at.

    <run>/predictions/task_T.npz      labels (n,), predicted classes (n,) of the network, of its branches and with all
                                      adapters off, and the network's confidence (n,): the softmax probability of its
                                      prediction
    <run>/predictions/val_task_T.npz  the same of the validation images, only of the network, if there are any
    <run>/predictions/mistakes.npz    after the last task, the most confident mistakes: their positions (m,) among the n
                                      images, the images' names (m,), and thumbnails (m,) as bytes of a JPEG file

Shapes: n test images of all classes seen, m mistakes.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from utils.errors import RunError
from utils.files import atomic_write

FOLDER, LABELS, WHOLE, CONFIDENCE, MISTAKES = "predictions", "labels", "whole", "confidence", "mistakes.npz"
OFF = "adapters_off"
MOST_MISTAKES = 24
JPEG = b"\xff\xd8\xff"  # the first bytes of every JPEG file


class Answers(NamedTuple):
    """The content of a file of predictions."""

    labels: np.ndarray  # (n,) true classes
    answers: dict[str, np.ndarray]  # (n,) predicted classes, by branch; the whole network's under `WHOLE`, see `OFF`
    confidence: np.ndarray | None  # (n,) of the whole network, 0 to 1; None: written by an earlier version


class Mistake(NamedTuple):
    """A test image whose class was predicted wrongly."""

    position: int  # among the predictions of the last task
    name: str  # of the file and its folder, or its row in an array
    thumbnail: bytes  # a JPEG file; empty if the image could not be read


def predictions_file(run: Path, task: int, part: Literal["test", "val"] = "test") -> Path:
    """Return the file with the predictions on the test or the validation images after a task."""
    return run / FOLDER / f"{'val_' if part == 'val' else ''}task_{task}.npz"


def save_predictions(
    file: Path, labels: np.ndarray, answers: Mapping[str, np.ndarray], confidence: np.ndarray | None = None
) -> None:
    """Write labels (n,) and predicted classes (n,) in the smallest integer type that holds them.

    The predictions of the whole network are under `WHOLE`, those with all adapters off under `OFF`, and those with only
    some of its branches under other names.
    """
    arrays = {LABELS: labels, **answers}
    small = np.min_scalar_type(max((int(array.max()) for array in arrays.values() if array.size), default=0))
    kept = {} if confidence is None else {CONFIDENCE: confidence.astype(np.float32)}
    _save(file, {name: array.astype(small) for name, array in arrays.items()} | kept)


def read_predictions(file: Path) -> Answers:
    """Return the labels, the predictions by name, and the confidence.

    Raises:
        RunError: The file is missing or damaged.
    """
    arrays = _read(file)
    confidence = arrays.pop(CONFIDENCE, None)
    whole = {name: array.astype(np.int64) for name, array in arrays.items()}
    labels = whole.pop(LABELS, None)
    together = [*whole.values(), *([] if confidence is None else [confidence])]
    if labels is None or WHOLE not in whole or any(array.shape != labels.shape for array in together):
        raise RunError(f"{file}: expected arrays {LABELS} and {WHOLE} of equal length")
    return Answers(labels, whole, confidence)


def confident_mistakes(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> list[int]:
    """Return the positions of at most `MOST_MISTAKES` wrong predictions, the most confident first."""
    wrong = np.flatnonzero(labels != predicted)
    return [int(at) for at in wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]]


def save_mistakes(run: Path, mistakes: Sequence[Mistake]) -> None:
    """Write the most confident mistakes of a run. A JPEG file does not end with a zero, so padding does no harm."""
    positions, names, thumbnails = ([mistake[part] for mistake in mistakes] for part in range(3))
    columns = {"positions": np.array(positions, np.int64), "names": np.array(names, np.str_)}
    _save(run / FOLDER / MISTAKES, {**columns, "thumbnails": np.array(thumbnails, np.bytes_)})


def read_mistakes(run: Path) -> list[Mistake] | None:
    """Return the most confident mistakes of a run; None if it was written by an earlier version.

    Raises:
        RunError: The file is damaged.
    """
    file = run / FOLDER / MISTAKES
    if not file.exists():
        return None
    arrays = _read(file)
    try:
        columns = [arrays[name].tolist() for name in ("positions", "names", "thumbnails")]
        found = [Mistake(int(at), str(name), bytes(image)) for at, name, image in zip(*columns, strict=True)]
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{file}: expected arrays positions, names and thumbnails of equal length") from error
    if not all(mistake.thumbnail.startswith(JPEG) for mistake in found if mistake.thumbnail):
        raise RunError(f"{file}: a thumbnail is not a JPEG file")
    return found


def _save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    atomic_write(file, buffer.getvalue())


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise RunError(f"{file}: cannot be read: {error}") from error
