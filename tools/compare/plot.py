"""The accuracy curves of configurations, for a page and for a paper."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tools.compare.comparison import Group
from tools.plots.charts import Line, line_chart, line_numbers
from tools.plots.drawing import Drawing
from utils.errors import UserError
from utils.files import atomic_write

ACCURACY, AFTER = "accuracy (%)", "after learning task"
BAND = "the band is one standard deviation to either side"


def accuracy_curves(groups: Sequence[Group]) -> Drawing:
    """Draw A_t of every configuration."""
    lines = [band_line(group.name, [run.curve for run in group.runs], number) for number, group in enumerate(groups)]
    seeds = "" if not any(line.band for line in lines) else f"Mean over seeds; {BAND}. "
    draw, numbers = partial(line_chart, lines, AFTER, ACCURACY), line_numbers(lines, AFTER)
    return Drawing("accuracy", "Accuracy over all classes seen", f"{seeds}{last(lines)}", draw, numbers)


def band_line(label: str, curves: Sequence[Sequence[float]], style: int) -> Line:
    """Return mean and standard deviation over seeds in per cent, over the tasks that all runs have."""
    per_cent = 100 * np.array(list(zip(*curves, strict=False)))
    y, width = per_cent.mean(axis=1), per_cent.std(axis=1, ddof=1) if len(curves) > 1 else None
    band = None if width is None else ((y - width).tolist(), (y + width).tolist())
    return Line(label, range(len(y)), y.tolist(), style, band)


def last(lines: Sequence[Line]) -> str:
    """Return where the lines end, as a sentence."""
    return "; ".join(f"{line.label} ends at {line.y[-1]:.1f} %" for line in lines) + "."


def write_plot(groups: Sequence[Group], file: Path, width: float) -> None:
    """Write the accuracy curves as the kind of file that the name's ending says, of a width in inches.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        atomic_write(file, accuracy_curves(groups).file(file.suffix.lower().removeprefix("."), width))
    except OSError as error:
        raise UserError(f"cannot be written: {error}") from None
