"""The list of all reports, as a page and as Markdown."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from superblock.reporting.content import Report
from superblock.reporting.pages.blocks import Tone
from superblock.reporting.pages.cells import VERDICTS, looks
from superblock.reporting.pages.numbers import metric_text
from superblock.reporting.pages.page import environment, html, write
from superblock.reporting.shelf import Shelf

QUALITY = "test/bits_per_byte"


@dataclass(frozen=True)
class Entry:
    """One report of the list."""

    report: Report
    folder: str
    """Address of its folder, relative to the list."""
    sign: str
    tone: Tone
    pinned: bool
    stages: str
    """The stages with what they reached."""
    runs: int
    problems: int
    alarms: int


def render_index(folder: Path) -> None:
    """Writes `index.html` and `index.md` about every report below a folder, newest first; the pinned baseline is marked."""
    shelf = Shelf(folder)
    pinned = shelf.baseline()
    entries = [_entry(report, pinned) for report in reversed(shelf.all())]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "index.html", html("index.html.j2", entries=entries))
    write(folder / "index.md", environment("markdown").get_template("index.md.j2").render(entries=entries))


def _entry(report: Report, pinned: str | None) -> Entry:
    sign, tone = VERDICTS.get(report.verdict, ("·", "muted"))
    look = looks(report)
    reached = [
        f"{look[group.key].name} {metric_text(QUALITY, group.measures[QUALITY].mean)}"
        for group in report.groups
        if QUALITY in group.measures
    ]
    return Entry(
        report, quote(report.name), sign, tone, report.name == pinned, ", ".join(reached),
        sum(source.kind == "run" for source in report.sources), len(report.problems), sum(one.alarm for one in report.histories),
    )  # fmt: skip
