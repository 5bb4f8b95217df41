"""The parts of documents that commands write."""

from pathlib import Path

import pytest

from tools.generated import markdown_table, read_part, read_tables, replace_part


def test_only_the_named_part_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x begin -->\nold\n<!-- x end -->\nb\n<!-- y begin -->\nkept\n<!-- y end -->\n")
    replace_part(page, "x", r"new \1 text" + "\n\n")
    assert page.read_text() == (
        "a\n<!-- x begin -->\nnew \\1 text\n<!-- x end -->\nb\n<!-- y begin -->\nkept\n<!-- y end -->\n"
    )


@pytest.mark.parametrize("content", ["no markers", "<!-- x begin -->\n", 2 * "<!-- x begin -->\n<!-- x end -->\n"])
def test_missing_or_doubled_markers_are_refused(tmp_path: Path, content: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(content)
    with pytest.raises(ValueError, match="x begin"):
        replace_part(page, "x", "new")
    with pytest.raises(ValueError, match="x begin"):
        read_part(page, "x")
    assert page.read_text() == content


def test_a_table_has_a_line_for_the_header_the_rule_and_each_row() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_a_part_is_read_as_it_stands_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x begin -->\none\ntwo\n<!-- x end -->\nb\n")
    assert read_part(page, "x") == "one\ntwo\n"


def test_tables_are_read_without_their_rules() -> None:
    text = "**A**\n\n| a | b |\n| --- | --- |\n| 1 |  |\n\nwords\n\n| c |\n| --- |\n| x y |\n"
    assert read_tables(text) == [[["a", "b"], ["1", ""]], [["c"], ["x y"]]]
