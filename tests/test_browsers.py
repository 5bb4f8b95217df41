"""Where Chromium is missing, browser tests are skipped, and fail if CI is set."""

from pathlib import Path

import pytest
from browsers import chromium


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of commands; at first it is empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    return tmp_path


def put(commands: Path, *names: str) -> None:
    for name in names:
        (commands / name).touch(0o755)


@pytest.mark.parametrize("there", [[], ["chromium"], ["chromedriver"]])
def test_without_both_a_browser_test_is_skipped_with_a_reason(commands: Path, there: list[str]) -> None:
    put(commands, *there)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium chromium-driver"):
        chromium()


def test_without_them_it_fails_if_ci_is_set(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium chromium-driver"):
        chromium()


@pytest.mark.parametrize("name", ["chromium", "google-chrome"])
def test_they_are_found_on_the_path(commands: Path, name: str) -> None:
    put(commands, name, "chromedriver")
    assert chromium() == (str(commands / name), str(commands / "chromedriver"))
