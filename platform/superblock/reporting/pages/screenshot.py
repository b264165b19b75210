"""Pictures of pages, for the README and for whoever looks after their appearance.

    python -m superblock.reporting.pages.screenshot reports/example/index.html report.png
    python -m superblock.reporting.pages.screenshot reports/example/index.html phone.png 390 844 dark

Width and height in pixels (1280 x 1600), `light` or `dark`; height 0 takes the whole page. A `.pdf` is printed. It needs an
installed Chromium, and playwright to drive it.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

Theme = Literal["light", "dark"]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Path of a Chromium: `CHROMIUM` if it is set, else the first of `BROWSERS` on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def screenshot(
    page: Path | str, picture: Path, *, width: int = 1280, height: int = 1600, theme: Theme = "light"
) -> None:
    """Opens a page in Chromium and writes what it shows into a .png, or what it prints into a .pdf.

    Args:
        page: an HTML file, or an http address.
        height: of the window, pixels; 0 takes the whole page.

    Raises:
        ValueError: if Chromium or playwright is missing, or the picture is of another kind; says what to do.
    """
    if picture.suffix not in (".png", ".pdf"):
        raise ValueError(f"{picture.name}: a picture of a page is a .png or a .pdf file")
    address = str(page)
    if not address.startswith(("http://", "https://")):
        if not Path(page).is_file():
            raise ValueError(f"{page}: there is no such page")
        address = Path(page).resolve().as_uri()
    playwright = load_playwright()
    if (browser := find_browser()) is None:
        raise ValueError(f"no Chromium found: install one of {', '.join(BROWSERS)}, or name its file in CHROMIUM")
    with playwright() as engine:
        opened = engine.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            tab = opened.new_page(
                viewport={"width": width, "height": height or 900},
                color_scheme=theme,
                device_scale_factor=2 if width < 700 else 1,
            )
            tab.goto(address, wait_until="load")
            if picture.suffix == ".pdf":
                tab.pdf(path=str(picture), format="A4", print_background=False)
            else:
                tab.screenshot(path=str(picture), full_page=height == 0)
        finally:
            opened.close()


def load_playwright() -> Any:
    """What starts playwright; imported here, because only developers have it.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise ValueError("playwright is missing: python -m pip install playwright (the extra `dev` has it)") from error
    return sync_playwright


def main(words: list[str]) -> int:
    """The command: page, picture, and what differs from 1280 x 1600 in light."""
    sizes = [int(word) for word in words[2:] if word.isdecimal()]
    themes: list[Theme] = [theme for theme in ("light", "dark") if theme in words[2:]]
    if len(words) < 2 or len(sizes) + len(themes) != len(words) - 2 or len(sizes) > 2 or len(themes) > 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        screenshot(
            words[0], Path(words[1]), width=sizes[0] if sizes else 1280, height=sizes[1] if len(sizes) > 1 else 1600,
            theme=themes[0] if themes else "light",
        )  # fmt: skip
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
