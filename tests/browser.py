"""Chromium for tests of pages: found on this machine, and driven by playwright without its own download."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The browser's program: `CHROMIUM` of the environment, else the first of the usual names."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_browser() -> Iterator[Any]:
    """A playwright browser; skips the test if playwright or Chromium is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    program = find_chromium()
    if program is None:
        pytest.skip(f"needs Chromium: {', '.join(NAMES)}, or CHROMIUM=<path>")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])  # containers have no user namespaces
        try:
            yield browser
        finally:
            browser.close()
