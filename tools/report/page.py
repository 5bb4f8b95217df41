"""One HTML page of sections with sentences, tables and drawings: complete in itself, every text escaped.

It loads nothing and runs nothing, and its content security policy keeps it so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tools.compare.tables import Table
from tools.report.drawing import Drawing


@dataclass(frozen=True)
class Sentences:
    """A list of sentences.

    Attributes:
        title: A heading over them; empty for none.
        lines: The sentences.
        alarming: Whether they are warnings.
    """

    title: str
    lines: Sequence[str]
    alarming: bool = False


@dataclass(frozen=True)
class Folded:
    """Tables that a reader opens."""

    title: str
    tables: Sequence[Table]


@dataclass(frozen=True)
class Drawings:
    """Drawings beside each other as far as there is room.

    Attributes:
        title: A heading over them; empty for none.
        drawings: At least one.
    """

    title: str
    drawings: Sequence[Drawing]


Part = Sentences | Folded | Drawings | Table


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it.

    Attributes:
        key: Its anchor.
        title: The heading.
        intro: A sentence: how to read it, or why there is nothing.
        parts: What it shows.
    """

    key: str
    title: str
    intro: str
    parts: Sequence[Part] = ()

    @property
    def drawings(self) -> list[Drawing]:
        """All of them, in order."""
        return [drawing for part in self.parts if isinstance(part, Drawings) for drawing in part.drawings]


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    links = "".join(f'<li><a href="#{section.key}">{escape(section.title)}</a></li>' for section in sections)
    body = "\n".join(_section(section) for section in sections)
    return PAGE.format(style=STYLE, title=escape(title), lead=escape(lead), links=links, body=body)


def _section(section: Section) -> str:
    parts = "\n".join(_part(part, f"{section.key}-{number}-") for number, part in enumerate(section.parts))
    head = f"<h2>{escape(section.title)}</h2>\n<p>{escape(section.intro)}</p>"
    return f'<section id="{section.key}">\n{head}\n{parts}</section>'


def _part(part: Part, prefix: str) -> str:
    match part:
        case Sentences():
            lines = "".join(f"<li>{escape(line)}</li>" for line in part.lines)
            style = ' class="alarm"' if part.alarming else ""
            return f"{_heading(part.title)}<ul{style}>{lines}</ul>\n"
        case Folded():
            tables = "".join(_table(table) for table in part.tables)
            return f"<details><summary>{escape(part.title)}</summary>\n{tables}</details>\n"
        case Drawings():
            figures = "".join(_figure(drawing, f"{prefix}{number}-") for number, drawing in enumerate(part.drawings))
            return f'{_heading(part.title)}<div class="drawings">\n{figures}</div>\n'
        case Table():
            return _table(part)


def _heading(title: str) -> str:
    return f"<h3>{escape(title)}</h3>\n" if title else ""


def _figure(drawing: Drawing, prefix: str) -> str:
    caption = f"<figcaption><b>{escape(drawing.title)}</b><br>{escape(drawing.text)}</figcaption>"
    return f"<figure>{drawing.svg(prefix)}{caption}</figure>\n"


def _table(table: Table) -> str:
    """In a box of its own that scrolls, so that a wide table does not widen the page."""
    title = escape(table.title)
    if not table.rows:
        return f"<p>{title}.</p>\n"
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(_row(row) for row in table.rows)
    inside = f"<table><thead><tr>{header}</tr></thead>\n<tbody>{rows}</tbody></table>"
    return f'<h3>{title}</h3>\n<div class="scroll" tabindex="0" role="region" aria-label="{title}">{inside}</div>\n'


def _row(row: Sequence[str]) -> str:
    first, *others = map(escape, row)
    cells = "".join(f"<td>{cell}</td>" for cell in others)
    return f'<tr><th scope="row">{first}</th>{cells}</tr>'


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{lead}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #24292f; --soft: #57606a; --grid: #d0d7de; --box: #f6f8fa;
  --link: #0860ca; --alarm: #9a3412; --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #b8578f; --s4: #b07800;
  --s5: #2f9bd8; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #12161c; --ink: #e6edf3; --soft: #a3aeb9; --grid: #39424d; --box: #1b2129; --link: #79b8ff;
    --alarm: #ffb27a; --s0: #4aa8f0; --s1: #ff8c42; --s2: #2bc795; --s3: #e79cc8; --s4: #f0b63a; --s5: #9fd8fb; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; padding-top: 0.6rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p, li { max-width: 46rem; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0; list-style: none; }
nav a { display: inline-block; padding: 0.35rem 0; }
.alarm { border-left: 4px solid var(--alarm); padding: 0.4rem 0.8rem 0.4rem 1.8rem; background: var(--box);
  max-width: 48rem; }
.scroll { overflow-x: auto; border: 1px solid var(--grid); border-radius: 6px; width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid);
  overflow-wrap: normal; min-width: 4.5rem; max-width: 18rem; }
td { white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--box); min-width: 6.5rem; overflow-wrap: anywhere; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--ground); min-width: 7.5rem; max-width: 12rem;
  overflow-wrap: anywhere; }
.drawings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; max-width: 34rem; }
figcaption { color: var(--soft); font-size: 0.8125rem; margin-top: 0.25rem; }
figcaption b { color: var(--ink); }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
details { margin: 1rem 0; }
summary { cursor: pointer; padding: 0.4rem 0; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; border: 0; max-width: none; }
  table { font-size: 8pt; }
  thead th, tbody th, td { position: static; min-width: 0; white-space: normal; padding: 0.2rem 0.4rem; }
  thead th { overflow-wrap: break-word; }
  figure, tr, h2, h3 { break-inside: avoid; }
  h2, h3, thead { break-after: avoid; }
  .drawings { grid-template-columns: 1fr 1fr; }
  details::details-content { content-visibility: visible; block-size: auto; display: block; }
}
"""
