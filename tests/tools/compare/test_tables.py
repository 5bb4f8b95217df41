import math
import re

import pytest
from finished_runs import write_run
from hypothesis import given
from hypothesis import strategies as st

from tools.compare.comparison import compare
from tools.compare.conclusions import Conclusion
from tools.compare.measures import MEASURES
from tools.compare.paired import Difference, Spread
from tools.compare.tables import (
    LATEX,
    Table,
    _difference_cell,
    _latex,
    _markdown,
    _spread_cell,
    laid_out,
    latex,
    markdown,
    page,
    terminal,
)
from tools.generated import read_tables

BY_KEY = {measure.key: measure for measure in MEASURES}
ACCURACY, FORGOTTEN, COUNT, TIME = (BY_KEY[key] for key in ("last_acc", "forgetting", "parameters", "seconds"))


@pytest.fixture
def comparison(tmp_path):
    def runs(label: str, gains: list[int], **options) -> list:
        return [
            write_run(tmp_path, label, seed, [[90], [80, 60 + gain]], **options)
            for seed, gain in enumerate(gains, start=1)
        ]

    paths = runs("b_ours", [12, 14, 16], backbone_checkpoint="a|b_[x]{50%}~$1$&#^\\.pth") + runs("a_base", [10, 10, 10])
    return compare(paths, "a_base")


@pytest.mark.parametrize(
    ("spread", "measure", "cell"),
    [
        (Spread(0.87654, 0.0123, 3), ACCURACY, "87.65 ± 1.23"),
        (Spread(0.5, math.nan, 1), ACCURACY, "50.00"),
        (Spread(-0.01, 0.0, 3), ACCURACY, "-1.00 ± 0.00"),
        (Spread(25360.0, 0.0, 3), COUNT, "25360"),
        (Spread(25360.5, 0.5, 2), COUNT, "25360.5 ± 0.5"),
        (Spread(12.34, 1.0, 2), TIME, "12.3 ± 1.0"),
        (Spread(math.nan, math.nan, 2), TIME, "-"),
    ],
)
def test_mean_and_deviation_in_a_cell(spread, measure, cell):
    assert _spread_cell(spread, measure) == cell


@pytest.mark.parametrize(
    ("difference", "measure", "corrected", "cell"),
    [
        (Difference(0.012, 0.005, 0.019, 0.0164, 3), ACCURACY, 0.03, "+1.20 [+0.50, +1.90], p = 0.016 (0.030), better"),
        (Difference(-0.02, -0.03, -0.01, 1e-5, 3), ACCURACY, 1e-4, "-2.00 [-3.00, -1.00], p < 0.001 (< 0.001), worse"),
        (Difference(-0.02, -0.03, -0.01, 1e-5, 3), FORGOTTEN, 0.04, "-2.00 [-3.00, -1.00], p < 0.001 (0.040), better"),
        (Difference(0.01, -0.01, 0.03, 0.2, 3), ACCURACY, 1.0, "+1.00 [-1.00, +3.00], p = 0.200 (1.000), cannot tell"),
        (Difference(0.0, 0.0, 0.0, math.nan, 3), ACCURACY, math.nan, "+0.00, the same on every seed"),
        (Difference(0.01, 0.01, 0.01, math.nan, 3), ACCURACY, math.nan, "+1.00, cannot tell"),
        (Difference(-768.0, -768.0, -768.0, math.nan, 3), COUNT, math.nan, "-768"),
        (Difference(2.0, 1.0, 3.0, 0.001, 3), TIME, math.nan, "+2.0 [+1.0, +3.0]"),
        (Difference(0.1, math.nan, math.nan, math.nan, 1), ACCURACY, math.nan, "+10.00"),
        (Difference(math.nan, math.nan, math.nan, math.nan, 0), ACCURACY, math.nan, "-"),
    ],
)
def test_a_difference_in_a_cell(difference, measure, corrected, cell):
    assert _difference_cell(Conclusion(measure, difference, corrected)) == cell


def test_the_terminal_has_all_tables_with_aligned_columns(comparison):
    text = terminal(comparison)
    assert re.search(r"^  b_ours +1, 2, 3$", text, re.MULTILINE)
    assert re.search(r"^  backbone_checkpoint +a\|b_.*pth +null$", text, re.MULTILINE)
    assert re.search(r"^  last accuracy +77\.00 ± 1\.00 +75\.00 ± 0\.00$", text, re.MULTILINE)
    assert re.search(
        r"^  last accuracy +\+2\.00 \[-0\.48, \+4\.48\], p = 0\.074 \(0\.223\), cannot tell$", text, re.MULTILINE
    )
    header, *rows = text.split("Mean ±")[1].split("\n\n")[0].splitlines()[1:]
    assert {row.rfind("  ", 0, header.index("a_base") + 2) + 2 for row in rows} == {header.index("a_base")}
    assert "Warnings" not in text
    assert text.startswith(
        "What can be concluded: differences to a_base\n- b_ours: cannot tell whether it really differs"
    )
    assert all(f"- {measure.title}: {measure.meaning}" in text for measure in MEASURES if not measure.rare)
    assert not any(measure.title in text for measure in MEASURES if measure.rare)  # no run has them


def test_one_configuration_needs_no_table_of_differences(comparison, tmp_path):
    text = terminal(compare([write_run(tmp_path, "x", 1, [[90]])]))
    assert "What differs" not in text
    assert "paired" not in text
    assert "Warnings\n- x: only one seed" in text


def test_configurations_that_differ_in_nothing_known_to_both_say_so(tmp_path):
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    for log in logs:
        log.write_text("CNN top1 curve: [90.0, 80.0]\n")
    assert "What differs" in terminal(compare(logs))  # each is known by its file only
    run = write_run(tmp_path, "x", 1, [[90]])
    assert "The configurations differ in no key that both have" in terminal(compare([run, logs[0]]))


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_markdown_tables_have_as_many_cells_in_every_row(comparison):
    blocks = re.findall(r"(?:^\|.*\n)+", markdown(comparison), re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        lines = block.splitlines()
        assert len({len(cells(line)) for line in lines}) == 1
        assert set(cells(lines[1])) == {" --- "}
    assert "a\\|b\\_" in blocks[1]


def test_latex_is_balanced_and_escaped(comparison):
    text = latex(comparison)
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert code.count(r"\begin{tabular}") == code.count(r"\end{tabular}") == 4
    depth = 0
    for character in re.sub(r"\\[\\{}$&%#_]", "", code):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert re.sub(r"\\.", "", code).count("$") % 2 == 0
    for table in re.findall(r"\\begin\{tabular\}\{(l+)\}(.*?)\\end\{tabular\}", code, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(table[0])}
    assert r"77.00 $\pm$ 1.00" in code
    assert r"+2.00 {[}$-$0.48, +4.48{]}, p = 0.074 (0.223), cannot tell" in code


@given(st.text())
def test_latex_leaves_no_character_that_means_something(text):
    plain = _latex(text)
    for escape in sorted(LATEX.values(), key=len, reverse=True):
        plain = plain.replace(escape, "")
    assert not set(plain) & set("\\&%$#_{}~^")


@given(st.text(alphabet="ab|\\*_`<[]"))
def test_markdown_can_be_read_back(text):
    assert re.sub(r"\\(.)", r"\1", _markdown(text)) == text
    assert "|" not in re.sub(r"\\.", "", _markdown(text))


def test_a_hyphen_in_a_name_is_no_minus():
    assert _latex("run-1 -1.5 [-2]") == "run-1 $-$1.5 {[}$-$2{]}"


def test_what_can_be_concluded_comes_before_the_tables_in_every_format(comparison):
    title, line = "What can be concluded: differences to a_base", "b_ours: cannot tell whether it really differs"
    assert terminal(comparison).startswith(f"{title}\n- {line}")
    assert markdown(comparison).startswith(f"**{_markdown(title)}**\n\n- {_markdown(line)}")
    text = latex(comparison)
    assert f"% {title}\n% - {line}" in text
    assert text.index(title) < text.index(r"\begin{tabular}")


def test_the_legend_names_the_correction_and_says_what_the_words_mean(comparison):
    legend = terminal(comparison).split("\nLegend\n")[1]
    assert "p corrected for the number of comparisons by Holm's method (Holm 1979)" in legend
    assert "it is for a single comparison, and not corrected" in legend
    assert "lower forgetting is better" in legend
    assert "80 % power at the corrected level" in legend


def test_the_mean_over_seeds_says_that_they_share_one_class_order(tmp_path):
    def title(**options) -> str:
        paths = [write_run(tmp_path / str(len(options)), "a", seed, [[90 + seed]], **options) for seed in (1, 2)]
        return re.search("Mean .*", terminal(compare(paths)))[0]

    assert title() == "Mean ± standard deviation over seeds; accuracies in per cent"
    assert title(shuffle=False) == (
        "Mean ± standard deviation over seeds, all with one class order; accuracies in per cent"
    )


@pytest.mark.parametrize(("count", "turned"), [(5, False), (6, True)])
def test_of_many_configurations_each_has_a_row(count, turned):
    rows = [[f"m{number}", *(f"{number}.{column}" for column in range(count))] for number in range(7)]
    table = Table("t", ["measure", *(f"c{column}" for column in range(count))], rows, by_configuration=True)
    shown = list(laid_out([table]))
    if not turned:
        assert shown == [table]
        return
    assert [part.title for part in shown] == ["t (1 of 2)", "t (2 of 2)"]
    assert [part.header[1:] for part in shown] == [["m0", "m1", "m2"], ["m3", "m4", "m5", "m6"]]
    assert shown[0].rows == [[f"c{c}", f"0.{c}", f"1.{c}", f"2.{c}"] for c in range(count)]


def test_every_cell_of_a_comparison_of_many_is_in_the_turned_tables(tmp_path):
    paths = [
        write_run(tmp_path, f"c{number}", seed, [[90], [80, 60 + number + number * seed]], func_epoch=number)
        for number in range(1, 8)
        for seed in (1, 2)
    ]
    found = compare(paths, "c1")
    whole = next(table for table in page(found).tables if table.title.startswith("Difference to c1"))
    cells = {(name, row[0]): cell for row in whole.rows for name, cell in zip(whole.header[1:], row[1:], strict=True)}
    turned = [table for table in read_tables(markdown(found)) if table[0][0] == "configuration" and len(table) == 7]
    plain = str.maketrans("", "", "\\")
    read = {
        (row[0], of): cell.translate(plain)
        for header, *rows in turned
        for row in rows
        for of, cell in zip(header[1:], row[1:], strict=True)
    }
    assert read == cells
    assert len(cells) > 50
    assert "| measure |" not in markdown(found)
    assert latex(found).count(r"\begin{tabular}{llllll}") >= 2
