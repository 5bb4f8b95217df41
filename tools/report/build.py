"""Write the page of a comparison, one HTML file that loads nothing, and its figures.

The page's only script is ours; its hash is in the page's security policy, so that no text of a run can act as one.
"""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.compare.comparison import Comparison
from tools.plots.drawing import INK, VARIABLES
from tools.report.sections import SECTIONS
from utils.errors import UserError
from utils.files import atomic_write
from utils.progress import progress

SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
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
    html = TEMPLATES.get_template("page.html.j2").render(
        comparison=comparison,
        sections=sections,
        script=SCRIPT,
        script_hash=b64encode(sha256(SCRIPT.encode()).digest()).decode(),
        light={**{name.removeprefix("var(").rstrip(")"): colour for colour, name in VARIABLES.items()}, "ink": INK},
    )
    try:
        atomic_write(page, html.encode(errors="replace"))
        if figures:
            drawings = [drawing for section in sections for drawing in section.drawings]
            for number, drawing in enumerate(drawings, 1):  # makes names unique
                drawing.save(figures / f"{number:02d}-{drawing.name}")
    except OSError as error:
        raise UserError(f"cannot be written: {error}") from None
