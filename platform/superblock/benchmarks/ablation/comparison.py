"""Arms compared seed by seed: only runs of one seed share their data's order and their initial weights."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from superblock.benchmarks.ablation.plan import Entries
from superblock.evaluation.statistics import Interval, holm, paired_interval, paired_p_value

LEVEL = 0.05

Values = Mapping[int, float]
"""A measured value by seed."""


@dataclass(frozen=True)
class Comparison:
    """`a - b` over the seeds that both have."""

    a: str
    b: str
    seeds: tuple[int, ...]
    interval: Interval
    p: float
    """Of the paired t test, for this comparison alone."""

    def plain(self, adjusted: float | None = None) -> dict[str, Any]:
        """As JSON."""
        return {**plain_interval(self.interval), "seeds": list(self.seeds), "p": self.p, "p_holm": adjusted}


def plain_interval(interval: Interval) -> dict[str, Any]:
    """As JSON; bounds that one value does not allow are null."""
    low, high = (bound if math.isfinite(bound) else None for bound in (interval.low, interval.high))
    return {"mean": interval.mean, "low": low, "high": high, "n": interval.n}


def values(entries: Entries, group: str, arm: str, key: str = "test") -> dict[int, float]:
    """A result of an arm's finished runs by seed."""
    found = [entry for entry in entries.values() if (entry["group"], entry["arm"]) == (group, arm)]
    return {int(entry["seed"]): float(entry[key]) for entry in found}


def exit_values(entries: Entries, group: str, arm: str, depth: int) -> dict[int, float]:
    """Bits per byte of an exit by seed."""
    found = [entry for entry in entries.values() if (entry["group"], entry["arm"]) == (group, arm)]
    return {int(entry["seed"]): float(entry["exits"][str(depth)]) for entry in found if str(depth) in entry["exits"]}


def compare(a: str, a_values: Values, b: str, b_values: Values) -> Comparison | None:
    """`a - b`; None where no seed is in both, or a value is not finite."""
    seeds = tuple(sorted(set(a_values) & set(b_values)))
    pairs = [(a_values[seed], b_values[seed]) for seed in seeds]
    if not pairs or not all(math.isfinite(x) and math.isfinite(y) for x, y in pairs):
        return None
    left, right = [x for x, _ in pairs], [y for _, y in pairs]
    return Comparison(a, b, seeds, paired_interval(left, right), paired_p_value(left, right))


def relative(a: Values, b: Values) -> dict[int, float]:
    """`a / b - 1` by seed, where both are known."""
    return {seed: a[seed] / b[seed] - 1 for seed in sorted(set(a) & set(b))}


def adjusted(comparisons: Iterable[tuple[str, Comparison]]) -> dict[str, float]:
    """p values by name, adjusted (Holm) for all comparisons of the family."""
    return holm({name: comparison.p for name, comparison in comparisons})


def decided(comparison: Comparison, p_adjusted: float) -> bool:
    """Whether the interval excludes 0, and still would if all comparisons of the family were counted."""
    interval = comparison.interval
    return p_adjusted < LEVEL and (interval.low > 0 or interval.high < 0)


def mean(found: Values) -> float | None:
    """The mean over seeds; None without any."""
    return fmean(found.values()) if found else None
