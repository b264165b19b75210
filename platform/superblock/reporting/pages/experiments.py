"""Ablations: arms of an experiment beside each other, paired by seed."""

from superblock.config.typed import stored
from superblock.evaluation.curve import INK
from superblock.reporting.content import AblationRow, Report
from superblock.reporting.pages import charts
from superblock.reporting.pages.blocks import Block, Cell, Column, Missing, Picture, Section, Table
from superblock.reporting.pages.cells import name_cell, plural
from superblock.reporting.pages.numbers import fixed, interval, metric_title, probability
from superblock.reporting.pages.pictures import COLOURS


def ablations(report: Report) -> Section:
    """A forest plot and a table for each experiment."""
    title = "Ablations"
    lead = (
        "Differences between two arms of an experiment, paired by seed, with 95 % intervals; p values are Holm's. A difference "
        "needs an interval without zero, Holm's agreement and enough seeds; the words say whether it is one."
    )
    if not report.ablations:
        text = "No ablation is among the records."
        return Section("ablations", title, lead, (Missing(text, stored("benchmark suite=growth")),))
    blocks: list[Block] = []
    kinds = dict.fromkeys((row.experiment, row.metric) for row in report.ablations)
    for place, (experiment, metric) in enumerate(kinds):
        rows = [row for row in report.ablations if (row.experiment, row.metric) == (experiment, metric)]
        blocks += [_picture(experiment, metric, rows, place), _table(experiment, metric, rows)]
    return Section("ablations", title, lead, tuple(blocks))


def _picture(experiment: str, metric: str, rows: list[AblationRow], place: int) -> Picture:
    bars = [charts.Bar(row.comparison, row.mean, row.low, row.high, COLOURS[0] if row.decided else INK) for row in rows]
    words = "; ".join(
        f"{row.comparison} {fixed(row.mean, 4, sign=True)} {interval(row.low, row.high, 4, sign=True)}".strip()
        for row in rows
    )
    what = metric_title(metric)
    budget = "".join(f" Trained for {one}." for one in dict.fromkeys(row.budget for row in rows) if one)
    return Picture(
        f"ablation-{place + 1}",
        lambda: charts.intervals(bars, f"difference in {what}"),
        f"{experiment}: differences in {what}. Blue where there is a verdict, grey where there is none.{budget}",
        f"{experiment}, differences in {what}. {words}.",
    )


def _table(experiment: str, metric: str, rows: list[AblationRow]) -> Table:
    columns = (
        Column("comparison", "name"), Column("difference"), Column("p (Holm)"), Column("seeds"), Column("in words", "words"),
    )  # fmt: skip
    lines = tuple(
        (
            name_cell(row.comparison, (row.record,)),
            Cell(
                text=fixed(row.mean, 4, sign=True),
                sort=row.mean,
                note=interval(row.low, row.high, 4, sign=True),
                runs=(row.record,),
            ),
            Cell(text=probability(row.p_adjusted), sort=row.p_adjusted),
            Cell(text=str(row.seeds), sort=row.seeds),
            Cell(text=row.words),
        )
        for row in rows
    )
    return Table(f"{experiment}: {metric_title(metric)}, {plural(len(rows), 'comparison')}", columns, lines)
