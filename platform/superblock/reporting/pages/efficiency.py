"""Speed and memory of single operations and whole steps, from the record of the speed suite."""

import re
from collections.abc import Callable
from typing import Literal

from superblock.config.typed import stored
from superblock.reporting.content import Report, SpeedRow
from superblock.reporting.pages import charts
from superblock.reporting.pages.blocks import Block, Cell, Column, Gallery, Missing, Picture, Section, Table
from superblock.reporting.pages.cells import name_cell, plural
from superblock.reporting.pages.numbers import count, fixed, significant
from superblock.reporting.pages.pictures import COLOURS

LENGTH = re.compile(r"(?:^|[/-])[tc](\d+)$")
"""Tokens of a sequence, or those that lie before the one that is written, at the end of a case's name."""


def efficiency(report: Report) -> Section:
    """The table of cases, cost against length, and decoding."""
    title = "Speed and memory of each operation"
    lead = (
        "Medians of the speed suite, beside transformers' Qwen3-Next of the same dimensions in the same process. `2.5x` "
        "means two and a half times as fast as its fastest variant; `0.5x` of memory means half as much."
    )
    if not report.speed:
        text = "The speed suite was not run."
        return Section("efficiency", title, lead, (Missing(text, stored("benchmark suite=speed")),))
    pictures = tuple(filter(None, (_cost(report.speed), _decoding(report.speed))))
    blocks: list[Block] = [Gallery(pictures)] if pictures else []
    blocks.append(_table(report.speed))
    return Section("efficiency", title, lead, tuple(blocks))


def _table(rows: tuple[SpeedRow, ...]) -> Table:
    shown = [name for name in ("batch", "superblocks", "variant") if _plain(rows, name)]  # names of cases say the rest
    columns = (
        Column("case", "name"), Column("time, ms"), Column("tokens/s"), Column("share of the matmul limit, %"),
        Column("speed beside the peer"), Column("memory beside the peer"), *(Column(name.replace("_", " "), _kind(rows, name)) for name in shown),
    )  # fmt: skip
    lines = tuple(
        (
            name_cell(row.case, (row.record,)),
            Cell(text=significant(row.milliseconds), sort=row.milliseconds, runs=(row.record,)),
            _optional(row, row.tokens_per_second, lambda value: fixed(value, 0)),
            _optional(row, row.matmul_share, lambda value: fixed(100 * value, 1)),
            _optional(row, row.ratio, lambda value: f"{fixed(value, 2)}x"),
            _optional(row, row.memory_ratio, lambda value: f"{fixed(value, 2)}x"),
            *(_size(row.sizes.get(name)) for name in shown),
        )
        for row in rows
    )
    return Table(plural(len(rows), "case") + " of the speed suite", columns, lines)


def _plain(rows: tuple[SpeedRow, ...], name: str) -> bool:
    """Whether a size is there, and a number or a word everywhere: nothing else belongs in a cell."""
    values = [row.sizes.get(name) for row in rows]
    return any(value is not None for value in values) and all(isinstance(v, int | float | str | None) for v in values)


def _kind(rows: tuple[SpeedRow, ...], name: str) -> Literal["number", "words"]:
    return "words" if any(isinstance(row.sizes.get(name), str) for row in rows) else "number"


def _size(value: object) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(text=f"{value:,}" if abs(value) < 1e6 else count(value), sort=float(value))
    return Cell(text="" if value is None else str(value))


def _optional(row: SpeedRow, value: float | None, shown: Callable[[float], str]) -> Cell:
    return Cell() if value is None else Cell(text=shown(value), sort=value, runs=(row.record,))


def _series(rows: tuple[SpeedRow, ...], kind: str) -> dict[str, list[tuple[float, SpeedRow]]]:
    """Cases of a kind that differ in length, by what they have in common."""
    found: dict[str, list[tuple[float, SpeedRow]]] = {}
    for row in rows:
        match = LENGTH.search(row.case)
        if match and row.case.startswith(f"{kind}/") and row.tokens_per_second:
            found.setdefault("/".join(row.case.split("/")[:2]), []).append((float(match[1]), row))
    longest: dict[str, list[tuple[float, SpeedRow]]] = {}
    for name, pairs in found.items():
        best = {length: row for length, row in sorted(pairs, key=lambda pair: pair[1].tokens_per_second or 0.0)}  # noqa: C416
        if len(best) > 1:
            longest[name] = sorted(best.items())
    return longest


def _cost(rows: tuple[SpeedRow, ...]) -> Picture | None:
    """Time per token over the length of the sequence, in training and in reading a prompt."""
    groups = _series(rows, "train") | _series(rows, "prefill")
    if not groups:
        return None
    series = [
        charts.Line(
            _named(name),
            tuple(charts.Dot(x, 1e6 / (row.tokens_per_second or 1.0)) for x, row in pairs),
            COLOURS[i % len(COLOURS)],
            i,
            dashed=i,
        )
        for i, (name, pairs) in enumerate(groups.items())
    ]
    words = "; ".join(
        f"{_named(name)}: "
        + ", ".join(f"{fixed(x, 0)} tokens {significant(1e6 / (row.tokens_per_second or 1.0))} µs" for x, row in pairs)
        for name, pairs in groups.items()
    )
    return Picture(
        "speed-cost",
        lambda: charts.lines(
            series, "tokens of a sequence", "µs per token", logarithmic=True, ticks=_ticks(series), zero=True
        ),
        "Cost of a token over the length of the sequence; a flat line means that length costs nothing.",
        f"Time per token over length. {words}.",
    )


def _decoding(rows: tuple[SpeedRow, ...]) -> Picture | None:
    """Tokens per second while writing, over what lies before."""
    groups = _series(rows, "decode")
    if not groups:
        return None
    series = [
        charts.Line(
            _named(name),
            tuple(charts.Dot(x, row.tokens_per_second or 0.0) for x, row in pairs),
            COLOURS[i % len(COLOURS)],
            i,
            dashed=i,
        )
        for i, (name, pairs) in enumerate(groups.items())
    ]
    words = "; ".join(
        f"{_named(name)}: "
        + ", ".join(f"after {fixed(x, 0)} tokens {fixed(row.tokens_per_second or 0.0, 0)} tokens/s" for x, row in pairs)
        for name, pairs in groups.items()
    )
    return Picture(
        "speed-decoding",
        lambda: charts.lines(series, "tokens before", "tokens/s", logarithmic=True, ticks=_ticks(series), zero=True),
        "Speed of writing, one token after the other, over the tokens that lie before.",
        f"Decoding speed over context. {words}.",
    )


def _named(case: str) -> str:
    """`train/s3` in words."""
    kind, _, size = case.partition("/")
    match = re.match(r"s(\d+)$", size)
    return f"{kind}, {plural(int(match[1]), 'superblock')}" if match else case


def _ticks(series: list[charts.Line]) -> list[float]:
    return sorted({dot.x for line in series for dot in line.dots})
