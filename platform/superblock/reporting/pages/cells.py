"""Numbers of a report as cells of tables: formatted, and linked to the runs that they come from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from superblock.reporting.content import Group, Measure, Report
from superblock.reporting.pages.blocks import Cell, Tone
from superblock.reporting.pages.escaping import anchor
from superblock.reporting.pages.numbers import count, fixed, interval, metric_interval, metric_text, prefixed
from superblock.reporting.pages.pictures import colour_of
from superblock.reporting.phrases import plural as plural

VERDICTS: dict[str, tuple[str, Tone]] = {
    "improved": ("▲", "good"),
    "regressed": ("▼", "bad"),
    "unchanged": ("=", "muted"),
    "undecided": ("?", "unsure"),
    "not enough seeds": ("…", "unsure"),
    "not comparable": ("≠", "unsure"),
    "new": ("+", "muted"),
    "missing": ("∅", "unsure"),
    "passed": ("✓", "good"),
    "held": ("✓", "good"),
    "failed": ("✗", "bad"),
    "not held": ("✗", "unsure"),
}
"""A sign and a tone for each verdict; the word stands beside it, always."""
NOTHING = Cell(text="not measured", tone="muted")


@dataclass(frozen=True)
class Look:
    """How a group is told apart from the others, everywhere on the page."""

    name: str
    colour: str
    mark: int
    dashed: int


def looks(report: Report) -> dict[str, Look]:
    """A short name, the stage's colour, a mark per stage and a kind of line per arm, by the group's key."""
    stages = list(dict.fromkeys(group.stage for group in report.groups))
    kinds = list(dict.fromkeys((group.scale, group.arm, group.data_digest) for group in report.groups))
    names = [_name(group, report.groups) for group in report.groups]
    return {
        group.key: Look(
            name if names.count(name) == 1 else group.key,
            colour_of(group.stage),
            stages.index(group.stage),
            kinds.index((group.scale, group.arm, group.data_digest)),
        )
        for group, name in zip(report.groups, names, strict=True)
    }


def _name(group: Group, groups: Sequence[Group]) -> str:
    """The stage, with arm and scale where they differ within the report."""
    parts = [group.stage]
    if len({other.scale for other in groups}) > 1:
        parts.append(group.scale)
    if len({other.arm for other in groups}) > 1:
        parts.append(group.arm)
    return " ".join(parts)


def runs_of(measure: Measure | None) -> tuple[str, ...]:
    """The runs or records behind a number, each once."""
    return tuple(dict.fromkeys(value.run for value in measure.values)) if measure else ()


def name_cell(text: str, runs: Iterable[str] = (), note: str = "") -> Cell:
    """The first cell of a row; leads to its runs in the table of sources."""
    return Cell(text=text, runs=tuple(runs), note=note)


def measured(metric: str, measure: Measure | None) -> Cell:
    """Mean of a metric, its interval below."""
    if measure is None:
        return NOTHING
    return Cell(
        text=metric_text(metric, measure.mean),
        sort=measure.mean,
        note=metric_interval(metric, measure),
        runs=runs_of(measure),
    )


def number(
    measure: Measure | None, digits: int, *, scale: float = 1.0, runs: tuple[str, ...] = (), heat: float | None = None
) -> Cell:
    """Mean of anything over seeds, times `scale`, its interval below."""
    if measure is None:
        return NOTHING
    low, high = (None if end is None else end * scale for end in (measure.low, measure.high))
    return Cell(
        text=fixed(measure.mean * scale, digits),
        sort=measure.mean,
        note=interval(low, high, digits),
        runs=runs or runs_of(measure),
        heat=heat,
    )


def counted(value: float | None, runs: tuple[str, ...], note: str = "") -> Cell:
    """Parameters or tokens."""
    if value is None:
        return NOTHING
    return Cell(text=count(value), sort=value, note=note, runs=runs)


def flops(value: float | None, runs: tuple[str, ...]) -> Cell:
    """Floating-point operations: 61.3 TFLOP."""
    return NOTHING if value is None else Cell(text=f"{prefixed(value)}FLOP", sort=value, runs=runs)


def verdict(word: str) -> Cell:
    """Sign, word and tone of a verdict."""
    sign, tone = VERDICTS.get(word, ("·", "muted"))
    return Cell(text=f"{sign} {word}", tone=tone)


def seeds(measure: Measure | None) -> str:
    """`3 seeds`."""
    if measure is None:
        return ""
    return plural(len({value.seed for value in measure.values}), "seed")


def source_link(names: Sequence[str], known: Mapping[str, object]) -> str:
    """Where a number's origin is described: the first of its runs that the report describes."""
    return next((f"#{anchor(name)}" for name in names if name in known), "")
