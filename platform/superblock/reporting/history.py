"""How the compared numbers of a group went over time, and whether the latest state is worse.

A series holds runs of one scale, stage, arm, configuration, machine and text; a changed setting begins a series of its
own, and shows beside the baseline. Its points are `occasions`. `changepoint` finds the last change of level. It is an
alarm if

    it is to the worse, and its 95 % interval reaches the minimum effect (the rule of `comparing`),
    the last three points all lie beyond half of the minimum effect from the level before, and
    it is younger than the pinned baseline, whose pinning says that the state was accepted.

So a single slow point is none, nor is a change that was reverted since. A drift in several steps counts as one change.

Measured over 1,000 made-up histories a cell (reports/records/2026-11-21-detection.md): at most 4.4 % alarms where nothing
changed, whatever the noise; below 1 % where it is normal. A change of just the minimum effect with three points behind it
is found in 92 % (10 points) to 98 % (50) if points vary by a fifth of the effect (1 % of speed), in about half if they vary
by two fifths, and hardly if they vary by the whole. Speed on a busy machine does: what each history would find is in its
words.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from superblock.reporting.changepoint import MINIMUM_AFTER, MINIMUM_LENGTH, Fit, Shift, fit
from superblock.reporting.content import History, Point
from superblock.reporting.facts import RunFacts
from superblock.reporting.metrics import COMPARED, METRICS, MINIMUM_EFFECT, Kind, Metric
from superblock.reporting.occasions import points
from superblock.reporting.phrases import change_words, date, is_worse, p_words, percent, share
from superblock.reporting.selection import conflict, differing, recorded


def histories(
    runs: Sequence[RunFacts], *, effects: Mapping[Kind, float] = MINIMUM_EFFECT, known_until: float | None = None
) -> tuple[History, ...]:
    """Every series that the finished runs hold, in order of group, metric and machine.

    Args:
        runs: in any order.
        effects: smallest relative change that counts, by kind.
        known_until: when the pinned baseline's newest run ended, seconds since 1970; what changed before was accepted.
    """
    finished = sorted((run for run in runs if run.status == "FINISHED"), key=lambda run: (run.started, run.name))
    several_texts = len({run.data_digest for run in finished}) > 1
    places: dict[tuple[str, ...], list[RunFacts]] = defaultdict(list)
    for run in finished:
        places[run.scale, run.stage, run.arm, run.data_digest].append(run)
    found = []
    for (*names, text), members in places.items():
        plain = "/".join([*names, text[:8] or "unknown"] if several_texts else names)
        for other, like in _configurations(members):
            machines = {run.machine for run in like}
            for machine, metric in product(sorted(machines), (METRICS[name] for name in COMPARED)):
                found_points = tuple(points([run for run in like if run.machine == machine], metric))
                if found_points:
                    group = f"{plain}/{other}" if other else plain
                    found.append(_history(group, metric, machine, found_points, effects[metric.kind], known_until))
    return tuple(sorted(found, key=lambda each: (each.group, COMPARED.index(each.metric), each.machine)))


def _configurations(runs: Sequence[RunFacts]) -> Iterator[tuple[str, list[RunFacts]]]:
    """Runs by configuration, the newest's first, each with how it differs from that.

    Two are one configuration unless they are in `conflict`.

    Args:
        runs: of one place, oldest first.
    """
    rest, newest = list(runs), recorded(runs[-1])
    while rest:
        head = recorded(rest[-1])
        like = [run for run in rest if not conflict(head, recorded(run))]
        yield (differing(newest, head) if head != newest else ""), like
        rest = [run for run in rest if conflict(head, recorded(run))]


@dataclass(frozen=True)
class Judged:
    """What a series shows."""

    fit: Fit | None
    """None while it is too short."""
    shift: Shift | None
    """The last change, if it counts."""
    worse: bool
    lasting: bool
    """Whether the last points all lie beyond half of the minimum effect from the level before."""

    @property
    def alarm(self) -> bool:
        return self.worse and self.lasting


def judge(logs: Sequence[float], metric: Metric, effect: float) -> Judged:
    """Finds the last change and says whether it is to the worse and lasts.

    Args:
        logs: [T] logarithms of the values, oldest first.
        metric: which they are of.
        effect: smallest relative change that counts.
    """
    found, smallest = fit(logs), math.log1p(effect)
    shift = found.shift if found else None
    if shift is None or max(abs(shift.low), abs(shift.high)) < smallest:
        return Judged(found, None, False, False)
    side = math.copysign(1.0, shift.size)
    lasting = all((value - shift.level) * side >= smallest / 2 for value in logs[-MINIMUM_AFTER:])
    return Judged(found, shift, is_worse(shift.size, metric), lasting)


def _history(
    group: str, metric: Metric, machine: str, series: tuple[Point, ...], effect: float, known_until: float | None
) -> History:
    logs = [math.log(point.value) for point in series]
    judged = judge(logs, metric, effect)
    shift = judged.shift
    if shift is None:
        words = _quiet_words(logs, judged.fit, metric, effect)
        return History(group, metric.name, machine, series, None, None, False, words)
    first = series[shift.began]
    accepted = known_until is not None and first.time <= known_until
    words = f"{'worse' if judged.worse else 'better'}: {_shift_words(shift, first, metric)}"
    if not judged.lasting:
        words += f"; the last {MINIMUM_AFTER} points do not all lie beyond half of the {share(effect)} that count"
    elif judged.worse and accepted:
        words += "; accepted since by the pinned baseline"
    alarm = judged.alarm and not accepted
    return History(group, metric.name, machine, series, shift.began, math.expm1(shift.size), alarm, words)


def _shift_words(shift: Shift, first: Point, metric: Metric) -> str:
    moved = change_words(math.expm1(shift.size), math.expm1(shift.low), math.expm1(shift.high), metric)
    steps = f", in {shift.steps} steps" if shift.steps > 1 else ""
    commit = f"commit {first.commit[:8]}" if first.commit else "an unknown commit"
    return f"{moved} since {date(first.time)}, {commit}{steps}; {p_words(shift.p)}"


def _quiet_words(logs: Sequence[float], found: Fit | None, metric: Metric, effect: float) -> str:
    """Why there is no change to speak of, and which one would have been found."""
    points = f"{len(logs)} point{'s' if len(logs) != 1 else ''}"
    if found is None:
        return f"{points} so far; a change needs {MINIMUM_LENGTH} to be told from noise"
    alone = f", without {len(found.outliers)} that stand alone" if found.outliers else ""
    small = ""
    if found.shift:
        small = f" but {percent(math.expm1(found.shift.size), metric)}, less than the {share(effect)} that count"
    seen = percent(math.expm1(found.detectable(math.log1p(effect))), metric, sign=False)
    noise = percent(math.expm1(found.noise), metric, sign=False)
    return (
        f"no change{small} over {points} that vary by {noise}{alone}; one of {seen} would be found from {MINIMUM_AFTER} "
        f"points in four of five cases{_watched(logs, found, metric, effect)}"
    )


def _watched(logs: Sequence[float], found: Fit, metric: Metric, effect: float) -> str:
    """Says so where the newest points, too few for an alarm, are worse by more than the noise."""
    least = max(math.log1p(effect) / 2, 3 * found.noise)
    away = [value - found.level for value in logs[-MINIMUM_AFTER:]]
    worse = [abs(one) >= least and is_worse(one, metric) for one in away]
    count = next((n for n, one in enumerate(reversed(worse)) if not one), 0)
    if not count:
        return ""
    last, missing = ("point is", "two more") if count == 1 else (f"{count} points are", "a third")
    return f"; the last {last} worse, {missing} would be an alarm"
