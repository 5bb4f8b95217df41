"""A comparison as tables and sentences: for a terminal, in Markdown, in LaTeX."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.compare.comparison import Comparison, Group, value_text
from tools.compare.fairness import warnings
from tools.compare.measures import MEASURES, SYMBOLS, Measure
from tools.compare.paired import Difference, Spread
from tools.generated import markdown_table

FAILED = ["configuration", "seed", "ended with", "last line of its output", "whole output"]


@dataclass(frozen=True)
class Table:
    """A table with a title; header and rows have the same number of cells."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Page:
    """Tables, then lists of sentences by their heading."""

    tables: list[Table]
    lists: dict[str, list[str]]


def page(comparison: Comparison) -> Page:
    """Return the tables and sentences of a comparison."""
    legend = list(_legend(comparison)) if comparison.groups else []
    lists = {"Legend": legend, "Warnings": warnings(comparison)}  # what comes last is seen first
    return Page(list(_tables(comparison)), {title: lines for title, lines in lists.items() if lines})


def _tables(comparison: Comparison) -> Iterator[Table]:
    if comparison.failed:
        yield Table("Failed runs", FAILED, list(comparison.failed))
    if comparison.groups:
        yield from _tables_of_groups(comparison)


def _tables_of_groups(comparison: Comparison) -> Iterator[Table]:
    groups, others, baseline = comparison.groups, comparison.others, comparison.baseline
    names = [group.name for group in groups]
    yield Table("Runs", ["configuration", "seeds"], [[group.name, ", ".join(group.seeds)] for group in groups])
    if len(names) > 1:
        rows = [[key, *(value_text(value, "-") for value in values)] for key, values in comparison.differing.items()]
        title = "What differs in the configurations" if rows else "The configurations differ in no key that both have"
        yield Table(title, ["key", *names], rows)
    rows = [[m.title, *(_spread_cell(group.spread(m), m) for group in groups)] for m in MEASURES]
    yield Table("Mean ± standard deviation over seeds; accuracies in per cent", ["measure", *names], rows)
    if baseline and others:
        rows = [[m.title, *(_compared_cell(group, baseline, m) for group in others)] for m in MEASURES]
        title = f"Difference to {baseline.name} on equal seeds: mean [95 % interval], p; accuracies in points"
        yield Table(title, ["measure", *(group.name for group in others)], rows)


def _legend(comparison: Comparison) -> Iterator[str]:
    yield SYMBOLS
    yield from (f"{measure.title}: {measure.meaning}" for measure in MEASURES)
    yield "±: sample standard deviation (n - 1) over seeds; -: not known, or not defined"
    if comparison.others:
        yield (
            "interval and p: paired differences on equal seeds, Student's t (two-sided paired t test); p is not "
            "corrected for the number of comparisons"
        )
    if comparison.one_sided:
        yield f"known only of logs, or only of run directories: {', '.join(comparison.one_sided)}"


# ---- cells


def _number(value: float, measure: Measure, sign: str = "") -> str:
    if math.isnan(value):
        return "-"
    match measure.unit:
        case "%":
            return f"{100 * value:{sign}.2f}"
        case "count" if value.is_integer():
            return f"{value:{sign}.0f}"
        case _:
            return f"{value:{sign}.1f}"


def _spread_cell(spread: Spread, measure: Measure) -> str:
    mean = _number(spread.mean, measure)
    exact = math.isnan(spread.std) or (measure.unit == "count" and spread.std == 0)
    return mean if exact else f"{mean} ± {_number(spread.std, measure)}"


def _compared_cell(group: Group, baseline: Group, measure: Measure) -> str:
    if measure.unit == "s":
        ratio = group.ratio(baseline, measure)
        return "-" if math.isnan(ratio) else f"{ratio:.2f} times"
    return _difference_cell(group.minus(baseline, measure), measure)


def _difference_cell(difference: Difference, measure: Measure) -> str:
    mean = _number(difference.mean, measure, "+")
    if math.isnan(difference.low) or difference.low == difference.high:
        return mean
    low, high = (_number(bound, measure, "+") for bound in (difference.low, difference.high))
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    return f"{mean} [{low}, {high}], {p}"


# ---- formats


def terminal(comparison: Comparison) -> str:
    """Return plain text with aligned columns."""
    whole = page(comparison)
    parts = ["\n".join([table.title, *_aligned(table)]) for table in whole.tables]
    parts += ["\n".join([title, *(f"- {line}" for line in lines)]) for title, lines in whole.lists.items()]
    return "\n\n".join(parts) + "\n"


def _aligned(table: Table) -> list[str]:
    rows = [table.header, *table.rows] if table.rows else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [f"  {line}" for line in lines]


def markdown(comparison: Comparison) -> str:
    """Return GitHub's Markdown, with lists under bold headings."""
    return markdown_page(page(comparison))


def markdown_page(whole: Page) -> str:
    """Return Markdown of selected tables and lists."""
    parts = []
    for table in whole.tables:
        header, *rows = ([_markdown(cell) for cell in row] for row in (table.header, *table.rows))
        parts.append(f"**{_markdown(table.title)}**\n" + (f"\n{markdown_table(header, rows)}" if rows else ""))
    for title, lines in whole.lists.items():
        parts.append(f"**{title}**\n\n" + "".join(f"- {_markdown(line)}\n" for line in lines))
    return "\n".join(parts)


def _markdown(text: str) -> str:
    return re.sub(r"([\\|`*_<\[\]])", r"\\\1", text)


LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "[": "{[}",  # after \\ it would begin an option
    "]": "{]}",
    "<": r"$<$",
    ">": r"$>$",
    "−": "$-$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    '"': r"\textquotedbl{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(comparison: Comparison) -> str:
    """Return a tabular for each table and everything else as comments, so that LaTeX can include the file."""
    whole = page(comparison)
    lines = [r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}"]
    for table in whole.tables:
        lines += ["", *_comment(table.title), *(_tabular(table) if table.rows else [])]
    for title, sentences in whole.lists.items():
        lines += ["", *_comment(title), *(comment for line in sentences for comment in _comment(f"- {line}"))]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"% {line}" for line in text.splitlines()]


def _tabular(table: Table) -> list[str]:
    header, *rows = (" & ".join(map(_latex, row)) + r" \\" for row in (table.header, *table.rows))
    begin = rf"\begin{{tabular}}{{{'l' * len(table.header)}}}"
    return [begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]


def _latex(text: str) -> str:
    with_minus = re.sub(r"(?<![\w.)-])-(?=\d)", "−", text)  # not the hyphen of a name
    return "".join(LATEX.get(character, character) for character in with_minus)


READABLE: dict[str, Callable[[Comparison], str]] = {"terminal": terminal, "markdown": markdown, "latex": latex}
