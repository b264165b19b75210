"""Intervals for what was measured a few times: Student's t over runs, and the bootstrap over blocks of a text.

A claim of quality names its seeds and an interval. Runs of two arms that share a seed share data order and initial
weights, so that their differences vary less than they do: pair them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A mean with the interval that contains the true one in `confidence` of such experiments."""

    mean: float
    low: float
    high: float
    n: int
    """Values it was computed from; below 2 the interval is unbounded."""

    def __str__(self) -> str:
        if not math.isfinite(self.high - self.low):
            return f"{self.mean:+.4f} (one value, no interval)"
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], n = {self.n}"


def t_quantile(share: float, freedom: int) -> float:
    """The value below which `share` of Student's t distribution with so many degrees of freedom lies."""
    from scipy.special import stdtrit  # half a second, which only those who ask pay

    return float(stdtrit(freedom, share))


def t_tail(t: float, freedom: int) -> float:
    """The share of Student's t distribution above `t`."""
    from scipy.special import stdtr

    return float(stdtr(freedom, -t))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values.

    Raises:
        ValueError: without values, or for one that is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"an interval needs finite values, not {list(values)}")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """The t interval of the mean of `a - b`, value by value.

    Raises:
        ValueError: if they are not of one length.
    """
    return t_interval([x - y for x, y in zip(a, b, strict=True)], confidence)


def paired_p_value(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of Student's t test that the mean of `a - b` is 0; 1 for a single pair, which can show nothing.

    Raises:
        ValueError: if they are not of one length, empty, or not finite.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = t_interval(differences).mean
    if len(differences) == 1:
        return 1.0
    error = stdev(differences) / math.sqrt(len(differences))
    if not error:
        return 0.0 if mean else 1.0
    return 2 * t_tail(abs(mean) / error, len(differences) - 1)


def values_needed(spread: float, margin: float, confidence: float = 0.95, most: int = 1000) -> int | None:
    """How many values of that deviation have a t interval narrower than `margin` on each side.

    Args:
        spread: deviation of single values.
        margin: half the width that is wanted.
        confidence: of the interval.
        most: where to stop.

    Returns:
        The smallest number, at least 2; None if `most` do not suffice.
    """
    share = (1 + confidence) / 2
    if margin <= 0 or t_quantile(share, most - 1) * spread > margin * math.sqrt(most):
        return None
    return next(n for n in range(2, most + 1) if t_quantile(share, n - 1) * spread <= margin * math.sqrt(n))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values adjusted for their number (Holm 1979): below 0.05 all together are wrong in at most 5 % of such families.

    Args:
        p_values: of every comparison of one family, by name.
    """
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def bootstrap_interval(
    blocks: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a statistic of N blocks that are drawn anew with replacement (Efron 1979).

    Args:
        blocks: [N, ...] one row per block, such as sums of bits and of bytes of a stretch of text; stretches that are
            long beside what links neighbours may be taken as independent.
        statistic: from the mean rows [R, ...] of R resamples to [R] values, such as bits over bytes.
        resamples: R.
        seed: of the draws.

    Raises:
        ValueError: without blocks.
    """
    n = len(blocks)
    if not n:
        raise ValueError("an interval needs at least one block")
    value = float(statistic(blocks.mean(axis=0)[None])[0])
    if n == 1:
        return Interval(value, -math.inf, math.inf, 1)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    drawn = statistic(np.tensordot(weights, blocks, axes=1))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), n)
