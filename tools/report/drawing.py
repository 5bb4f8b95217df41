"""A chart as SVG for a page, and as PDF and PNG for a paper.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; line styles and markers repeat the
distinction (see `tools.report.charts`). In a page every colour becomes a CSS variable, so that one chart is readable
on light and on dark ground.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from utils.files import atomic_write

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, GRID = "#24292f", "#d0d7de"
VARIABLES = {INK: "currentColor", GRID: "var(--grid)", **{hexa: f"var(--s{i})" for i, hexa in enumerate(SERIES)}}
STYLE: Any = {
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
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Drawing:
    """A chart.

    Attributes:
        name: Of its files: what it shows, then of what.
        title: One line above it.
        text: What it shows, for who cannot see it.
        figure: Matplotlib's.
    """

    name: str
    title: str
    text: str
    figure: Figure

    def svg(self, prefix: str) -> str:
        """An <svg> element to stand in a page beside others.

        Args:
            prefix: Of its ids; another one for each drawing of a page.
        """
        content = io.StringIO()
        with styled():  # not by savefig, which draws everything twice
            canvas: Any = FigureCanvasSVG(self.figure)  # matplotlib's print_svg has no types
            canvas.print_svg(content, metadata={"Date": None})
        return _inline(content.getvalue(), prefix, f"{self.title}. {self.text}")

    def save(self, folder: Path, stem: str) -> None:
        """Write STEM.pdf and STEM.png into a folder.

        Raises:
            OSError: A file cannot be written.
        """
        atomic_write(folder / f"{stem}.pdf", self._bytes("pdf", {"CreationDate": None}))
        atomic_write(folder / f"{stem}.png", self.png())

    def png(self) -> bytes:
        """A PNG file on white ground, the same every time."""
        return self._bytes("png", {"Software": None})

    def _bytes(self, kind: Literal["pdf", "png"], metadata: dict[str, None]) -> bytes:
        content = io.BytesIO()
        with styled():
            ground = "white" if kind == "png" else "none"
            self.figure.savefig(content, format=kind, metadata=metadata, dpi=200, facecolor=ground)
        return content.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """The style of all charts; needed while one is made and while it is written."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def _inline(svg: str, prefix: str, text: str) -> str:
    """The <svg> element alone: ids of its own, colours of the page's, no declared types, namespaces or metadata."""
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', body))
    body = re.sub(r"<[^>]+>", lambda tag: _inline_tag(tag[0], prefix, used), body)
    opening, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    return f'<svg {box[0]} role="img" aria-label="{escape(text)}">{rest.rstrip()}'


def _inline_tag(tag: str, prefix: str, used: set[str]) -> str:
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda match: VARIABLES.get(match[0], match[0]), tag)
    tag = re.sub(r' id="([^"]+)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", tag)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", tag)
