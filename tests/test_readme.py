"""The READMEs say what the code says."""

from pathlib import Path

import pytest

from tools.docs import READMES, TABLES, key_table
from utils.config.schema import schemas

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("part", TABLES)
@pytest.mark.parametrize("name", READMES)
def test_the_tables_of_keys_are_the_configuration_s_own(name: str, part: str) -> None:
    begin, end = (f"<!-- {part} {edge} -->\n" for edge in ("begin", "end"))
    assert begin + key_table(part) + end in (ROOT / name).read_text(encoding="utf-8")


def test_a_table_lists_every_key_of_its_group_and_says_which_change_results() -> None:
    rows = [line.split(" | ") for line in key_table("speed keys").splitlines()[2:]]
    assert [row[0].strip("|` ") for row in rows] == [k for k, schema in schemas().items() if schema["group"] == "Speed"]
    effects = {row[0].strip("|` "): row[3] for row in rows}
    assert (effects["precision"], effects["augment_on"], effects["image_cache_gib"]) == ("yes", "yes", "no")


@pytest.mark.parametrize("name", READMES)
def test_the_first_two_code_blocks_are_the_quickstart_and_the_tests(name: str) -> None:
    blocks = (ROOT / name).read_text(encoding="utf-8").split("```")[1::2][:2]
    assert blocks[0].rstrip().endswith("main.py --config exps/quickstart.json")
    assert blocks[1].rstrip().endswith("-m pytest")
