"""The documents say what the code says: generated parts are fresh, and what they name exists."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from tools import docs
from tools.docs import PACKAGES, PARTS
from tools.generated import read_part
from utils.config.schema import schemas

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.ja.md")
DOCUMENTS = [ROOT / name for name in (*READMES, "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
OWN = (*PACKAGES, "main", "trainer", "eval")

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize(("file", "part", "content"), PARTS)
def test_the_generated_parts_are_fresh(file, part, content) -> None:
    assert read_part(ROOT / file, part) == content(ROOT).rstrip() + "\n", "run python -m tools.docs"


def test_the_command_writes_every_part_and_the_drawing(tmp_path: Path) -> None:
    for name in READMES:
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", *PACKAGES):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in ("main.py", "trainer.py", "eval.py"):
        shutil.copy(ROOT / path, tmp_path)
    for file, part, _ in PARTS:
        docs.replace_part(tmp_path / file, part, "stale")
    (tmp_path / docs.DRAWING).unlink()
    docs.write(tmp_path)
    for file in {file for file, _, _ in PARTS} | {docs.DRAWING}:
        assert (tmp_path / file).read_bytes() == (ROOT / file).read_bytes(), "run python -m tools.docs"


def test_every_key_has_one_line_that_says_whether_it_changes_results() -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs/keys.md").read_text().splitlines() if line.startswith("| `")]
    effects = {row[0].strip("|` "): row[3] for row in rows}
    assert len(rows) == len(effects)
    assert effects.keys() == schemas().keys()
    assert (effects["precision"], effects["augment_on"], effects["image_cache_gib"]) == ("yes", "yes", "no")


def test_the_results_in_the_readme_are_numbers_of_the_sweep() -> None:
    shown = read_part(ROOT / "README.md", "results")
    measured = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    numbers = re.findall(r"[-+]?\d+\.?\d* ± \d+\.?\d*|[-+]?\d+\.?\d* \\\[.*?\\\]", shown)
    assert len(numbers) == 3 * len(docs.RESULTS) + 2 * len(docs.COMPARED)
    assert all(number in measured for number in numbers)


def test_every_configuration_has_a_row_with_its_differences(tmp_path: Path) -> None:
    means = "\n".join(f"| {row} | {n} ± 1 | 2{n} ± 1 | 4{n} ± 1 |" for n, row in enumerate(docs.RESULTS))
    gaps = "\n".join(f"| {row} | +{n} \\[0, 2\\], p = 0.1 | +3{n} \\[2, 4\\] |" for n, row in enumerate(docs.RESULTS))
    tables = f"| measure | flat | equal | two |\n{means}\n\n| measure | equal | two |\n{gaps}\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/sweeps.md").write_text(f"<!-- matched begin -->\n{tables}<!-- matched end -->\n")
    header, _, *rows = docs.results(tmp_path).splitlines()
    assert header.endswith(" | last accuracy: difference | average incremental accuracy: difference |")
    assert rows == [
        "| flat | 0 ± 1 | 1 ± 1 | 2 ± 1 |  |  |",
        "| equal | 20 ± 1 | 21 ± 1 | 22 ± 1 | +0 \\[0, 2\\] | +1 \\[0, 2\\] |",
        "| two | 40 ± 1 | 41 ± 1 | 42 ± 1 | +30 \\[2, 4\\] | +31 \\[2, 4\\] |",
    ]


def test_the_code_map_lists_every_module_with_code() -> None:
    listed = re.findall(r"\]\(\.\./([\w/]+\.py)\) \|", read_part(ROOT / "docs/code-map.md", "modules"))
    modules = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py") if path.read_text(encoding="utf-8")]
    modules += ROOT.glob("*.py")
    assert sorted(listed) == sorted(path.relative_to(ROOT).as_posix() for path in modules)


@pytest.mark.parametrize("name", READMES)
def test_the_first_two_code_blocks_are_the_quickstart_and_the_tests(name: str) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks[:2] == [("bash", "bash script/quickstart\n"), ("bash", "bash script/test\n")]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


def test_both_readmes_have_the_same_commands_and_lead_to_the_same_pages() -> None:
    def parts(name: str) -> tuple[list[str], set[str]]:
        text = (ROOT / name).read_text(encoding="utf-8")
        return re.findall(r"^    .*", text, re.MULTILINE), set(links(text)) - set(READMES)

    assert parts("README.md") == parts("README.ja.md")


@each_document
def test_every_link_leads_to_a_file(path: Path) -> None:
    targets = [link for link in links(path.read_text(encoding="utf-8")) if "://" not in link]
    assert [target for target in targets if not (path.parent / target).is_file()] == []


@each_document
def test_every_module_that_is_to_be_run_exists(path: Path) -> None:
    named = set(re.findall(r"python -m ([\w.]*\w)", path.read_text(encoding="utf-8")))
    assert [name for name in named if not is_runnable(name)] == []


@each_document
def test_every_file_of_the_project_that_is_named_exists(path: Path) -> None:
    folders = "|".join((*PACKAGES, "tests", "exps", "docs", "assets"))
    named = set(re.findall(rf"(?<![\w/-])(?:{folders})/[\w/.*-]*[\w/*]", path.read_text(encoding="utf-8")))
    assert [name for name in named if not any(ROOT.glob(name))] == []


def test_the_index_lists_every_page() -> None:
    listed = set(links((ROOT / "docs/README.md").read_text(encoding="utf-8")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def links(text: str) -> list[str]:
    """Targets of a text's links and pictures, without what follows `#`."""
    return re.findall(r"\]\(([^)#\s]+)", text)


def is_runnable(name: str) -> bool:
    """Whether `python -m NAME` finds a module to run."""
    if name.split(".")[0] not in OWN:
        return importlib.util.find_spec(name.split(".")[0]) is not None
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
