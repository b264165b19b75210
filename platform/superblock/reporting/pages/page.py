"""Renders a report as one self-contained HTML page and as Markdown with its pictures beside it.

Both come from the same sections, so that they cannot say different things. Nothing depends on the clock or on the machine:
equal reports give equal bytes.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from superblock.reporting.content import NoBaseline, Report
from superblock.reporting.pages import (
    changes,
    efficiency,
    evidence,
    experiments,
    inside,
    language,
    pictures,
    probes,
    stages,
)
from superblock.reporting.pages.blocks import Picture, Section
from superblock.reporting.pages.blocks import pictures as pictures_of
from superblock.reporting.pages.cells import VERDICTS, plural
from superblock.reporting.pages.escaping import (
    anchor,
    html_command,
    html_words,
    markdown,
    markdown_code,
    markdown_fence,
    markdown_words,
    plain,
)
from superblock.reporting.pages.numbers import moment

WITHOUT: dict[NoBaseline, str] = {
    "none earlier": "none earlier", "not asked for": "none, as asked for", "gone": "gone",
}  # fmt: skip
SECTIONS: tuple[Callable[[Report], Section], ...] = (
    changes.changes,
    stages.stages,
    stages.learning,
    probes.probes,
    efficiency.efficiency,
    inside.experts,
    inside.exits,
    language.language,
    experiments.ablations,
    changes.history,
    evidence.gates,
    evidence.samples,
    evidence.sources,
    evidence.problems,
)
"""In the order in which they are read; the verdict stands above them all."""


def render(report: Report, folder: Path) -> None:
    """Writes `index.html`, `report.md` and the pictures of the latter into a folder, which is made if it is absent.

    Pictures of an earlier report in the same folder that this one does not have are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = [section(report) for section in SECTIONS]
    drawn = _draw([picture for section in sections for picture in pictures_of(section.blocks)])
    known = {source.name for source in report.sources}
    shared: dict[str, Any] = {
        "report": report,
        "sections": sections,
        "drawn": drawn,
        "verdict": VERDICTS.get(report.verdict, ("·", "muted")),
        "facts": _facts(report),
        "href": lambda runs: next((f"#{anchor(name)}" for name in runs if name in known), ""),
    }
    write(folder / "index.html", html("report.html.j2", **shared))
    write(folder / "report.md", environment("markdown").get_template("report.md.j2").render(shared))
    for name, picture in drawn.items():
        pictures.write(picture, folder / f"{name}.svg")
    for path in folder.glob("*.svg"):
        if path.stem not in drawn:
            path.unlink()


def html(template: str, **context: Any) -> str:
    """A whole page: its style and script are in it, and its content policy allows this one script and no request."""
    style, script = (_resource(name) for name in ("page.css", "tables.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment("html")
        .get_template(template)
        .render(context | {"style": Markup(style), "script": Markup(script), "script_digest": Markup(digest)})  # ours
    )


@cache
def environment(kind: str) -> Environment:
    """Templates that escape whatever they are given, for `html` or `markdown`."""
    loader = PackageLoader("superblock.reporting.pages")
    common: dict[str, Any] = {
        "loader": loader, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True,
    }  # fmt: skip
    if kind == "html":
        made = Environment(autoescape=True, finalize=_clean, **common)
        made.filters |= {
            "words": html_words,
            "command": html_command,
            "figure": lambda picture, name: Markup(pictures.inline(picture, name)),
        }
    else:
        # Jinja's own escaping is HTML's; `finalize` sees every value that a template writes
        made = Environment(autoescape=False, finalize=markdown, **common)
        made.filters |= {"words": markdown_words, "code": markdown_code, "fence": markdown_fence}
    made.filters |= {"moment": moment, "anchor": anchor, "origin": origin}
    return made


def origin(runs: Sequence[str]) -> str:
    """Names of the runs behind a number, the first few."""
    shown = ", ".join(runs[:4])
    return f"from {shown}" + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")


def write(path: Path, text: str) -> None:
    """Writes a text file: old or new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def _clean(value: object) -> object:
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> str:
    return (files("superblock.reporting.pages") / "templates" / name).read_text(encoding="utf-8")


def _draw(found: list[Picture]) -> dict[str, str]:
    """SVG by name; a name that occurs twice would overwrite a picture."""
    drawn: dict[str, str] = {}
    for picture in found:
        assert picture.name not in drawn, picture.name
        drawn[picture.name] = pictures.svg(picture.draw)
    return drawn


def _facts(report: Report) -> list[tuple[str, str]]:
    """What the report is about, in a few words each."""
    runs = sum(source.kind == "run" for source in report.sources)
    records = len(report.sources) - runs
    commits = sorted({source.commit[:12] for source in report.sources if source.commit})
    facts = [
        ("newest result", moment(report.time)),
        ("made from", f"{plural(runs, 'run')}, {plural(records, 'record')}; {report.source}"),
        ("baseline", report.baseline or WITHOUT[report.no_baseline or "none earlier"]),
    ]
    if commits:
        facts.append(
            (
                "commit" if len(commits) == 1 else "commits",
                ", ".join(commits[:4]) + (" and more" if len(commits) > 4 else ""),
            )
        )
    return facts
