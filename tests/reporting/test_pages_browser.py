"""The pages as a browser shows them: nothing breaks, nothing is fetched, all can be read on a phone, and in print."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import example_report
import pytest

from superblock.reporting.files import write_report
from superblock.reporting.pages import render, render_index

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import browser, visit

pytestmark = pytest.mark.slow
CONTRASTS = """
() => { const luminance = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; }, found = new Set();
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data]; };
        for (const one of document.querySelectorAll('main *, nav *')) {
          if (![...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
          const style = getComputedStyle(one), drawn = one.closest('svg');
          let ground = one; while (ground && rgb(getComputedStyle(ground).backgroundColor)[3] < 255) ground = ground.parentElement;
          const [a, b] = [drawn ? style.fill : style.color, getComputedStyle(ground || document.body).backgroundColor]
            .map(colour => luminance('rgb(' + rgb(colour).slice(0, 3).join() + ')'));
          const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          if (contrast < 4.5) found.add(one.tagName + '.' + one.getAttribute('class') + ' ' + one.textContent.trim().slice(0, 30) + ' ' + contrast.toFixed(2));
        } return [...found]; }
"""
"""Texts with less than 4.5 to 1 against the ground they stand on; a canvas turns any colour into red, green and blue."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    for make in example_report.VARIANTS.values():
        report = make()
        render(report, folder / report.name)
        write_report(report, folder / report.name)
    render_index(folder)
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("variant", [*example_report.VARIANTS, "index"])
def test_fits_a_phone_and_a_desk_without_an_error_or_a_request(
    shelf: Path, chromium: Any, variant: str, theme: str
) -> None:
    name = "" if variant == "index" else example_report.VARIANTS[variant]().name
    for width in (390, 1280):
        seen = visit(chromium, shelf / name / "index.html", width=width, theme=theme)
        seen.tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert seen.tab.evaluate("document.scrollingElement.scrollWidth") <= width
        assert (seen.messages, seen.requests) == ([], [])
        seen.tab.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_contrast(shelf: Path, chromium: Any, theme: str) -> None:
    """4.5 to 1 for all texts of the page, pictures included, against the ground they stand on."""
    seen = visit(chromium, shelf / example_report.full().name / "index.html", width=1280, theme=theme)
    seen.tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    low = seen.tab.evaluate(CONTRASTS)
    assert low == []


def test_tables_sort_by_keyboard(shelf: Path, chromium: Any) -> None:
    seen = visit(chromium, shelf / example_report.full().name / "index.html", width=1280)
    column = "[...document.querySelectorAll('#efficiency tbody tr')].map(row => Number(row.cells[1].dataset.sort))"
    before = seen.tab.evaluate(column)
    button = seen.tab.locator("#efficiency th button").nth(1)
    button.focus()
    seen.tab.keyboard.press("Enter")
    assert seen.tab.evaluate(column) == sorted(before) != before
    assert seen.tab.locator("#efficiency th").nth(1).get_attribute("aria-sort") == "ascending"
    seen.tab.keyboard.press("Enter")
    assert seen.tab.evaluate(column) == sorted(before, reverse=True)


def test_numbers_lead_to_their_runs(shelf: Path, chromium: Any) -> None:
    seen = visit(chromium, shelf / example_report.full().name / "index.html", width=1280)
    lost = seen.tab.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].filter(one => !document.getElementById(decodeURIComponent(one.hash.slice(1)))).map(one => one.outerHTML)"
    )
    assert lost == []
    assert seen.tab.locator("#stages td a.n").count() > 20


def test_attacks_do_nothing(shelf: Path, chromium: Any) -> None:
    seen = visit(chromium, shelf / "hostile" / "index.html", width=1280)
    shown: list[str] = []
    seen.tab.on("dialog", lambda dialog: (shown.append(dialog.message), dialog.dismiss()))
    assert seen.tab.locator("script").count() == 1
    assert seen.tab.evaluate("[...document.links].filter(one => one.protocol === 'javascript:').length") == 0
    seen.tab.wait_for_timeout(50)
    assert shown == []


def test_print_opens_what_is_folded(shelf: Path, chromium: Any) -> None:
    seen = visit(chromium, shelf / example_report.full().name / "index.html", width=1280)
    shown = "document.querySelector('#samples details pre').checkVisibility({contentVisibilityAuto: true})"
    assert not seen.tab.evaluate(shown)
    seen.tab.emulate_media(media="print")
    seen.tab.wait_for_function(shown)  # what lies far below is laid out with the next frame
    assert seen.tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_the_command_makes_pictures(shelf: Path, chromium: Any, tmp_path: Path) -> None:
    """In a process of its own, as playwright starts only once in each."""
    assert chromium.is_connected()

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [
            sys.executable,
            "-m",
            "superblock.reporting.pages.screenshot",
            str(shelf / "empty" / "index.html"),
            *words,
        ]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert command("a.png", "390", "844", "dark").returncode == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert command("a.pdf").returncode == 0
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    refused = command("a.gif")
    assert refused.returncode == 2
    assert "is a .png or a .pdf file" in refused.stderr
