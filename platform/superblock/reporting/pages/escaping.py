"""Untrusted text in HTML and in Markdown: names, samples and sentences come from whoever started the runs."""

import re
from zlib import crc32

from markupsafe import Markup, escape

CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Signs that no page shows, XML forbids, or that turn the direction of what follows."""
CODE = re.compile(r"`([^`\n]+)`")
MARKDOWN = re.compile(r"([\\`*_\[\]~|#!])")


def plain(text: object) -> str:
    """Text without control characters."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def anchor(name: str) -> str:
    """The anchor of a run or record: letters, digits and hyphens, and still unique."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80]
    return f"source-{word}" if word == name else f"source-{word}-{crc32(name.encode('utf-8', 'replace')):08x}"


def html_words(text: object) -> Markup:
    """Escaped HTML; what stands between backticks becomes code."""
    parts = CODE.split(plain(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(html_command(part)) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def html_command(text: object) -> Markup:
    """A command as escaped HTML; no line ends behind the hyphen of an option, where a browser would break it."""
    option = Markup('<span class="option">{}</span>')
    return Markup(" ").join(
        option.format(word) if word.startswith("-") else escape(word) for word in plain(text).split(" ")
    )


def markdown(text: object) -> Markup:
    """Escaped Markdown on one line: no markup, no HTML, no end of a table's cell."""
    if isinstance(text, Markup):
        return text
    line = " ".join(plain(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"^([-+=]|\d+[.)])(?=\s|$)", r"\\\1", MARKDOWN.sub(r"\\\1", line))
    return Markup(line.replace("@", "&#64;").replace("://", "&#58;//"))


def markdown_code(text: object) -> Markup:
    """A stretch of code on one line, also in a table."""
    line = " ".join(plain(text).split()).replace("|", r"\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return Markup(f"{fence}{space}{line}{space}{fence}") if line else Markup("")


def markdown_words(text: object) -> Markup:
    """Escaped Markdown; what stands between backticks becomes code."""
    parts = CODE.split(" ".join(plain(text).split()))
    return Markup("".join(markdown_code(p) if i % 2 else _kept_spaces(p) for i, p in enumerate(parts)))


def markdown_fence(text: object) -> Markup:
    """A block of text as it is, within a fence that it cannot close."""
    body = plain(text).replace("\r", "")
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}text\n{body}\n{fence}")


def _kept_spaces(part: str) -> str:
    """The stretch between two codes keeps the spaces at its ends."""
    if not part.strip():
        return part
    before, after = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
    return f"{before}{markdown(part)}{after}"
