"""How the compared numbers of a group went over time, and whether the latest state is worse.

A series holds runs of one scale, stage, arm, machine and text. Its points are occasions: runs of one commit that follow
each other within hours, each seed once. Seeds differ by more than most changes do (0.5 % of bits per byte at `mini`), so
first each seed's own level, as seen within the occasions that have several seeds, is taken off. The mean over an
occasion is its quality; its speed and memory are medians, since a busy machine slows single runs down. Runs of one
occasion share the state of the machine: they are one point, not three.

`changepoint` finds the last change of level. It is an alarm if

    it is to the worse, its 95 % interval reaches the minimum effect (the rule of `comparing`),
    the last three points all lie beyond half of the minimum effect from the level before, and
    it is younger than the pinned baseline, whose pinning says that the state was accepted.

So a single slow point is none, nor is a change that was reverted since. A drift in several steps counts as one change.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median

import numpy as np

from superblock.reporting.changepoint import MINIMUM_AFTER, MINIMUM_LENGTH, Fit, Shift, fit
from superblock.reporting.content import History, Point
from superblock.reporting.facts import RunFacts
from superblock.reporting.metrics import COMPARED, METRICS, MINIMUM_EFFECT, Kind, Metric
from superblock.reporting.phrases import change_words, date, percent, share

OCCASION = 6 * 3600.0
"""Seconds between the end of a run and the start of the next, beyond which they are two occasions."""


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
    series: dict[tuple[str, str, str], list[RunFacts]] = defaultdict(list)
    for run in finished:
        series[f"{run.scale}/{run.stage}/{run.arm}", run.machine, run.data_digest].append(run)
    several_texts = len({text for _, _, text in series}) > 1
    found = []
    for (group, machine, text), members in series.items():
        name = f"{group}/{text}" if several_texts else group
        for metric in (METRICS[name] for name in COMPARED):
            points = tuple(_points(members, metric))
            if points:
                found.append(_history(name, metric, machine, points, effects[metric.kind], known_until))
    return tuple(sorted(found, key=lambda each: (each.group, COMPARED.index(each.metric), each.machine)))


def occasions(runs: Sequence[RunFacts]) -> list[list[RunFacts]]:
    """Runs of one commit within hours, each seed once; a seed that comes again begins the next occasion.

    Args:
        runs: oldest first.
    """
    found: list[list[RunFacts]] = []
    for run in runs:
        last = found[-1] if found else []
        if (
            last
            and (last[-1].commit, last[-1].dirty) == (run.commit, run.dirty)
            and run.seed not in {other.seed for other in last}
            and run.started - (last[-1].ended or last[-1].started) <= OCCASION
        ):
            last.append(run)
        else:
            found.append([run])
    return found


def seed_levels(values: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """How far each seed lies from the mean of the seeds, by least squares over occasions and seeds.

    Only occasions with several seeds tell: across occasions a seed's level and a change over time look alike.

    Args:
        values: of every occasion by seed, logarithms.

    Returns:
        By seed, 0 for one that never ran beside another.
    """
    shared = [by_seed for by_seed in values if len(by_seed) > 1]
    seeds = sorted({seed for by_seed in shared for seed in by_seed})
    rows, targets = [], []
    for by_seed in shared:
        own = np.array([seed in by_seed for seed in seeds], float) / len(by_seed)
        for seed, value in by_seed.items():
            rows.append(np.eye(len(seeds))[seeds.index(seed)] - own)
            targets.append(value - fmean(by_seed.values()))
    levels = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0].tolist() if rows else []
    return defaultdict(float, zip(seeds, levels, strict=True))


def _points(runs: Sequence[RunFacts], metric: Metric) -> Iterator[Point]:
    """The occasions at which the metric was measured."""
    measured = [run for run in runs if run.results.get(metric.name, 0.0) > 0]
    groups = occasions(measured)
    values = [{run.seed: math.log(run.results[metric.name]) for run in group} for group in groups]
    levels = seed_levels(values)
    middle = fmean if metric.kind == "quality" else median
    for group, by_seed in zip(groups, values, strict=True):
        value = math.exp(middle([logarithm - levels[seed] for seed, logarithm in by_seed.items()]))
        yield Point(group[0].started, value, group[0].commit, tuple(run.name for run in group))


def _history(
    group: str, metric: Metric, machine: str, points: tuple[Point, ...], effect: float, known_until: float | None
) -> History:
    logs = [math.log(point.value) for point in points]
    found, worse = fit(logs), 1.0 if metric.better == "lower" else -1.0
    shift = found.shift if found else None
    if found is None or shift is None or max(abs(shift.low), abs(shift.high)) < math.log1p(effect):
        words = _quiet_words(logs, found, metric, effect)
        return History(group, metric.name, machine, points, None, None, False, words)
    beyond = shift.size * worse > 0 and all(
        (value - shift.level) * worse >= math.log1p(effect) / 2 for value in logs[-MINIMUM_AFTER:]
    )
    accepted = known_until is not None and points[shift.began].time <= known_until
    words = _shift_words(shift, points[shift.began], metric)
    if shift.size * worse <= 0:
        words = f"better: {words}"
    elif accepted:
        words = f"worse, and accepted since by the pinned baseline: {words}"
    elif not beyond:
        words = f"worse, but the last {MINIMUM_AFTER} points do not all lie beyond half of the {share(effect)} that count: {words}"
    else:
        words = f"worse: {words}"
    relative = math.expm1(shift.size)
    return History(group, metric.name, machine, points, shift.began, relative, beyond and not accepted, words)


def _shift_words(shift: Shift, first: Point, metric: Metric) -> str:
    moved = change_words(math.expm1(shift.size), math.expm1(shift.low), math.expm1(shift.high), metric)
    steps = f", in {shift.steps} steps" if shift.steps > 1 else ""
    commit = f"commit {first.commit[:8]}" if first.commit else "an unknown commit"
    return f"{moved} since {date(first.time)}, {commit}{steps}; p = {shift.p:.2g}"


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
        "points in four of five cases"
    )
