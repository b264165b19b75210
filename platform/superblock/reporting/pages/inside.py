"""Inside the models: how evenly experts are used, and what each exit is worth."""

from superblock.config.typed import stored
from superblock.evaluation.curve import INK
from superblock.reporting.content import ExitPoint, Group, Measure, Report
from superblock.reporting.pages import charts
from superblock.reporting.pages.blocks import Block, Cell, Column, Fold, Missing, Picture, Section, Table
from superblock.reporting.pages.cells import Look, looks, measured, name_cell, number
from superblock.reporting.pages.numbers import fixed

TRAIN = stored("run stage=mvp4 seed=1,2,3 --multirun")


def experts(report: Report) -> Section:
    """Heat map of the load per layer."""
    title = "Load of the experts"
    lead = (
        "How evenly tokens are spread over the experts of each layer at the end of training: 1 is evenly, and an expert "
        "without tokens is dead weight."
    )
    groups = [group for group in report.groups if group.experts]
    if not groups:
        text = "No run recorded how its experts are used."
        return Section("experts", title, lead, (Missing(text, stored("run stage=mvp1")),))
    look = looks(report)
    layers = sorted({one.layer for group in groups for one in group.experts})
    values = [
        [{one.layer: one.load_entropy for one in group.experts}.get(layer) for layer in layers] for group in groups
    ]
    names = [look[group.key].name for group in groups]
    words = "; ".join(_worst(look[group.key].name, group) for group in groups)
    picture = Picture(
        "experts",
        lambda: charts.heat(values, names, [str(layer) for layer in layers], "layer", "evenness"),
        f"Evenness of the experts' load (normalised entropy) by layer. The least even ones: {words}.",
        f"Heat map of expert load, {len(groups)} groups by {len(layers)} layers. {words}.",
    )
    rows = tuple(
        (
            name_cell(look[group.key].name, group.runs),
            Cell(text=str(one.layer), sort=one.layer),
            Cell(text=fixed(one.load_entropy, 4), sort=one.load_entropy, runs=group.runs),
            Cell(text=fixed(100 * one.min_load, 1), sort=one.min_load, runs=group.runs),
            Cell(text=f"{one.dead:g}", sort=one.dead, runs=group.runs, tone="bad" if one.dead else ""),
        )
        for group in groups
        for one in group.experts
    )
    columns = (
        Column("stage", "name"), Column("layer"), Column("evenness"), Column("idlest expert, % of an equal share"), Column("dead experts"),
    )  # fmt: skip
    table = Table("Load of the experts, layer by layer", columns, rows)
    return Section("experts", title, lead, (picture, Fold("Every layer's numbers", (table,))))


def _worst(name: str, group: Group) -> str:
    worst = min(group.experts, key=lambda one: one.load_entropy)
    dead = sum(one.dead for one in group.experts)
    return f"{name} {worst.load_entropy:.3f} in layer {worst.layer}, {f'{dead:g} dead' if dead else 'none dead'}"


def exits(report: Report) -> Section:
    """The curve of quality over depth."""
    title = "Exits: one model of every depth"
    lead = (
        "A deep model can end at any of its exits, and does less the earlier it ends; this is what each exit is worth. Beside "
        "it, the models that were trained at that depth alone."
    )
    groups = [group for group in report.groups if group.exits]
    if not groups:
        return Section("exits", title, lead, (Missing("No run measured its exits.", TRAIN),))
    look = looks(report)
    series = [
        charts.Line(
            look[group.key].name, tuple(_dot(point) for point in group.exits), look[group.key].colour,
            look[group.key].mark, dashed=look[group.key].dashed,
        )
        for group in groups
    ]  # fmt: skip
    series += _trained(groups, look, len(series))
    depths = sorted({point.depth for group in groups for point in group.exits})
    words = "; ".join(
        f"{look[group.key].name}: "
        + ", ".join(f"depth {point.depth} {fixed(point.bits_per_byte.mean, 4)}" for point in group.exits)
        for group in groups
    )
    picture = Picture(
        "exits",
        lambda: charts.lines(series, "superblocks used", "bits per byte, test", ticks=depths),
        "Bits per byte of the test text over the exit at which the model ends.",
        f"Bits per byte over depth. {words}.",
    )
    table = _exit_table(report, groups)
    blocks: list[Block] = [picture, table if len(table.rows) <= 8 else Fold(f"All {len(table.rows)} exits", (table,))]
    return Section("exits", title, lead, tuple(blocks))


def _trained(groups: list[Group], look: dict[str, Look], first: int) -> list[charts.Line]:
    """The models of those depths, a line for each scale, arm and text: their bits per byte differ.

    Args:
        groups: that have exits.
        look: of all groups.
        first: mark of the first of the lines.
    """
    found: dict[tuple[str, str, str], dict[int, Measure]] = {}
    last: dict[tuple[str, str, str], str] = {}
    for group in groups:
        for point in group.exits:
            if point.trained:
                kind = (group.scale, group.arm, group.data_digest)
                found.setdefault(kind, {})[point.depth] = point.trained
                last[kind] = look[group.key].name
    return [
        charts.Line(
            f"trained at that depth{f', beside {last[kind]}' if len(found) > 1 else ''}",
            tuple(charts.Dot(depth, one.mean, one.low, one.high) for depth, one in sorted(trained.items())),
            INK, first + place, joined=False,
        )
        for place, (kind, trained) in enumerate(found.items())
    ]  # fmt: skip


def _dot(point: ExitPoint) -> charts.Dot:
    return charts.Dot(point.depth, point.bits_per_byte.mean, point.bits_per_byte.low, point.bits_per_byte.high)


def _exit_table(report: Report, groups: list[Group]) -> Table:
    look = looks(report)
    columns = (
        Column("model", "name"), Column("superblocks used"), Column("bits per byte"), Column("tokens/s"), Column("trained at that depth"),
    )  # fmt: skip
    rows = tuple(
        (
            name_cell(look[group.key].name, group.runs),
            Cell(text=str(point.depth), sort=point.depth),
            measured("test/bits_per_byte", point.bits_per_byte),
            number(point.tokens_per_second, 0),
            measured("test/bits_per_byte", point.trained) if point.trained else Cell(text="none", tone="muted"),
        )
        for group in groups
        for point in group.exits
    )
    return Table("Every exit", columns, rows)
