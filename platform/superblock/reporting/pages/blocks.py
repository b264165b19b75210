"""What a page is made of, before it is HTML or Markdown: sections of tables, pictures and words.

Every text in here is plain text that somebody may have typed; the templates escape it. A stretch between two backticks
becomes code, nothing else has a meaning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from matplotlib.figure import Figure

Tone = Literal["", "good", "bad", "unsure", "muted"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str = ""
    sort: float | None = None
    """What a column is sorted by; None sorts by the text."""
    note: str = ""
    """A second, smaller line."""
    runs: tuple[str, ...] = ()
    """Runs and records that the number comes from; it links to the first of them."""
    tone: Tone = ""
    """Seen as a colour, and never the only sign: the text says it too."""
    heat: float | None = None
    """Shading of a heat map, 0 to 1."""
    code: bool = False
    link: str = ""
    """Where the text leads: an address of this page (`#...`) or of an MLflow server."""
    anchor: str = ""
    """Name under which other places of the page link to this cell."""


@dataclass(frozen=True)
class Column:
    """Head of a column."""

    title: str
    kind: Literal["name", "number", "words"] = "number"


@dataclass(frozen=True)
class Table:
    """Rows below a head; the first cell of each row names it."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption


@dataclass(frozen=True)
class Picture:
    """A figure with the numbers that it shows in words, for those who cannot see it."""

    kind: ClassVar[str] = "picture"
    name: str
    """Of its file."""
    draw: Callable[[], Figure]
    caption: str
    alternative: str


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side where there is room."""

    kind: ClassVar[str] = "gallery"
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    kind: ClassVar[str] = "words"
    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"
    items: tuple[str, ...]
    tone: Tone = ""


@dataclass(frozen=True)
class Missing:
    """What nothing measured, and the command that would."""

    kind: ClassVar[str] = "missing"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Verbatim:
    """Text as it is."""

    kind: ClassVar[str] = "verbatim"
    text: str


@dataclass(frozen=True)
class Fold:
    """What opens when asked, and always in print."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: tuple["Block", ...]


Block = Table | Picture | Gallery | Words | Points | Missing | Verbatim | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page with a headline."""

    anchor: str
    title: str
    lead: str
    """How to read it, in a sentence or two."""
    blocks: tuple[Block, ...]


def pictures(blocks: tuple[Block, ...]) -> list[Picture]:
    """All pictures in reading order."""
    found: list[Picture] = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Gallery):
            found.extend(block.pictures)
        elif isinstance(block, Fold):
            found.extend(pictures(block.blocks))
    return found
