"""Stages side by side: tables, predictions, pictures of quality against cost, and how they learnt."""

from collections.abc import Callable

from superblock.config.typed import stored
from superblock.reporting.content import Group, Measure, Predicted, Report, SeedValue
from superblock.reporting.metrics import METRICS
from superblock.reporting.pages import charts
from superblock.reporting.pages.blocks import Block, Cell, Column, Fold, Gallery, Missing, Picture, Section, Table
from superblock.reporting.pages.cells import (
    NOTHING,
    Look,
    counted,
    flops,
    looks,
    measured,
    metric_text,
    name_cell,
    plural,
)
from superblock.reporting.pages.numbers import count, fixed, metric_title, prefixed, significant

QUALITY = "test/bits_per_byte"
SPEED = "final/tokens_per_second"
SHOWN_FIRST = (QUALITY, "test/accuracy_top1")
SHOWN_LAST = (SPEED, "final/memory_peak_mib")
"""Columns beside the costs; every other measure is among those of every seed."""
TRAIN = stored("run stage=all scale=mini seed=1,2,3 --multirun")
PREDICTIONS = {
    "bits_per_byte": ("bits per byte", 1.0, 4),
    "minutes": ("minutes of training", 1.0, 2),
    "minutes_in_all": ("minutes in all", 1.0, 2),
    "memory_bytes": ("peak memory, MiB", 1 / 2**20, 0),
}
REFERENCES = {"unigram": "unigram", "trigram": "trigram", "xz": "xz -9e"}


def stages(report: Report) -> Section:
    """What each stage cost and how good it became."""
    lead = (
        "Means over seeds (of speed and memory geometric) with the 95 % interval of the mean below; tokens and FLOPs are those of the whole lineage, "
        "from the first stage on. Every number leads to the runs it comes from."
    )
    if not report.groups:
        return Section("stages", "Stages side by side", lead, (Missing("No finished run is in this report.", TRAIN),))
    blocks: list[Block] = [_table(report), *_pictures(report), *_predicted(report), _every_seed(report)]
    return Section("stages", "Stages side by side", lead, tuple(blocks))


def learning(report: Report) -> Section:
    """Learning curves, a picture per metric."""
    lead = "Over the tokens of the lineage: the line is the mean over seeds, the band reaches from the smallest to the largest seed."
    look = looks(report)
    metrics = dict.fromkeys(curve.metric for group in report.groups for curve in group.curves if curve.tokens)
    if not metrics:
        return Section("learning", "Learning curves", lead, (Missing("No run recorded a curve.", TRAIN),))
    return Section("learning", "Learning curves", lead, tuple(_curve(report, metric, look) for metric in metrics))


def _curve(report: Report, metric: str, look: dict[str, Look]) -> Picture:
    pairs = [(group, c) for group in report.groups for c in group.curves if c.metric == metric and c.tokens]
    series = [
        charts.Line(
            look[group.key].name,
            tuple(charts.Dot(*dot) for dot in zip(c.tokens, c.mean, c.low, c.high, strict=True)),
            look[group.key].colour, look[group.key].mark, dashed=look[group.key].dashed,
        )
        for group, c in pairs
    ]  # fmt: skip
    bits = metric.endswith("bits_per_byte")
    title = ("validation " if metric.startswith("val/") else "training " if metric.startswith("train/") else "") + (
        metric_title(metric)
    )
    ends = "; ".join(
        f"{look[group.key].name} {significant(c.mean[-1], 4)} after {count(c.tokens[-1])} tokens ({plural(c.seeds, 'seed')})"
        for group, c in pairs
    )
    return Picture(
        f"learning-{metric.replace('/', '-')}",
        lambda: charts.bands(series, "tokens of the lineage", title, references(report) if bits else ()),
        f"{title[0].upper()}{title[1:]} while training; the last points: {ends}.",
        f"Learning curves of {title}. {ends}.",
    )


def references(report: Report) -> tuple[tuple[str, float], ...]:
    """What simpler models need for the text, where all groups have the same one."""
    found = {tuple(group.references.items()) for group in report.groups if group.references}
    if len(found) != 1:
        return ()
    values = dict(found.pop())
    return tuple(
        (f"{title} {values[name]:.3f}", values[name])
        for name, title in REFERENCES.items()
        if name in values and name != "unigram"
    )


def _table(report: Report) -> Table:
    look = looks(report)
    columns = (
        Column("stage", "name"), *(Column(metric_title(name)) for name in SHOWN_FIRST), Column("parameters"), Column("tokens"),
        Column("FLOPs"), *(Column(metric_title(name)) for name in SHOWN_LAST), Column("seeds"),
    )  # fmt: skip
    rows = []
    for group in report.groups:
        note = plural(group.superblocks, "superblock") if group.superblocks else ""
        rows.append(
            (
                name_cell(look[group.key].name, group.runs, note),
                *(measured(name, group.measures.get(name)) for name in SHOWN_FIRST),
                counted(group.parameters, group.runs, _active(group)),
                counted(group.training_tokens, group.runs),
                flops(group.flops, group.runs),
                *(measured(name, group.measures.get(name)) for name in SHOWN_LAST),
                _seeds(group),
            )
        )
    return Table(
        f"Quality and cost of {plural(len(report.groups), 'group')} of runs" + _reference_words(report),
        columns,
        tuple(rows),
    )


def _seeds(group: Group) -> Cell:
    """How many seeds the means are over, and how many runs where a seed has several."""
    number = len({value.seed for measure in group.measures.values() for value in measure.values}) or len(group.runs)
    note = plural(len(group.runs), "run") if len(group.runs) > number else ""
    return Cell(text=str(number), sort=number, note=note, runs=group.runs)


def _active(group: Group) -> str:
    return "" if group.active_parameters is None else f"{count(group.active_parameters)} active"


def _reference_words(report: Report) -> str:
    found = {tuple(group.references.items()) for group in report.groups if group.references}
    if len(found) != 1:
        return ""
    values = dict(found.pop())
    named = [f"{title} {fixed(values[name], 4)}" for name, title in REFERENCES.items() if name in values]
    return ". For comparison, bits per byte of the same text: " + ", ".join(named)


def _pictures(report: Report) -> list[Block]:
    ways: tuple[tuple[str, str, str, Callable[[Group], float | None], str], ...] = (
        ("parameters", "parameters", "count", lambda group: group.parameters, ""),
        ("tokens", "tokens of the lineage", "count", lambda group: group.training_tokens, ""),
        ("flops", "FLOPs of the lineage", "unit", lambda group: group.flops, "FLOP"),
        ("speed", "training speed, tokens/s", "count", _speed, " tokens/s"),
    )
    found = [_against(report, *way) for way in ways]
    pictures = tuple(picture for picture in found if picture)
    if not pictures:
        return [Missing("No run has a test result to draw.", TRAIN)]
    return [Gallery(pictures)]


def _speed(group: Group) -> float | None:
    measure = group.measures.get(SPEED)
    return measure.mean if measure else None


def _against(
    report: Report, name: str, title: str, units: str, cost: Callable[[Group], float | None], unit: str
) -> Picture | None:
    """Quality against one cost; None if no group has both."""
    look = looks(report)
    known: list[tuple[Group, float, Measure]] = []
    for group in report.groups:
        x, y = cost(group), group.measures.get(QUALITY)
        if x and x > 0 and y:
            known.append((group, x, y))
    if not known:
        return None
    series = [
        charts.Line(
            look[group.key].name, (charts.Dot(x, y.mean, y.low, y.high),), look[group.key].colour,
            look[group.key].mark, joined=False,
        )
        for group, x, y in known
    ]  # fmt: skip
    shown = prefixed if units == "unit" else count
    values = "; ".join(
        f"{look[group.key].name}: {shown(x)}{unit}, {metric_text(QUALITY, y.mean)}" for group, x, y in known
    )
    return Picture(
        f"quality-{name}",
        lambda: charts.lines(
            series, title, "bits per byte, test", logarithmic=True, units=units, references=references(report)
        ),
        f"Bits per byte of the test text against {title}; fewer is better. Bars are 95 % intervals over seeds.",
        f"Bits per byte against {title}. {values}.",
    )


def _predicted(report: Report) -> list[Block]:
    look = looks(report)
    metrics = dict.fromkeys(one.metric for group in report.groups for one in group.predicted)
    if not metrics:
        command = stored("run stage=mvp2")
        return [
            Missing(
                "No prediction was made before these runs; a stage's run makes one from the stages before it.", command
            )
        ]
    columns = (Column("stage", "name"), *(Column(_prediction_title(metric), "words") for metric in metrics))
    rows = []
    for group in report.groups:
        known = {one.metric: one for one in group.predicted}
        if known:
            cells = (_prediction(group, known[metric]) if metric in known else NOTHING for metric in metrics)
            rows.append((name_cell(look[group.key].name, group.runs), *cells))
    caption = (
        "Predicted before training, and what came: below each measured number its prediction, the 80 % interval of that, and how "
        "many seeds came inside. Seeds without a prediction are left out of the row, also of what was measured"
    )
    return [Table(caption, columns, tuple(rows))]


def _prediction_title(metric: str) -> str:
    return PREDICTIONS[metric][0] if metric in PREDICTIONS else metric.replace("_", " ")


def _prediction(group: Group, one: Predicted) -> Cell:
    _, scale, digits = PREDICTIONS.get(one.metric, ("", 1.0, 4))
    bounds = f"[{fixed(one.low * scale, digits)}, {fixed(one.high * scale, digits)}]"
    return Cell(
        text=fixed(one.measured * scale, digits), sort=one.measured, runs=group.runs,
        note=f"{fixed(one.value * scale, digits)} {bounds}, {one.inside} of {one.seeds} inside",
        tone="good" if one.inside == one.seeds else "unsure",
    )  # fmt: skip


def _of_seed(metric: str, values: list[SeedValue]) -> Cell:
    """What a seed's runs measured, one below the other."""
    if not values:
        return NOTHING
    first, *others = values
    note = ", ".join(metric_text(metric, one.value) for one in others)
    return Cell(text=metric_text(metric, first.value), sort=first.value, note=note, runs=tuple(v.run for v in values))


def _every_seed(report: Report) -> Fold:
    """Each run's own numbers, which the means above hide."""
    look = looks(report)
    numbers = sorted({value.seed for group in report.groups for m in group.measures.values() for value in m.values})
    columns = (
        Column("stage", "name"),
        Column("what", "words"),
        Column("mean"),
        *(Column(f"seed {seed}") for seed in numbers),
    )
    rows = []
    for group in report.groups:
        for metric, measure in group.measures.items():
            cells = [_of_seed(metric, [one for one in measure.values if one.seed == seed]) for seed in numbers]
            title = Cell(text=metric_title(metric), note="" if metric in METRICS else metric)
            rows.append((name_cell(look[group.key].name, group.runs), title, measured(metric, measure), *cells))
    return Fold("Every seed's numbers", (Table("Every measure of every run", columns, tuple(rows)),))
