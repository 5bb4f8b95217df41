"""The kinds of chart: lines, bars, heat maps and confusion matrices. The size of text does not depend on the width."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.plots.drawing import COLUMN, INK, SERIES, Numbers, styled

LINES, MARKERS = ("-", "--", ":", "-."), "os^Dv<>P"
STEPS = [digit * 10**power for power in range(4) for digit in (1, 2, 5)]  # between the numbers of cells
MANY = 60  # points of a line; with more, markers would hide it
NAMED_PER_INCH, LONGEST_NAME = 5, 16  # classes for which there is room to name them; characters of a name


@dataclass(frozen=True)
class Line:
    """One line of a chart; a NaN breaks it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0  # lines of one number look alike
    band: tuple[Sequence[float], Sequence[float]] | None = None  # lower and upper edge
    thin: bool = False  # whether it is thin and not in the legend
    legend: str | None = None  # its name there, if that is not the label; empty: it is not in the legend
    joined: bool = True  # False: points alone

    @property
    def name(self) -> str:
        return " ".join((self.label if self.legend is None else self.legend).split())


def line_numbers(lines: Sequence[Line], x_label: str) -> Numbers:
    """Return the values of the lines, a column for each, and the edges of their bands."""
    columns: dict[str, dict[float, float]] = {}
    for line in lines:
        columns[line.label] = dict(zip(line.x, line.y, strict=True))
        for edge, values in zip(("lower edge", "upper edge"), line.band or (), strict=False):
            columns[f"{line.label}, {edge}"] = dict(zip(line.x, values, strict=True))
    known = [{x: y for x, y in column.items() if not math.isnan(y)} for column in columns.values()]
    places = sorted({x for column in known for x in column})
    rows = [[f"{x:.6g}", *(f"{column[x]:.6g}" if x in column else "" for column in known)] for x in places]
    return Numbers([x_label, *columns], rows)


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    width: float = COLUMN,
    limits: tuple[float, float] | None = None,
    levels: Sequence[float] = (),
    marks: Sequence[tuple[float, float]] = (),
    mark_label: str = "",
) -> Figure:
    """Draw lines over whole numbers (tasks, batches), dashed lines across at `levels`, and stars at `marks`."""
    with styled():
        figure, axes = _canvas(width, 2.4 + width / 14)
        for line, name in zip(lines, _short([line.name for line in lines], int(10.5 * width)), strict=True):
            _draw(axes, line, name)
        for level in levels:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        if marks:
            axes.plot(*zip(*marks, strict=True), "*", color=INK, markersize=9, label=mark_label, zorder=5)
        _label(axes, x_label, y_label)
        places = [x for line in lines for x in line.x]
        whole = not places or max(places) - min(places) >= 1 or min(places) == max(places)
        axes.xaxis.set_major_locator(MaxNLocator(8 if whole else 4, integer=whole, min_n_ticks=1))
        # As many at any height: the layout makes room for their labels before it sets the height.
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if limits:
            axes.set_ylim(*limits)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = max(1, min(len(labels), int(58 * width / COLUMN) // (max(map(len, labels)) + 5)))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
            figure.set_figheight(figure.get_figheight() + 0.17 * max(0, math.ceil(len(labels) / columns) - 2))
        return figure


def _short(names: Sequence[str], longest: int) -> list[str]:
    """Return names of so many characters at most: without their middle, or without their equal beginning and their end.

    Names that differ in the middle would look alike without it.
    """
    half = longest // 2
    short = [name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}" for name in names]
    if len(set(short)) == len(set(names)):
        return short
    letters = zip(*(name for name in names if len(name) > longest), strict=False)
    equal = next((at for at, found in enumerate(letters) if len(set(found)) > 1), 0)
    ends = [name if len(name) <= longest else f"…{name[max(0, equal - half) :]}" for name in names]
    return [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in ends]


def _draw(axes: Axes, line: Line, name: str) -> None:
    """Draw one line. Matplotlib leaves labels that begin with an underscore out of the legend."""
    label = "_" if line.thin or not name else f"\u200b{name}" if name.startswith("_") else name
    color, dashes = SERIES[line.style % len(SERIES)], LINES[line.style // len(SERIES) % len(LINES)]
    marker = MARKERS[line.style % len(MARKERS)] if len(line.y) <= MANY else None
    weight = 0.9 if line.thin else 1.6
    if line.band:
        axes.fill_between(line.x, *line.band, color=color, alpha=0.18, linewidth=0)
    dashes = dashes if line.joined else "none"
    size = 2.2 * weight if line.joined else 5
    axes.plot(line.x, line.y, linestyle=dashes, color=color, lw=weight, marker=marker, markersize=size, label=label)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    """Name the axes. The name of y is above it: beside it, a name longer than the axis would be cut off."""
    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left", fontsize=9)


def heat_map(
    values: np.ndarray, x_label: str, y_label: str, *, width: float = COLUMN, top: float, digits: int = 0
) -> Figure:
    """Draw numbers (rows, tasks) as colours from 0 to `top`, and as text if there is room; NaN as nothing."""
    count, columns = values.shape
    with styled():
        figure, axes = _canvas(width, min(COLUMN, max(1.5, 0.9 + 0.29 * count)))
        shown = np.ma.masked_invalid(values)
        mesh = axes.pcolormesh(shown, cmap="cividis", vmin=0, vmax=top or 1, edgecolors="none", linewidth=0)
        _label(axes, x_label, f"{y_label} ↓")
        axes.set_xticks(*_ticks(columns))
        axes.set_yticks(*_ticks(count))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        if columns > 2.9 * width:  # numbers would not be readable
            figure.colorbar(mesh, ax=axes, pad=0.02)
            return figure
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                color = "#000000" if value > 0.5 * top else "#ffffff"
                place, text = (column + 0.5, row + 0.5), f"{value:.{digits}f}"
                axes.annotate(text, place, ha="center", va="center", color=color, fontsize=8)
        return figure


def _ticks(count: int, names: Sequence[str] = ()) -> tuple[list[float], list[str]]:
    """Return middles and numbers of at most 15 cells, or of all cells with their names."""
    if names:
        short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
        return [number + 0.5 for number in range(count)], short
    step = next(step for step in (*STEPS, count) if count <= 15 * step)
    shown = range(0, count, step)
    return [place + 0.5 for place in shown], list(map(str, shown))


def confusion_map(shares: np.ndarray, names: Sequence[str], bounds: Sequence[int], *, width: float = COLUMN) -> Figure:
    """Draw the shares (C, C), 0 to 1, of each true class's images that were taken for each class, as one image.

    Args:
        shares: NaN in the row of a class without images.
        names: Of the classes; beside the matrix if they are few, otherwise the classes are numbered.
        bounds: The first class of each task but the first, where lines are drawn.
        width: Inches.
    """
    count = len(names)
    with styled():
        figure, axes = _canvas(width, width)
        scale, extent = PowerNorm(0.5, 0, 1), (0, count, count, 0)
        image = axes.imshow(shares, "cividis", norm=scale, interpolation="none", extent=extent, aspect="auto")
        for bound in bounds:
            axes.axhline(bound, color="#ffffff", linewidth=0.5, alpha=0.7)
            axes.axvline(bound, color="#ffffff", linewidth=0.5, alpha=0.7)
        _label(axes, "predicted class", "true class ↓")
        named = count <= NAMED_PER_INCH * width
        axes.set_xticks(*_ticks(count, names if named else ()), rotation=90 if named else 0)
        axes.set_yticks(*_ticks(count, names if named else ()))
        axes.tick_params(length=0, labelsize=7)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figure.colorbar(
            image, ax=axes, pad=0.02, location="bottom", aspect=40, shrink=0.6, format="{x:.0%}", ticks=[0, 0.1, 0.4, 1]
        )
        return figure


def bar_chart(values: Sequence[float], names: Sequence[str], x_label: str, *, width: float = COLUMN) -> Figure:
    """Draw per cent as bars to the right, one below the other, with their names if there are not too many."""
    with styled():
        figure, axes = _canvas(width, width)
        places = [number + 0.5 for number in range(len(values))]
        axes.barh(places, values, height=0.8 if len(values) <= MANY else 1, color=SERIES[0], linewidth=0)
        _label(axes, x_label, "class ↓")
        axes.set_yticks(*_ticks(len(values), names if len(values) <= NAMED_PER_INCH * width else ()))
        axes.set(xlim=(0, 100), ylim=(len(values), 0))
        axes.tick_params(axis="y", length=0, labelsize=7)
        axes.grid(visible=False, axis="y")
        return figure
