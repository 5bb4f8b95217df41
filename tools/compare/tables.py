"""A comparison as tables and sentences: for a terminal, in Markdown, in LaTeX."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tools.compare.comparison import Comparison, Family, Group, value_text
from tools.compare.conclusions import LEGEND, Conclusion, Conclusions, class_order, conclude, one_class_order
from tools.compare.effect import TITLE, effect_of_adapters
from tools.compare.fairness import warnings
from tools.compare.measures import MEASURES, SYMBOLS, Measure
from tools.compare.paired import Spread, p_text
from tools.compare.streams import NOTE, order_tables, transient_tables
from tools.generated import markdown_table

ON_ORDERS = "equal class orders and seeds: mean over orders, each the mean of its seeds"
CHOSEN = "How the values were chosen"
TRIED = "Values that were tried: accuracy on validation images, per cent"
SEARCHED = ["configuration", "values", "rung", "by seed", "mean", "what followed"]
FAILED = ["configuration", "seed", "ended with", "last line of its output", "whole output"]


@dataclass(frozen=True)
class Table:
    """A table with a title; header and rows have the same number of cells."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Page:
    """Lists of sentences by their heading, before the tables and after them."""

    tables: list[Table]
    lists: dict[str, list[str]]
    opening: dict[str, list[str]] = field(default_factory=dict)


def page(comparison: Comparison) -> Page:
    """Return the tables and sentences of a comparison."""
    found = conclude(comparison)
    legend = list(_legend(comparison)) if comparison.groups else []
    lists = {"Legend": legend, "Warnings": warnings(comparison)}  # what comes last is seen first
    opening = {CHOSEN: list(comparison.chosen), TITLE: effect_of_adapters(comparison), found.title: found.sentences}
    both = ({title: lines for title, lines in part.items() if lines} for part in (lists, opening))
    return Page(list(_tables(comparison, found)), *both)


def _tables(comparison: Comparison, found: Conclusions) -> Iterator[Table]:
    if comparison.failed:
        yield Table("Failed runs", FAILED, list(comparison.failed))
    if comparison.searched:
        yield Table(TRIED, SEARCHED, list(comparison.searched))
    if comparison.groups:
        yield from _tables_of_groups(comparison, found)


def _tables_of_groups(comparison: Comparison, found: Conclusions) -> Iterator[Table]:
    groups = comparison.groups
    names = [group.name for group in groups]
    yield Table("Runs", ["configuration", "seeds"], [[group.name, ", ".join(group.seeds)] for group in groups])
    if len(names) > 1:
        rows = [[key, *(value_text(value, "-") for value in values)] for key, values in comparison.differing.items()]
        title = "What differs in the configurations" if rows else "The configurations differ in no key that both have"
        yield Table(title, ["key", *names], rows)
    shown = _shown(comparison)
    rows = [[m.title, *(_spread_cell(group.spread(m), m) for group in groups)] for m in shown]
    several = any(len(group.runs) > 1 for group in groups)
    seeds = "seeds, all with one class order" if one_class_order(groups) else "seeds"
    title = f"Mean ± standard deviation over {seeds}" if several else "Measures of one seed"
    yield Table(f"{title}; accuracies in per cent", ["measure", *names], rows)
    for kind, which in (
        (Group, "equal seeds: mean [95 % interval]"),
        (Family, f"{ON_ORDERS} [95 % interval over orders]"),
    ):
        pairs = [pair for pair in comparison.compared if type(pair[0]) is kind]
        if pairs:
            columns = [[_compared_cell(one, *pair) for one in found.of(pair[0])] for pair in pairs]
            rows = [[m.title, *cells] for m, *cells in zip(MEASURES, *columns, strict=True) if m in shown]
            title = f"Difference to {pairs[0][1].name} on {which}, p (corrected p), what follows; accuracies in points"
            yield Table(title, ["measure", *(group.name for group, _ in pairs)], rows)
    yield from (Table(*found) for found in (*transient_tables(groups), *order_tables(comparison.families)))


def _shown(comparison: Comparison) -> list[Measure]:
    """Return the measures of a table, without rare ones that no run has."""
    runs = [run for _, run in comparison.runs]
    return [m for m in MEASURES if not m.rare or any(not math.isnan(m.of(run)) for run in runs)]


def _legend(comparison: Comparison) -> Iterator[str]:
    yield SYMBOLS
    yield from (f"{measure.title}: {measure.meaning}" for measure in _shown(comparison))
    yield "±: sample standard deviation (n - 1) over seeds; -: not known, or not defined"
    yield from class_order(comparison.groups)
    if any(group.runs[0].matrix.transient for group in comparison.groups):
        yield NOTE
    if comparison.others:
        yield from LEGEND
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


def _compared_cell(one: Conclusion, group: Group, baseline: Group) -> str:
    if one.measure.unit == "s":
        ratio = group.ratio(baseline, one.measure)
        return "-" if math.isnan(ratio) else f"{ratio:.2f} times"
    return _difference_cell(one)


def _difference_cell(one: Conclusion) -> str:
    difference, measure = one.difference, one.measure
    mean = _number(difference.mean, measure, "+")
    if math.isnan(difference.low):
        return mean
    verdict = f", {one.verdict}" if one.verdict else ""
    if difference.constant:
        return f"{mean}{verdict}"
    low, high = (_number(bound, measure, "+") for bound in (difference.low, difference.high))
    p = f", p {p_text(difference.p)} ({p_text(one.corrected).removeprefix('= ')})" if one.verdict else ""
    return f"{mean} [{low}, {high}]{p}{verdict}"


# ---- formats


def terminal(comparison: Comparison) -> str:
    """Return plain text with aligned columns."""
    whole = page(comparison)
    opening, lists = (
        ["\n".join([title, *(f"- {line}" for line in lines)]) for title, lines in part.items()]
        for part in (whole.opening, whole.lists)
    )
    tables = ["\n".join([table.title, *_aligned(table)]) for table in whole.tables]
    return "\n\n".join([*opening, *tables, *lists]) + "\n"


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
    opening, lists = (
        [f"**{_markdown(title)}**\n\n" + "".join(f"- {_markdown(line)}\n" for line in lines) for title, lines in part]
        for part in (whole.opening.items(), whole.lists.items())
    )
    tables = []
    for table in whole.tables:
        header, *rows = ([_markdown(cell) for cell in row] for row in (table.header, *table.rows))
        tables.append(f"**{_markdown(table.title)}**\n" + (f"\n{markdown_table(header, rows)}" if rows else ""))
    return "\n".join([*opening, *tables, *lists])


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
    lines += _remarks(whole.opening)
    for table in whole.tables:
        lines += ["", *_comment(table.title), *(_tabular(table) if table.rows else [])]
    return "\n".join([*lines, *_remarks(whole.lists)]) + "\n"


def _remarks(lists: dict[str, list[str]]) -> Iterator[str]:
    for title, sentences in lists.items():
        yield from ("", *_comment(title), *(comment for line in sentences for comment in _comment(f"- {line}")))


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
