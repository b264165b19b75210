"""The last change of level in a series of a few dozen noisy values, and how sure it is.

The series is modelled as constant between changes. Least squares finds the best places for every number of changes
(Jackson and others 2005); the largest number is kept whose steps all pass Student's t test, with the noise pooled over the
stretches and p multiplied by the number of places a step could have (Bonferroni), since the best place was looked for.
Single values far from their neighbours (a busy machine) are left out before. What this detects, and how often it is
wrong, is measured by tests/reporting/detection_rates.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from superblock.evaluation.statistics import t_quantile, t_tail

MINIMUM_BEFORE = 2
MINIMUM_AFTER = 3
"""Values on each side of a change. Three behind it: one or two slow runs are no state."""
MINIMUM_LENGTH = MINIMUM_BEFORE + MINIMUM_AFTER
LEVEL = 0.01
"""Chance of finding a change where there is none, if the noise is normal; half of it for a change to the worse."""
MOST_CHANGES = 6
OUTLIER = 5.0
"""Deviations from the running median beyond which a value stands alone."""
MOST_ALIKE = 0.8
"""Largest correlation of neighbours that is believed."""
FLOOR = 1e-6
"""Smallest deviation of the noise: a deterministic run repeats its value to the last digit."""


@dataclass(frozen=True)
class Shift:
    """The last lasting change of a series of logarithms."""

    began: int
    """Index of the first value after it; of its first step, if several follow each other in one direction (a drift)."""
    steps: int
    size: float
    """Level after less level before all of these steps."""
    low: float
    high: float
    """95 % interval of the size."""
    p: float
    """Largest of its steps, for all the places they could have; at most LEVEL."""
    level: float
    """Before."""


@dataclass(frozen=True)
class Fit:
    """A series explained as levels and noise."""

    shift: Shift | None
    """None where the noise explains everything."""
    noise: float
    """Deviation of single values about their level, without outliers."""
    dependence: float
    """Factor of the means' deviation, 1 for independent values."""
    level: float
    """At the end."""
    outliers: tuple[int, ...]
    """Values that were left out."""
    n: int
    """Values that were not."""

    def detectable(self, smallest: float, share: float = 0.8) -> float:
        """The change that would be found in `share` of the cases when three values stand behind it.

        Args:
            smallest: the change that counts; values have to lie beyond half of it, see `history`.
            share: asked power.
        """
        error = self.noise * self.dependence * math.sqrt(1 / MINIMUM_AFTER + 1 / self.n)
        places = self.n - MINIMUM_BEFORE + 1
        sure = (t_quantile(1 - LEVEL / 2 / places, self.n + 1) + t_quantile(share, self.n + 1)) * error
        each = share ** (1 / MINIMUM_AFTER)
        return max(smallest, sure, smallest / 2 + t_quantile(each, self.n + 1) * self.noise)


def fit(values: Sequence[float]) -> Fit | None:
    """Levels, noise and the last change.

    Args:
        values: [T] in order of time, logarithms.

    Returns:
        None for fewer than MINIMUM_LENGTH values, which never show a change.
    """
    series = np.asarray(values, float)
    far = outliers(series)
    kept = np.flatnonzero(~far)
    if len(kept) < MINIMUM_LENGTH:
        return None
    clean = series[kept]
    left_out = tuple(np.flatnonzero(far).tolist())
    for starts in _starts(clean):
        levels = _Levels.of(clean, starts)
        if all(levels.p_value(step) <= LEVEL for step in range(1, len(starts))):
            return Fit(
                levels.shift(kept), levels.noise, levels.dependence, float(levels.means[-1]), left_out, len(clean)
            )
    raise AssertionError("a single level always fits")


def outliers(series: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values lie far from the running median of five (three at the ends, so that a step of three stays whole).

    The scale is robust: the three-quarter quantile of the distances from that median. At most a quarter are outliers,
    the farthest ones.

    Returns:
        [T] booleans.
    """
    n = len(series)
    found = np.zeros(n, bool)
    if n < MINIMUM_LENGTH:
        return found
    threes, fives = (np.median(np.lib.stride_tricks.sliding_window_view(series, width), axis=1) for width in (3, 5))
    away = np.abs(series - np.concatenate([threes[[0, 0]], fives, threes[[-1, -1]]]))
    scale = max(float(np.sort(away)[(3 * n) // 4]), FLOOR)
    farthest = np.argsort(away)[n - n // 4 :]
    found[farthest] = away[farthest] > OUTLIER * scale
    return found


def _starts(series: NDArray[np.float64]) -> list[list[int]]:
    """Starts of the stretches in the best fit with MOST_CHANGES changes, with one less, ..., with none."""
    n = len(series)
    centred = series - series.mean()
    sums, squares = (np.concatenate([[0.0], np.cumsum(values)]) for values in (centred, centred**2))
    start = np.arange(n + 1)
    size = start[None, :] - start[:, None]
    cost = squares[None, :] - squares[:, None] - (sums[None, :] - sums[:, None]) ** 2 / np.maximum(size, 1)
    short = size < MINIMUM_AFTER
    short[0, MINIMUM_BEFORE] = False
    cost[short] = math.inf
    best, chosen, fits = cost[0], [], [[0]]
    for _ in range(min(MOST_CHANGES, (n - MINIMUM_BEFORE) // MINIMUM_AFTER)):
        both = best[:, None] + cost
        chosen.append(np.argmin(both, axis=0))
        best = np.min(both, axis=0)
        starts, at = [], n
        for choice in reversed(chosen):
            at = int(choice[at])
            starts.append(at)
        fits.append([0, *reversed(starts)])
    return fits[::-1]


@dataclass(frozen=True)
class _Levels:
    """A series as constant stretches."""

    starts: list[int]
    means: NDArray[np.float64]
    sizes: NDArray[np.int64]
    noise: float
    """Deviation about the means."""
    dependence: float
    """By how much means deviate more than those of independent values: neighbours resemble each other where the state of
    the machine outlasts an occasion. sqrt((1 + r) / (1 - r)) with the correlation r of neighbours (Bartlett 1946)."""
    freedom: int

    @classmethod
    def of(cls, series: NDArray[np.float64], starts: list[int]) -> "_Levels":
        sizes = np.diff([*starts, len(series)])
        means = np.add.reduceat(series, starts) / sizes
        rest = series - np.repeat(means, sizes)
        squares, freedom = float(rest @ rest), len(series) - len(starts)
        alike = min(max(float(rest[1:] @ rest[:-1]) / max(squares, FLOOR**2), 0.0), MOST_ALIKE)
        dependence = math.sqrt((1 + alike) / (1 - alike))
        return cls(starts, means, sizes, max(math.sqrt(squares / freedom), FLOOR), dependence, freedom)

    def error(self, first: int, last: int) -> float:
        """Standard error of the difference of two means."""
        return self.noise * self.dependence * math.sqrt(1 / self.sizes[first] + 1 / self.sizes[last])

    def p_value(self, step: int) -> float:
        """Of the difference between a stretch and the one before, for every place it could have."""
        places = int(self.sizes.sum()) - MINIMUM_LENGTH + 1
        t = abs(float(self.means[step] - self.means[step - 1])) / self.error(step - 1, step)
        return min(1.0, 2 * t_tail(t, self.freedom) * places)

    def shift(self, kept: NDArray[np.int64]) -> Shift | None:
        """The last step, or the last steps together where they go in one direction.

        Args:
            kept: [T] indices of the values in the whole series.
        """
        last = len(self.starts) - 1
        if not last:
            return None
        up = np.diff(self.means) > 0
        first = last - 1
        while first and up[first - 1] == up[-1]:
            first -= 1
        size = float(self.means[last] - self.means[first])
        half = t_quantile(0.975, self.freedom) * self.error(first, last)
        p = max(self.p_value(step) for step in range(first + 1, last + 1))
        began = int(kept[self.starts[first + 1]])
        return Shift(began, last - first, size, size - half, size + half, p, float(self.means[first]))
