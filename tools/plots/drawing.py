"""A chart as SVG for a page, and as SVG, PDF and PNG for a paper.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; line styles and markers repeat the
distinction (see `tools.plots.charts`). In a page every colour becomes a CSS variable, so that one chart is readable
on light and on dark ground.
"""

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from utils.files import atomic_write

KINDS: dict[str, tuple[dict[str, None], str]] = {  # of files: their metadata that changes with time, their ground
    "svg": ({"Date": None}, "none"),
    "pdf": ({"CreationDate": None}, "none"),
    "png": ({"Software": None}, "white"),
}
COLUMN = 4.2  # inches; at the width of a phone the text of such a chart is as large as the page's small print
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, GRID = "#24292f", "#d0d7de"
VARIABLES = {INK: "currentColor", GRID: "var(--grid)", **{hexa: f"var(--s{i})" for i, hexa in enumerate(SERIES)}}
FONTS = "'DejaVu Sans', Verdana, sans-serif"  # of a page; no other font of browsers is wider than the first
STYLE: Any = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that every machine lays charts out alike
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


class Numbers(NamedTuple):
    """The values that a chart shows; header and rows have the same number of cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Drawing:
    """A chart."""

    name: str  # of its files
    title: str  # one line above it
    text: str  # describes it for readers who cannot see it
    draw: Callable[..., Figure]  # makes matplotlib's figure; takes its `width` in inches
    numbers: Numbers

    def svg(self, prefix: str, width: float, style: str) -> str:
        """Return an <svg> element of a width in inches; its ids begin with `prefix`, its CSS class is `style`."""
        content = io.StringIO()
        with styled():  # not by savefig, which draws everything twice
            canvas: Any = FigureCanvasSVG(self.draw(width=width))  # matplotlib's print_svg has no types
            canvas.print_svg(content, metadata={"Date": None})
        label = escape(f"{self.title}. {self.text}")
        return _inline(content.getvalue(), prefix, f'class="{style}" role="img" aria-label="{label}"')

    def save(self, stem: Path) -> None:
        """Write STEM.pdf, STEM.png and, with the numbers, STEM.csv; raise OSError if that fails."""
        for kind in ("pdf", "png", "csv"):
            atomic_write(stem.with_name(f"{stem.name}.{kind}"), self.file(kind))

    def file(self, kind: str, width: float = COLUMN) -> bytes:
        """Return a file of a kind of `KINDS`, always the same bytes, of a width in inches; a PNG has white ground.

        The kind "csv" has the numbers instead.
        """
        if kind == "csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([self.numbers.header, *self.numbers.rows])
            return text.getvalue().encode(errors="backslashreplace")
        metadata, ground = KINDS[kind]
        content = io.BytesIO()
        with styled():
            self.draw(width=width).savefig(content, format=kind, metadata=metadata, dpi=200, facecolor=ground)
        return content.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Set the style of all charts, while one is made and while it is written."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def _inline(svg: str, prefix: str, attributes: str) -> str:
    """Return the <svg> element alone, with prefixed ids and the page's colours, without namespaces and metadata."""
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', body))

    def inline_tag(match: re.Match[str]) -> str:
        tag = re.sub(r"#[0-9a-f]{6}\b", lambda colour: VARIABLES.get(colour[0], colour[0]), match[0])
        tag = tag.replace("'DejaVu Sans'", FONTS)
        tag = re.sub(r' id="([^"]+)"', lambda at: f' id="{prefix}{at[1]}"' if at[1] in used else "", tag)
        return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", tag)

    opening, rest = re.sub(r"<[^>]+>", inline_tag, body).split(">", 1)
    box = opening.split('viewBox="')[1].split('"')[0]
    return f'<svg viewBox="{box}" {attributes}>{rest.rstrip()}'
