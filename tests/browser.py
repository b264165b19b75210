"""Chromium for tests of pages: what is installed here, driven by playwright, and what a page said while it was opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from superblock.reporting.pages.screenshot import BROWSERS, find_browser


@dataclass
class Seen:
    """An opened page."""

    tab: Any
    messages: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and exceptions that nobody caught."""
    requests: list[str] = field(default_factory=list)
    """Addresses that were asked for beside the page itself."""


@contextmanager
def browser() -> Iterator[Any]:
    """A started browser; the test is skipped where playwright or Chromium is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if (program := find_browser()) is None:
        pytest.skip(f"needs Chromium: one of {', '.join(BROWSERS)}, or its file in CHROMIUM")
    with api.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


def visit(opened: Any, page: Path | str, *, width: int = 1280, height: int = 900, theme: str = "light") -> Seen:
    """Opens a file or an address in a tab with a storage of its own."""
    address = page.resolve().as_uri() if isinstance(page, Path) else page
    tab = opened.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    seen = Seen(tab)
    tab.on("console", lambda said: said.type in ("error", "warning") and seen.messages.append(said.text))
    tab.on("pageerror", lambda error: seen.messages.append(str(error)))
    tab.on("request", lambda asked: asked.url != address and seen.requests.append(asked.url))
    tab.goto(address, wait_until="load")
    return seen
