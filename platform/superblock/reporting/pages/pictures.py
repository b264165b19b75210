"""Figures as SVG text: the same bytes for the same figure, readable on white and on black.

Letters stay letters, so that a page shows them in its own font, a reader can select them, and the picture is small. A file
of its own has the grey that both backgrounds bear (`evaluation.curve.INK`); inside a page the ink is `currentColor` and the
colours of stages follow the page's theme.
"""

import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from superblock.evaluation.curve import INK, dress
from superblock.reporting.pages.escaping import plain
from superblock.tracking.identity import stage_color

SIZE = (5.2, 3.3)
"""Inches: narrow enough that its letters can be read on a phone, where it is scaled to 360 pixels."""
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "superblock",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with dollar signs is a name
    "axes.unicode_minus": True,
    "backend": "agg",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
}
COLOURS = ("#3b82f6", "#d9730d", "#16a34a", "#c026d3", "#b45309", "#0891b2")
"""For what is no stage: arms, packages; each has a mark of its own beside it."""
GOOD, BAD = "#1f883d", "#d1432b"
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Kinds of lines as matplotlib writes them."""
HEAT = ("#c2410c", "#e07a3f", "#ecb17c", "#d9cfb0", "#a9c6b0", "#6fae9c", "#3d8f86", "#1c6f70")
"""Of heat maps, from rust to teal: also told apart by those who do not see red and green; the same in both themes."""


def svg(draw: Callable[[], Figure]) -> str:
    """The picture as an SVG element, with its size in points."""
    image = io.BytesIO()
    with matplotlib.rc_context(dict(matplotlib.rcParamsDefault) | SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser's fonts have it
        draw().savefig(image, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    text = image.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style type=\"text/css\">.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)  # matplotlib repeats every text in a comment
    text = text.replace("<svg ", '<svg stroke-linejoin="round" ', 1)
    return re.sub(r"\n\s*", "\n", _short_numbers(text)).strip()


def inline(picture: str, name: str) -> str:
    """An SVG element for a page: its theme's colours, names of its own, and as wide as its place."""
    picture = re.sub(r"(?<=[: ])#[0-9a-f]{6}\b", lambda match: _themed(match[0]), picture.replace(INK, "currentColor"))
    picture = re.sub(r'\bid="', f'id="{name}-', picture)
    picture = re.sub(r"url\(#", f"url(#{name}-", picture)
    picture = re.sub(r'href="#', f'href="#{name}-', picture)
    return re.sub(r'(<svg [^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r"\1", picture, count=1)


def write(picture: str, path: Path) -> None:
    """Writes an SVG file: old or new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{picture}\n', encoding="utf-8")
    os.replace(temporary, path)


def figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, dressed as all are."""
    made = Figure(figsize=size, layout="constrained")
    axes = made.subplots()
    dress(axes)
    axes.set_axisbelow(True)
    return made, axes


def label(text: str, longest: int = 34) -> str:
    """A text of strangers on one line of a picture."""
    line = " ".join(plain(text).split())
    line = line if len(line) <= longest else line[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return " " + line if line.startswith("_") else line  # matplotlib hides labels that begin with it


def legend(made: Figure, axes: Axes, columns: int = 4) -> None:
    """Names above the axes, where they cover nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        made.legend(
            handles, labels, frameon=False, labelcolor=INK, loc="outside upper left",
            ncols=min(columns, len(labels)), columnspacing=1.2, handletextpad=0.5, handlelength=1.8,
        )  # fmt: skip


def colour_of(stage: str) -> str:
    """The stage's colour, the one it has in MLflow."""
    return stage_color(stage)


def _themed(colour: str) -> str:
    """Darker on white and lighter on black, as page.css says; a stage of a user's own has a colour nobody chose."""
    return colour if colour in HEAT else f"color-mix(in oklab,{colour},var(--toward))"


def _short_numbers(text: str) -> str:
    """Coordinates to a hundredth of a point: nobody sees more, and the page is half as large."""
    return re.sub(
        r"(?<=[ \"(,MLCQ])(-?\d+\.\d{3,})(?=[ \"),\n])", lambda m: f"{float(m[1]):.2f}".rstrip("0").rstrip("."), text
    )
