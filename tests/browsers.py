"""The browser of tests that look at a page as a user does."""

import os
import shutil
from typing import NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> tuple[str, str]:
    """Paths of Chromium and its driver. Where they are missing, the test is skipped, or fails if CI is set."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        _without("needs Chromium and its driver; on Debian: apt-get install chromium chromium-driver")
    return browser, driver


def _without(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (CI is set, so this test is not skipped)")
    pytest.skip(reason)
