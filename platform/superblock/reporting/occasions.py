"""Points of a history: runs of one commit that follow each other within hours, without what their seeds differ by.

Seeds differ by more than most changes do (0.5 % of bits per byte at `mini`): each seed's own level, as seen within the
occasions that have several seeds, is taken off. The mean over an occasion is its quality; its speed and memory are
medians, since a busy machine slows single runs down. Runs of one occasion share the state of the machine: they are one
point, not three.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median

import numpy as np

from superblock.reporting.content import Point
from superblock.reporting.facts import RunFacts
from superblock.reporting.metrics import Metric

OCCASION = 6 * 3600.0
"""Seconds between the end of a run and the start of the next, beyond which they are two occasions."""


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


def points(runs: Sequence[RunFacts], metric: Metric) -> Iterator[Point]:
    """The occasions at which the metric was measured."""
    measured = [run for run in runs if run.results.get(metric.name, 0.0) > 0]
    groups = occasions(measured)
    values = [{run.seed: math.log(run.results[metric.name]) for run in group} for group in groups]
    levels = seed_levels(values)
    middle = fmean if metric.kind == "quality" else median
    for group, by_seed in zip(groups, values, strict=True):
        value = math.exp(middle([logarithm - levels[seed] for seed, logarithm in by_seed.items()]))
        yield Point(group[0].started, value, group[0].commit, tuple(run.name for run in group))
