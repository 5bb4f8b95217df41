"""The images of a run on its record, so that other images are noticed when it is resumed or evaluated.

    <run>/data.json          class names, numbers and fingerprints of both halves, files left out, accepted changes
    <run>/images.tsv.gz      part, class, name, size and content of every image, see `utils.runs.images`

The content is a hash, see `utils.data.contents`.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.data.sources import HALVES, ImageData
from utils.errors import DataError
from utils.files import write_json
from utils.json_file import read_object
from utils.runs.images import IMAGES, RECORD, VAL, Image, fingerprint, read_images, write_images
from utils.text import shown

logger = logging.getLogger(__name__)

ACCEPT = "restore them, or accept the change with --accept_changed_data, which the record will show"
FINISHED = (
    "the run is finished; train on these images with another --output_dir, or keep the run with --accept_changed_data"
)

Key = tuple[str, str, str]  # half, class, name


class Changes(NamedTuple):
    """Images that differ from those on record."""

    added: list[Key]
    changed: list[Key]
    missing: list[Key]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.missing)

    def of(self, half: str) -> "Changes":
        """Return the changes of one half."""
        added, changed, missing = ([key for key in keys if key[0] == half] for keys in self)
        return Changes(added, changed, missing)

    def __str__(self) -> str:
        numbers = f"{len(self.added)} added, {len(self.changed)} changed, {len(self.missing)} missing"
        first = (self.changed + self.missing + self.added)[0]
        return f"{numbers}; the first one: {'/'.join(first)}"


def fingerprints(data: ImageData) -> dict[str, Any]:
    """Return numbers and hashes of both halves, and of the validation images if there are any."""
    images = images_of(data)
    parts = HALVES if data.validation is None else (*HALVES, VAL)
    return {part: fingerprint(images, part) for part in parts}


def write_record(run: Path, data: ImageData, accepted: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write both files of the record."""
    write_images(run, images_of(data))
    left_out = [left._asdict() for left in data.left_out]
    about: dict[str, Any] = {"class_names": data.class_names}
    if data.test_folder:
        about["test_folder"] = data.test_folder
    write_json(run / RECORD, {**about, **fingerprints(data), "left_out": left_out, "accepted_changes": accepted})


def refuse_other_data(run: Path, data: ImageData, accept: bool, otherwise: str = ACCEPT) -> Changes:
    """Compare the images with those on a run's record; return the changes, which there are only if they are accepted.

    A run of an earlier version has no record: its images are not compared. `otherwise` says what can be done.

    Raises:
        DataError: The record is damaged, the classes or their order differ, or images were changed, added or removed.
    """
    if not (run / RECORD).exists():
        logger.warning("%s: an earlier version wrote no record of the images; they are not compared", run)
        return Changes([], [], [])
    record: dict[str, Any] = read_object(run / RECORD)[0]
    names: Any = record.get("class_names")
    refuse_other_classes(str(run), names, data.class_names)
    refuse_other_numbers(str(run), names, data.class_names)
    found = _changes(read_images(run), images_of(data))
    if found and not accept:
        was, now = record.get("test_folder", data.test_folder), data.test_folder
        moved = f"; test images were read from {was}/, now from {now}/" if was != now else ""
        raise DataError(f"{run}: images differ from those it began with: {found}{moved}; {otherwise}")
    return found


def changes_of_run(run: Path, data: ImageData, half: str) -> Changes | None:
    """Return how the images of a half differ from those on a run's record; None without a record."""
    return _changes(read_images(run), images_of(data)).of(half) if (run / IMAGES).exists() else None


def _changes(listed: Iterable[Image], present: Iterable[Image]) -> Changes:
    then, now = ({image.key: image for image in images} for images in (listed, present))
    changed = [key for key in now if key in then and now[key] != then[key]]
    return Changes([key for key in now if key not in then], changed, [key for key in then if key not in now])


def accept_changes(run: Path, data: ImageData, changes: Changes, task: int) -> None:
    """Write the record anew with an accepted change, made while a task was learned."""
    before: dict[str, Any] = read_object(run / RECORD)[0]
    counts = {what: len(keys) for what, keys in changes._asdict().items()}
    decision = {"task": task, **counts, "before": {half: before.get(half) for half in HALVES}}
    logger.warning("images differ from those the run began with, which was accepted: %s", changes)
    write_record(run, data, [*before.get("accepted_changes", []), decision])


def refuse_other_classes(place: str, then: object, now: Iterable[str]) -> None:
    """Raise DataError with the names of the classes that are missing or new."""
    if not isinstance(then, list):
        raise DataError(f"{place}: class_names = {shown(then)}; expected a list of names")
    known = set(now)
    differences = {"missing": [name for name in then if name not in known], "new": sorted(known.difference(then))}
    parts = [f"{what}: {', '.join(map(shown, names))}" for what, names in differences.items() if names]
    if parts:
        raise DataError(f"{place}: its classes are not those of the data set; {'; '.join(parts)}")


def refuse_other_numbers(place: str, then: Iterable[str], now: Iterable[str]) -> None:
    """Raise DataError if classes of the same names have other numbers."""
    for number, (name, here) in enumerate(zip(then, now, strict=True)):
        if name != here:
            raise DataError(f"{place}: class {number} is {shown(name)}, in the data set it is {shown(here)}")


def images_of(data: ImageData) -> list[Image]:
    """Return the list of both halves."""
    aside = {} if data.validation is None else {"train": data.validation}
    return [
        Image(
            VAL if half in aside and aside[half][row] else half, name, content.name, str(content.size), content.digest
        )
        for half in HALVES
        for row, (name, content) in enumerate(data.rows(half))
    ]
