"""What changed since the baseline, and how numbers developed over time."""

from superblock.config.typed import stored
from superblock.evaluation.curve import INK
from superblock.reporting.changepoint import MINIMUM_LENGTH
from superblock.reporting.content import Change, History, NoBaseline, Report
from superblock.reporting.metrics import METRICS
from superblock.reporting.pages import charts
from superblock.reporting.pages.blocks import (
    Block,
    Cell,
    Column,
    Fold,
    Gallery,
    Missing,
    Picture,
    Section,
    Table,
    Words,
)
from superblock.reporting.pages.cells import looks, measured, name_cell, plural, runs_of, verdict
from superblock.reporting.pages.numbers import (
    metric_of,
    metric_text,
    metric_title,
    moment,
    percent,
    percent_interval,
    probability,
)
from superblock.reporting.pages.pictures import BAD, GOOD, colour_of
from superblock.reporting.phrases import group_words

ORDER = ("regressed", "improved", "undecided", "not comparable", "not enough seeds", "missing", "new", "unchanged")
WITHOUT: dict[NoBaseline, tuple[str, str]] = {
    "none earlier": (
        "No earlier report is the baseline, so nothing says what is better or worse than before. This has later reports "
        "compared with the present state:",
        stored("report pin=true"),
    ),
    "not asked for": (
        "A comparison was not asked for (baseline=none). This compares with the pinned baseline:",
        stored("report"),
    ),
    "gone": (
        "The baseline is gone or cannot be read, so nothing says what is better or worse than before. This has later "
        "reports compared with the present state:",
        stored("report pin=true"),
    ),
}
"""Why nothing is compared, and what would."""
SHOWN_HISTORIES = 12
"""Charts at once; the table has all."""


def changes(report: Report) -> Section:
    """Every compared number beside the baseline's."""
    title = "What changed"
    lead = (
        f"Compared with the baseline `{report.baseline}`, paired by seed. A verdict needs a change that is both sure "
        "(Holm-corrected over all comparisons) and large enough to matter."
        if report.baseline
        else "A baseline is an earlier report that is pinned; later ones are compared with it."
    )
    if report.baseline is None:
        return Section("changes", title, lead, (Missing(*WITHOUT[report.no_baseline or "none earlier"]),))
    same = len(report.same_runs)
    alone = f"{plural(same, 'group')} {'is' if same == 1 else 'are'} the very same runs as in the baseline; they are not compared with themselves."
    if not report.changes and same:
        return Section("changes", title, lead, (Words(alone),))
    if not report.changes:
        text = "No number is in both this report and the baseline. A report of the same stages and scale would compare."
        return Section("changes", title, lead, (Missing(text, stored("report select.scale=mini")),))
    ordered = sorted(report.changes, key=lambda change: ORDER.index(change.verdict))
    steady = [change for change in ordered if change.verdict == "unchanged"]
    eventful = [change for change in ordered if change.verdict != "unchanged"]
    blocks: list[Block] = [_table(report, eventful)] if eventful else [Words("Nothing changed beyond chance.")]
    if same:
        blocks.append(Words(alone))
    if steady:
        blocks.append(Fold(f"{plural(len(steady), 'comparison')} without a change", (_table(report, steady),)))
    drawn = [change for change in ordered if change.relative is not None]
    if drawn:
        blocks.append(_picture(report, drawn))
    return Section("changes", title, lead, tuple(blocks))


def _group_name(report: Report, key: str) -> str:
    look = looks(report)
    return look[key].name if key in look else group_words(key)


def _table(report: Report, ordered: list[Change]) -> Table:
    columns = (
        Column("stage and number", "name"), Column("verdict", "words"), Column("change"), Column("before"),
        Column("now"), Column("p (Holm)"), Column("why", "words"),
    )  # fmt: skip
    rows = []
    for change in ordered:
        runs = runs_of(change.after) or runs_of(change.before)
        rows.append(
            (
                name_cell(_group_name(report, change.group), runs, metric_title(change.metric)),
                verdict(change.verdict),
                _relative(change, runs),
                measured(change.metric, change.before),
                measured(change.metric, change.after),
                Cell(text=probability(change.p_adjusted), sort=change.p_adjusted, note=_raw(change)),
                Cell(text=change.words),
            )
        )
    return Table(f"{plural(len(ordered), 'comparison')} with the baseline", columns, tuple(rows))


def _relative(change: Change, runs: tuple[str, ...]) -> Cell:
    """An arrow says which way the number went, the tone whether that is good."""
    if change.relative is None:
        return Cell(text="none", tone="muted")
    arrow = "↑" if change.relative > 0 else "↓" if change.relative < 0 else "→"
    text = percent_interval(change.relative, change.low, change.high)
    value, _, rest = text.partition(" [")
    tone = verdict(change.verdict).tone
    return Cell(text=f"{arrow} {value}", sort=change.relative, note=f"[{rest}" if rest else "", runs=runs, tone=tone)


def _raw(change: Change) -> str:
    return "" if change.p is None or change.p == change.p_adjusted else f"alone {probability(change.p)}"


def _picture(report: Report, drawn: list[Change]) -> Picture:
    """Intervals beside zero, the compared numbers in one picture."""
    colours = {"improved": GOOD, "regressed": BAD}
    bars = [
        charts.Bar(
            f"{_group_name(report, c.group)} {metric_of(c.metric).label}", 100 * (c.relative or 0.0),
            None if c.low is None else 100 * c.low, None if c.high is None else 100 * c.high,
            colours.get(c.verdict, INK),
        )
        for c in drawn[:40]
    ]  # fmt: skip
    words = "; ".join(
        f"{_group_name(report, c.group)} {metric_of(c.metric).label} {percent_interval(c.relative or 0.0, c.low, c.high)}, {c.verdict}"
        for c in drawn[:40]
    )
    return Picture(
        "changes",
        lambda: charts.intervals(bars, "change against the baseline, %"),
        "Relative changes with 95 % intervals. Green is better, red is worse, grey is neither; for bits per byte and memory, left is better.",
        f"Changes against the baseline. {words}.",
    )


def history(report: Report) -> Section:
    """Charts over time with change points."""
    lead = (
        "Older runs of the same configuration, on one machine and one text, oldest first. A dashed line is the mean of a "
        "stretch; an upright line marks a change that is more than chance."
    )
    if not report.histories:
        text = "No configuration was run often enough on one machine to have a history. Scheduled reports make one:"
        command = stored("report 'schedule.cron=\"0 6 * * 1\"' schedule.install=true")
        return Section("history", "History", lead, (Missing(text, command),))
    ordered = sorted(report.histories, key=lambda one: (not one.alarm, one.change_at is None))
    drawn = [one for one in ordered if len(one.points) >= MINIMUM_LENGTH][:SHOWN_HISTORIES]
    blocks: list[Block] = [Gallery(tuple(_chart(report, one, i) for i, one in enumerate(drawn)))] if drawn else []
    table = _histories(report, ordered)
    if drawn:
        blocks += [table, Fold("Every point of every history", (_points(report, ordered),))]
    else:
        text = f"No history has the {MINIMUM_LENGTH} points yet from which a change can be told from noise."
        blocks += [Words(text), Fold("The histories so far", (table,))]
    return Section("history", "History", lead, tuple(blocks))


def _chart(report: Report, one: History, place: int) -> Picture:
    scale = metric_of(one.metric).scale if one.metric in METRICS else 1.0
    points = [(point.time, point.value * scale) for point in one.points]
    stage = next((group.stage for group in report.groups if group.key == one.group), one.group.split("/")[-2:][0])
    name = f"{_group_name(report, one.group)}: {metric_title(one.metric)}"
    state = "alarm: " if one.alarm else ""
    first, last = (metric_text(one.metric, one.points[i].value) for i in (0, -1)) if one.points else ("", "")
    return Picture(
        f"history-{place + 1}",
        lambda: charts.history(points, one.change_at, metric_title(one.metric), colour_of(stage), one.alarm),
        f"{name}. {state}{one.words}",
        f"History of {name}, {plural(len(points), 'point')}, from {first} to {last}. {state}{one.words}",
    )


def _histories(report: Report, ordered: list[History]) -> Table:
    columns = (
        Column("stage and number", "name"), Column("state", "words"), Column("points"), Column("last"),
        Column("change"), Column("machine", "words"), Column("in words", "words"),
    )  # fmt: skip
    rows = []
    for one in ordered:
        last = one.points[-1] if one.points else None
        rows.append(
            (
                name_cell(_group_name(report, one.group), last.runs if last else (), metric_title(one.metric)),
                Cell(text="! alarm", tone="bad") if one.alarm
                else Cell(text="~ changed", tone="unsure") if one.change_at is not None
                else Cell(text="= steady", tone="muted") if len(one.points) >= MINIMUM_LENGTH
                else Cell(text="… too short", tone="unsure"),
                Cell(text=str(len(one.points)), sort=len(one.points)),
                Cell(text=metric_text(one.metric, last.value), sort=last.value, runs=last.runs) if last else Cell(),
                Cell(text=percent(one.relative), sort=one.relative) if one.relative is not None else Cell(text="none", tone="muted"),
                Cell(text=one.machine, code=True),
                Cell(text=one.words),
            )
        )  # fmt: skip
    return Table("Histories: alarms first, then changes", columns, tuple(rows))


def _points(report: Report, ordered: list[History]) -> Table:
    columns = (
        Column("stage and number", "name"),
        Column("when", "words"),
        Column("value"),
        Column("commit", "words"),
    )
    rows = [
        (
            name_cell(_group_name(report, one.group), point.runs, metric_title(one.metric)),
            Cell(text=moment(point.time), sort=point.time),
            Cell(text=metric_text(one.metric, point.value), sort=point.value, runs=point.runs,
                 note="first after the change" if i == one.change_at else ""),
            Cell(text=point.commit[:12] or "unknown", code=True),
        )
        for one in ordered
        for i, point in enumerate(one.points)
    ]  # fmt: skip
    return Table("Every point", columns, tuple(rows))
