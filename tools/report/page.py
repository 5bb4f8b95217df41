"""The parts of a report: sections with sentences, tables, drawings and pictures. `page.html.j2` lays them out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.compare.tables import Table
from tools.plots.drawing import COLUMN, Drawing
from tools.report.classes import Picture

ROW = 13.0  # inches: a chart that has a wide page to itself


@dataclass(frozen=True)
class Part:
    """Sentences, tables, drawings or pictures under a heading; without a title there is no heading."""

    title: str = ""
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
    pictures: Sequence[Picture] = ()
    parts: Sequence["Part"] = ()  # under it
    alarming: bool = False  # whether the sentences are warnings
    folded: bool = False  # whether the reader has to open it
    sortable: bool = False  # whether the tables can be sorted

    def all_drawings(self) -> Iterator[Drawing]:
        """Yield the drawings of this part and of those under it."""
        yield from self.drawings
        for part in self.parts:
            yield from part.all_drawings()

    def figures(self, prefix: str) -> Iterator[tuple[Drawing, int, list[str]]]:
        """Yield each drawing, the number in its row of a wide page (all rows are full), and its SVGs by page width."""
        count = len(self.drawings)
        pairs = 2 * (-count % 3)  # drawings in rows of two; the others are in rows of three
        for number, drawing in enumerate(self.drawings):
            columns = 1 if count == 1 else 3 if number < count - pairs else 2
            widths = {"wide": ROW / columns, "small": COLUMN} if columns < 3 else {"any": COLUMN}
            yield drawing, columns, [drawing.svg(f"{prefix}{number}{page[0]}-", w, page) for page, w in widths.items()]


@dataclass(frozen=True)
class Section:
    """A heading with its parts."""

    key: str  # the anchor
    title: str
    intro: str  # how to read it, or why it is empty
    parts: Sequence[Part] = ()

    @property
    def drawings(self) -> list[Drawing]:
        return [drawing for part in self.parts for drawing in part.all_drawings()]
