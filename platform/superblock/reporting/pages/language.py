"""Where in the text the models are good: by position in the context, and by package."""

from superblock.config.typed import stored
from superblock.reporting.content import Group, Report, Sliced
from superblock.reporting.pages import charts
from superblock.reporting.pages.blocks import Block, Cell, Column, Fold, Gallery, Missing, Picture, Section, Table
from superblock.reporting.pages.cells import NOTHING, Look, looks, name_cell, runs_of
from superblock.reporting.pages.numbers import fixed, interval, significant

COMMAND = stored("benchmark suite=language")
PACKAGES_DRAWN = 12
LOOSE = "outside packages"
"""As the language suite names documents that lie in no folder."""


def language(report: Report) -> Section:
    """Two tables and two pictures."""
    title = "Language: where the bits go"
    lead = "Bits per byte of the test text, by how far into its context a token stands, and by the package that it is from."
    groups = [group for group in report.groups if group.positions or group.packages]
    harness = _harness(report)
    if not groups:
        return Section("language", title, lead, (Missing("The language suite was not run.", COMMAND), *harness))
    look = looks(report)
    blocks: list[Block] = []
    pictures = [
        _picture(groups, look, "positions", "position in the context"),
        _picture(groups, look, "packages", "package"),
    ]
    found = tuple(picture for picture in pictures if picture)
    if found:
        blocks.append(Gallery(found))
    for which, caption in (("positions", "By position in the context, in tokens"), ("packages", "By package")):
        table = _table(groups, look, which, caption)
        if table is None:
            blocks.append(Missing(f"{caption}: not measured.", COMMAND))
        elif len(table.rows) > PACKAGES_DRAWN:
            blocks.append(Fold(f"{caption}, {len(table.rows)} of them", (table,)))
        else:
            blocks.append(table)
    blocks += harness
    return Section("language", title, lead, tuple(blocks))


def _harness(report: Report) -> list[Block]:
    """What lm-evaluation-harness measured; nothing where it was not run, for it is an extra."""
    columns = (
        Column("task", "name"), Column("metric", "words"), Column("value"), Column("chance"), Column("examples"), Column("run", "words"),
    )  # fmt: skip
    rows = tuple(
        (
            name_cell(one.task, (one.record,)),
            Cell(text=one.metric),
            Cell(text=significant(one.value, 4), sort=one.value, runs=(one.run, one.record),
                 note="" if one.stderr is None else f"± {significant(one.stderr, 2)}"),
            Cell(text="" if one.chance is None else fixed(one.chance, 3), sort=one.chance),
            Cell(text=f"{one.examples:,}", sort=one.examples, tone="" if one.limit is None else "unsure",
                 note="" if one.limit is None else "a part of the task"),
            Cell(text=one.run, runs=(one.run,)),
        )
        for one in report.harness
    )  # fmt: skip
    if not rows:
        return []
    table = Table("Tasks of lm-evaluation-harness, with the standard error over their examples", columns, rows)
    return [table if len(rows) <= PACKAGES_DRAWN else Fold(f"lm-evaluation-harness, {len(rows)} results", (table,))]


def _parts(group: Group, which: str) -> tuple[Sliced, ...]:
    return group.positions if which == "positions" else group.packages


def _names(groups: list[Group], which: str) -> list[str]:
    """Positions in their order; packages with the largest share first."""
    shares: dict[str, float] = {}
    for group in groups:
        for one in _parts(group, which):
            shares.setdefault(one.name, one.share or 0.0)
    return list(shares) if which == "positions" else sorted(shares, key=lambda name: -shares[name])


def _table(groups: list[Group], look: dict[str, Look], which: str, caption: str) -> Table | None:
    names = _names(groups, which)
    if not names:
        return None
    found = {(group.key, one.name): one for group in groups for one in _parts(group, which)}
    shared = any(one.share is not None for one in found.values())
    rows = []
    for name in names:
        mine = [found[group.key, name] for group in groups if (group.key, name) in found]
        share = mine[0].share
        runs = runs_of(mine[0].bits_per_byte) if len(groups) == 1 else ()  # of several stages each number has its own
        cells = [_cell(found.get((group.key, name))) for group in groups]
        rows.append(
            (
                name_cell(name, runs),
                *([_share(share, runs_of(mine[0].bits_per_byte))] if shared else []),
                *cells,
            )
        )
    share_column = (Column("share of bytes, %"),) if shared else ()
    columns = (Column("part", "name"), *share_column, *(Column(look[group.key].name) for group in groups))
    how = f"{caption}: bits per byte, its interval, and next-token accuracy"
    if which == "packages":
        how += "; ordered by their share of the text"
    if LOOSE in names:
        how += f". {LOOSE[0].upper()}{LOOSE[1:]}: modules of one file each, at the top of the library"
    return Table(how, columns, tuple(rows))


def _share(share: float | None, runs: tuple[str, ...]) -> Cell:
    return NOTHING if share is None else Cell(text=fixed(100 * share, 1), sort=share, runs=runs)


def _cell(one: Sliced | None) -> Cell:
    if one is None:
        return NOTHING
    bits = one.bits_per_byte
    notes = [interval(bits.low, bits.high, 3)]
    if one.accuracy:
        notes.append(f"{fixed(100 * one.accuracy.mean, 1)} % right")
    note = " · ".join(part for part in notes if part)
    return Cell(text=fixed(bits.mean, 3), sort=bits.mean, note=note, runs=runs_of(bits))


def _picture(groups: list[Group], look: dict[str, Look], which: str, title: str) -> Picture | None:
    names = _names(groups, which)[:PACKAGES_DRAWN]
    if len(names) < 2:
        return None
    series = []
    for group in groups:
        parts = {one.name: one.bits_per_byte for one in _parts(group, which)}
        dots = [
            charts.Dot(i, parts[name].mean, parts[name].low, parts[name].high)
            for i, name in enumerate(names)
            if name in parts
        ]
        if dots:
            style = look[group.key]
            series.append(
                charts.Line(
                    style.name, tuple(dots), style.colour, style.mark, joined=which == "positions", dashed=style.dashed
                )
            )
    words = "; ".join(
        f"{line.name}: " + ", ".join(f"{names[int(dot.x)]} {fixed(dot.y, 3)}" for dot in line.dots) for line in series
    )
    many = ", in tokens" if which == "positions" else ", ordered by their share of the text"
    many += f"; {LOOSE}: modules of one file each, at the top of the library" if LOOSE in names else ""
    return Picture(
        f"language-{which}",
        lambda: charts.categories(series, names, title, "bits per byte"),
        f"Bits per byte by {title}{many}.",
        f"Bits per byte by {title}. {words}.",
    )
