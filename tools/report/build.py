"""The page of a comparison, and its figures as files."""

from collections.abc import Sequence
from pathlib import Path

from tools.compare.comparison import Comparison
from tools.report.page import Section, render
from tools.report.sections import SECTIONS
from utils.errors import UserError
from utils.files import atomic_write


def write_report(comparison: Comparison, page: Path, figures: Path | None = None) -> None:
    """Write the page, and the figures if a folder for them is given.

    Raises:
        UserError: What a run recorded is damaged, or a file cannot be written.
    """
    sections = [section(comparison) for section in SECTIONS]
    try:
        atomic_write(page, render(*_headline(comparison), sections).encode(errors="replace"))
        if figures:
            _write_figures(sections, figures)
    except OSError as error:
        raise UserError(f"cannot be written: {error}") from None


def _headline(comparison: Comparison) -> tuple[str, str]:
    """Title and first sentence."""
    names = [group.name for group in comparison.groups]
    count = sum(len(group.runs) for group in comparison.groups)
    title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    lead = f"{count} {'run' if count == 1 else 'runs'} of {len(names)} "
    lead += "configuration." if len(names) == 1 else "configurations."
    if comparison.baseline:
        lead += f" The baseline is {comparison.baseline.name}."
    return title if len(names) <= 3 else f"{len(names)} configurations", f"{lead} Tasks are counted from 0."


def _write_figures(sections: Sequence[Section], folder: Path) -> None:
    """Numbered in the order of the page, so that no two have one name."""
    drawings = [drawing for section in sections for drawing in section.drawings]
    for number, drawing in enumerate(drawings, 1):
        drawing.save(folder, f"{number:02d}-{drawing.name}")
