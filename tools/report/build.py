"""Write the page of a comparison, one HTML file without scripts or links to other files, and its figures."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.compare.comparison import Comparison
from tools.report.sections import SECTIONS
from utils.errors import UserError
from utils.files import atomic_write
from utils.progress import progress

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(comparison: Comparison, page: Path, figures: Path | None = None) -> None:
    """Write the page, and the figures if a folder for them is given.

    Raises:
        UserError: What a run recorded is damaged, or a file cannot be written.
    """
    sections = [section(comparison) for section in progress(SECTIONS, "drawing sections", len(SECTIONS))]
    html = TEMPLATES.get_template("page.html.j2").render(comparison=comparison, sections=sections)
    try:
        atomic_write(page, html.encode(errors="replace"))
        if figures:
            drawings = [drawing for section in sections for drawing in section.drawings]
            for number, drawing in enumerate(drawings, 1):  # makes names unique
                drawing.save(figures / f"{number:02d}-{drawing.name}")
    except OSError as error:
        raise UserError(f"cannot be written: {error}") from None
