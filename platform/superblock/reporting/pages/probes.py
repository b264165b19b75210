"""Probes of the architecture: what each arm can do at all, beside chance and what papers report."""

import re
from collections.abc import Iterable
from dataclasses import replace

from superblock.config.typed import stored
from superblock.reporting.content import Measure, ProbeRow, Report
from superblock.reporting.pages import charts
from superblock.reporting.pages.blocks import Block, Cell, Column, Fold, Gallery, Missing, Picture, Section, Table
from superblock.reporting.pages.cells import name_cell, number, plural, runs_of
from superblock.reporting.pages.numbers import count, fixed, interval
from superblock.reporting.pages.pictures import COLOURS

LEVEL = re.compile(r"^(?P<what>.+?)=(?P<value>-?\d+(?:\.\d+)?)$")


def probes(report: Report) -> Section:
    """Heat map, table beside the published outcomes, and lines over growing difficulty."""
    title = "Probes of the architecture"
    lead = (
        "Small tasks, each of which needs one ability. Accuracy in per cent, mean over seeds with its interval; the deeper "
        "the shade, the further above chance."
    )
    if not report.probes:
        text = "The probes were not run."
        return Section("probes", title, lead, (Missing(text, stored("benchmark suite=probes")),))
    blocks: list[Block] = [_heat_map(report.probes), _beside_published(report.probes)]
    levels = tuple(filter(None, (_levels(report.probes, task) for task in _tasks(report.probes))))
    if levels:
        blocks += [Gallery(levels), Fold("Accuracy at every level", (_level_table(report.probes),))]
    return Section("probes", title, lead, tuple(blocks))


def _tasks(rows: Iterable[ProbeRow]) -> list[str]:
    return list(dict.fromkeys(row.task for row in rows))


def _arms(rows: Iterable[ProbeRow]) -> list[str]:
    return list(dict.fromkeys(row.arm for row in rows))


def _sources(row: ProbeRow) -> tuple[str, ...]:
    """The record, which is what a report has a source for, before its runs."""
    return tuple(dict.fromkeys((row.record, *runs_of(row.score))))


def _above_chance(value: float, chance: float) -> float:
    """0 at chance or below, 1 where everything is right."""
    return min(1.0, max(0.0, (value - chance) / (1 - chance))) if chance < 1 else 1.0


def _heat_map(rows: tuple[ProbeRow, ...]) -> Table:
    arms = _arms(rows)
    found = {(row.task, row.arm): row for row in rows}
    lines = []
    for task in _tasks(rows):
        mine = [found[task, arm] for arm in arms if (task, arm) in found]
        chances = sorted({row.chance for row in mine})
        cells = []
        for arm in arms:
            row = found.get((task, arm))
            if row is None:
                cells.append(Cell(text="not run", tone="muted"))
                continue
            shade = _above_chance(row.score.mean, row.chance)
            cells.append(number(_possible(row.score), 1, scale=100.0, runs=_sources(row), heat=shade))
        chance = Cell(text=" to ".join(fixed(100 * value, 1) for value in chances), sort=chances[0])
        lines.append((name_cell(task, (mine[0].record,)), chance, *cells))
    columns = (Column("task", "name"), Column("chance"), *(Column(arm) for arm in arms))
    return Table(
        f"Accuracy in per cent, {plural(len(lines), 'task')} by {plural(len(arms), 'arm')}", columns, tuple(lines)
    )


def _beside_published(rows: tuple[ProbeRow, ...]) -> Table:
    mixed = len({row.score_name for row in rows}) > 1
    columns = (
        Column("task", "name"), Column("arm", "words"), Column("measured, %"), Column("chance, %"), Column("seeds"),
        Column("published", "words"),
    )  # fmt: skip
    lines = tuple(
        (
            name_cell(row.task, (row.record,)),
            Cell(text=row.arm, note=row.score_name if mixed else ""),
            number(_possible(row.score), 1, scale=100.0, runs=_sources(row)),
            Cell(text=fixed(100 * row.chance, 1), sort=row.chance),
            Cell(text=str(len(row.score.values)), sort=len(row.score.values),
                 note=", ".join(fixed(100 * value.value, 1) for value in row.score.values)),
            Cell(text=row.published) if row.published else Cell(text="nothing comparable", tone="muted"),
        )
        for row in rows
    )  # fmt: skip
    what = "" if mixed else f": {rows[0].score_name}"
    return Table(f"Measured here, beside what is published{what}", columns, lines)


def _steps(row: ProbeRow) -> list[tuple[str, float, Measure]]:
    """The levels of a row that lie on a scale: what grows, how far, and the accuracy there."""
    matches = [(LEVEL.match(name), measure) for name, measure in row.levels.items()]
    return [(match["what"], float(match["value"]), measure) for match, measure in matches if match]


def _levels(rows: tuple[ProbeRow, ...], task: str) -> Picture | None:
    """Accuracy over the difficulty of one task, a line per arm; None if it has no scale."""
    mine = [(row, _steps(row)) for row in rows if row.task == task]
    mine = [(row, steps) for row, steps in mine if len(steps) > 1]
    if not mine:
        return None
    arms = _arms(rows)
    what = mine[0][1][0][0]
    series = [
        charts.Line(
            row.arm, tuple(charts.Dot(x, 100 * m.mean, _hundred(m.low), _hundred(m.high)) for _, x, m in sorted(steps, key=lambda step: step[1])),
            COLOURS[arms.index(row.arm) % len(COLOURS)], arms.index(row.arm), dashed=arms.index(row.arm),
        )
        for row, steps in mine
    ]  # fmt: skip
    chance = 100 * mine[0][0].chance
    ticks = sorted({x for _, steps in mine for _, x, _ in steps})
    wide = ticks[0] > 0 and ticks[-1] / ticks[0] >= 4
    words = "; ".join(
        f"{row.arm}: " + ", ".join(f"{count(x)} {fixed(100 * m.mean, 1)} %" for _, x, m in steps) for row, steps in mine
    )
    shown = ticks if len(ticks) <= 7 else ticks[:: len(ticks) // 6]
    return Picture(
        f"probe-{re.sub(r'[^a-z0-9]+', '-', task.lower()).strip('-')}-{_tasks(rows).index(task) + 1}",
        lambda: charts.lines(
            series,
            what,
            "accuracy, %",
            logarithmic=wide,
            ticks=shown,
            references=((f"chance {fixed(chance, 1)}", chance),),
        ),
        f"{task}: accuracy over {what}.",
        f"{task}, accuracy over {what}. {words}. Chance is {fixed(chance, 1)} %.",
    )


def _possible(score: Measure) -> Measure:
    """With an interval that ends at 0 and at 1, where an accuracy does."""
    if score.low is None or score.high is None:
        return score
    return replace(score, low=max(0.0, score.low), high=min(1.0, score.high))


def _hundred(value: float | None) -> float | None:
    return None if value is None else min(100.0, max(0.0, 100 * value))


def _level_table(rows: tuple[ProbeRow, ...]) -> Table:
    columns = (
        Column("task", "name"),
        Column("arm", "words"),
        Column("level", "words"),
        Column("accuracy, %"),
        Column("interval", "words"),
    )
    lines = []
    for row in rows:
        for name, measure in row.levels.items():
            match = LEVEL.match(name)
            low, high = _hundred(measure.low), _hundred(measure.high)
            lines.append(
                (
                    name_cell(row.task, (row.record,)),
                    Cell(text=row.arm),
                    Cell(text=name.replace("=", " "), sort=float(match["value"]) if match else None),
                    Cell(text=fixed(100 * measure.mean, 1), sort=measure.mean, runs=_sources(row)),
                    Cell(text=interval(low, high, 1) or plural(len(measure.values), "seed")),
                )
            )
    return Table("Accuracy where tasks grow harder", columns, tuple(lines))
