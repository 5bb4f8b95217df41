"""The two kinds of chart of a report, lines and heat maps. The size of text does not depend on the width."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.report.drawing import COLUMN, INK, SERIES, styled

LINES, MARKERS = ("-", "--", ":", "-."), "os^Dv<>P"
MANY = 60  # points of a line; with more, markers would hide it


@dataclass(frozen=True)
class Line:
    """One line of a chart; a NaN breaks it."""

    label: str | None  # None: not in the legend, and drawn thin
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0  # lines of one number look alike
    band: tuple[Sequence[float], Sequence[float]] | None = None  # lower and upper edge


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
        longest = int(10.5 * width)  # characters of a label, so that it fits
        for line in lines:
            _draw(axes, line, longest)
        for level in levels:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        if marks:
            axes.plot(*zip(*marks, strict=True), "*", color=INK, markersize=9, label=mark_label, zorder=5)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        # As many at any height: the layout makes room for their labels before it sets the height.
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if limits:
            axes.set_ylim(*limits)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = max(1, min(len(labels), int(58 * width / COLUMN) // (max(map(len, labels)) + 5)))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
        return figure


def _draw(axes: Axes, line: Line, longest: int) -> None:
    """Draw one line. Matplotlib leaves labels that begin with an underscore out of the legend."""
    text, half = " ".join((line.label or "").split()), longest // 2
    short = text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"
    label = "_" if line.label is None else f"\u200b{short}" if short.startswith("_") else short
    color, dashes = SERIES[line.style % len(SERIES)], LINES[line.style // len(SERIES) % len(LINES)]
    marker = MARKERS[line.style % len(MARKERS)] if len(line.y) <= MANY else None
    weight = 0.9 if line.label is None else 1.6
    if line.band:
        axes.fill_between(line.x, *line.band, color=color, alpha=0.18, linewidth=0)
    axes.plot(line.x, line.y, dashes, color=color, lw=weight, marker=marker, markersize=2.2 * weight, label=label)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def heat_map(
    values: np.ndarray, x_label: str, y_label: str, *, width: float = COLUMN, top: float, digits: int = 0
) -> Figure:
    """Draw numbers (rows, tasks) as colours from 0 to `top`, and as text if there is room; NaN as nothing."""
    count, columns = values.shape
    with styled():
        figure, axes = _canvas(width, min(COLUMN, max(1.5, 0.75 + 0.29 * count)))
        shown = np.ma.masked_invalid(values)
        mesh = axes.pcolormesh(shown, cmap="cividis", vmin=0, vmax=top or 1, edgecolors="none", linewidth=0)
        axes.set(xlabel=x_label, ylabel=y_label)
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


def _ticks(count: int) -> tuple[list[float], list[str]]:
    """Return middles and numbers of at most 15 cells."""
    shown = range(0, count, math.ceil(count / 15))
    return [place + 0.5 for place in shown], list(map(str, shown))
