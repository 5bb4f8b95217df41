"""The READMEs say what the code says."""

from pathlib import Path

import pytest

from utils.docs import READMES, key_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", READMES)
def test_the_table_of_nested_keys_is_the_configuration_s_own(name: str) -> None:
    assert key_table("Nested LoRA") in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", READMES)
def test_the_first_two_code_blocks_are_the_quickstart_and_the_tests(name: str) -> None:
    blocks = (ROOT / name).read_text(encoding="utf-8").split("```")[1::2][:2]
    assert blocks[0].rstrip().endswith("main.py --config exps/quickstart.json")
    assert blocks[1].rstrip().endswith("-m pytest")
