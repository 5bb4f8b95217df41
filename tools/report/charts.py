"""The two kinds of chart a report has: lines and heat maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.report.drawing import INK, SERIES, styled

LINES, MARKERS = ("-", "--", ":", "-."), "os^Dv<>P"
WIDTH = 4.2  # inches; at the width of a phone its text is as large as the page's small print
MANY = 60  # points of a line beyond which markers only hide it
CELLS_WITH_TEXT = 12  # columns of a heat map up to which its numbers can be read

# ---- lines


@dataclass(frozen=True)
class Line:
    """One line of a chart; a NaN breaks it.

    Attributes:
        label: In the legend; None for a line that needs none.
        style: Lines of one number look alike.
        band: Lower and upper edge.
        faint: Drawn thin, as one of several of its style.
    """

    label: str | None
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    band: tuple[Sequence[float], Sequence[float]] | None = None
    faint: bool = False


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    limits: tuple[float, float] | None = None,
    levels: Sequence[float] = (),
    marks: Sequence[tuple[float, float]] = (),
    mark_label: str = "",
) -> Figure:
    """Lines over whole numbers (tasks, batches).

    Args:
        lines: What is drawn.
        x_label: What stands on the x axis.
        y_label: What stands on the y axis.
        limits: Of the y axis.
        levels: Heights of dashed lines across the chart.
        marks: Points with a star.
        mark_label: What a star says.
    """
    with styled():
        figure, axes = _canvas(2.7)
        for line in lines:
            _draw(axes, line)
        for level in levels:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        if marks:
            axes.plot(*zip(*marks, strict=True), "*", color=INK, markersize=9, label=mark_label, zorder=5)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if limits:
            axes.set_ylim(*limits)
        _legend(figure, axes)
        return _laid_out(figure)


def _draw(axes: Axes, line: Line) -> None:
    color, style = SERIES[line.style % len(SERIES)], LINES[line.style // len(SERIES) % len(LINES)]
    marker = MARKERS[line.style % len(MARKERS)] if len(line.y) <= MANY else None
    if line.band:
        axes.fill_between(line.x, *line.band, color=color, alpha=0.18, linewidth=0)
    weight = 0.9 if line.faint else 1.6
    label = "_" if line.label is None else _shown(line.label)
    axes.plot(line.x, line.y, style, color=color, linewidth=weight, marker=marker, markersize=2.2 * weight, label=label)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = max(1, min(len(labels), 58 // (max(map(len, labels)) + 5)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def _shown(label: str, longest: int = 44) -> str:
    """A label that fits, and that matplotlib does not take for one to leave out."""
    text = " ".join(label.split())
    half = longest // 2
    short = text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"
    return f"\u200b{short}" if short.startswith("_") else short


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _laid_out(figure: Figure) -> Figure:
    """With its layout made once for all formats, which is most of the time a small figure takes."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


# ---- heat maps


def heat_map(
    values: np.ndarray,
    x_label: str,
    y_label: str,
    *,
    rows: Sequence[object],
    top: float,
    digits: int = 0,
) -> Figure:
    """Numbers (rows, tasks) as colours from 0 to `top`, and as text where there is room; NaN as nothing."""
    count, columns = values.shape
    with styled():
        figure, axes = _canvas(min(WIDTH, max(1.2, 0.75 + 0.29 * count)))
        shown = np.ma.masked_invalid(values)
        mesh = axes.pcolormesh(shown, cmap="cividis", vmin=0, vmax=top or 1, edgecolors="none", linewidth=0)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_xticks(*_ticks(range(columns)))
        axes.set_yticks(*_ticks(rows))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        if columns <= CELLS_WITH_TEXT:
            _numbers(axes, values, top, digits)
        else:
            figure.colorbar(mesh, ax=axes, pad=0.02)
        return _laid_out(figure)


def _ticks(labels: Sequence[object]) -> tuple[list[float], list[str]]:
    """Middles of the cells and what stands there; of many, every so-manieth."""
    every = math.ceil(len(labels) / 15)
    return [place + 0.5 for place in range(0, len(labels), every)], list(map(str, labels[::every]))


def _numbers(axes: Axes, values: np.ndarray, top: float, digits: int) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            color = "#000000" if value > 0.5 * top else "#ffffff"
            place = (column + 0.5, row + 0.5)
            axes.annotate(f"{value:.{digits}f}", place, ha="center", va="center", color=color, fontsize=8)
