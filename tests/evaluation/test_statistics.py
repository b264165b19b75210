"""Intervals contain the truth as often as they say."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from superblock.evaluation.statistics import (
    bootstrap_interval,
    holm,
    paired_interval,
    paired_p_value,
    t_interval,
    t_quantile,
    t_tail,
    values_needed,
)


def ratio(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = rows[:, 0] / rows[:, 1]
    return quotient


def test_t_interval_is_scipys() -> None:
    values = [1.2, 1.5, 1.1, 1.9, 1.4]
    interval = t_interval(values, 0.9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high)) and interval.n == 5


def test_one_value_has_no_bounds() -> None:
    interval = t_interval([2.0])
    assert (interval.mean, interval.low, interval.high) == (2.0, -math.inf, math.inf) and "no interval" in str(interval)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_refuses_what_is_no_measurement(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        t_interval(values)


def test_pairs_cancel_what_both_share() -> None:
    shared = np.random.default_rng(0).normal(0, 10, 6)
    interval = paired_interval(list(shared + 1), list(shared))
    assert (interval.low, interval.high) == (pytest.approx(1), pytest.approx(1))
    with pytest.raises(ValueError):
        paired_interval([1.0, 2.0], [1.0])


def test_coverage() -> None:
    """95 % intervals of 400 experiments miss the truth about 20 times; the bootstrap of 60 blocks a little more often."""
    rng = np.random.default_rng(1)
    t_misses = sum(not (i := t_interval(list(rng.normal(3, 2, 5)))).low <= 3 <= i.high for _ in range(400))
    assert 8 <= t_misses <= 36
    misses = 0
    for k in range(300):
        lengths = rng.integers(50, 150, 60).astype(float)
        interval = bootstrap_interval(
            np.stack([lengths * rng.normal(1.4, 0.1, 60), lengths], axis=1), ratio, resamples=400, seed=k
        )
        misses += not interval.low <= 1.4 <= interval.high
    assert 5 <= misses <= 35


def test_bootstrap_repeats() -> None:
    blocks = np.random.default_rng(2).uniform(1, 2, (30, 2))
    assert bootstrap_interval(blocks, ratio, seed=4) == bootstrap_interval(blocks, ratio, seed=4)
    assert bootstrap_interval(blocks[:1], ratio).low == -math.inf


def test_p_value_is_scipys() -> None:
    a, b = [1.2, 1.5, 1.1, 1.9], [1.0, 1.6, 0.9, 1.2]
    assert paired_p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p_value([1.0], [5.0]) == 1.0
    assert paired_p_value([1.5, 2.5], [1.0, 2.0]) == 0.0 and paired_p_value([1.0, 2.0], [1.0, 2.0]) == 1.0


def test_holm_is_the_textbooks() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_holm_keeps_the_family_honest() -> None:
    """Of families in which nothing is true, about 5 % have a value below 0.05."""
    draws = np.random.default_rng(0).uniform(size=(2000, 6))
    wrong = sum(min(holm({str(i): p for i, p in enumerate(row)}).values()) < 0.05 for row in draws)
    assert 70 < wrong < 130


def test_values_needed_suffice_and_one_fewer_does_not() -> None:
    n = values_needed(0.01, 0.004)
    assert n is not None
    half = [t_quantile(0.975, k - 1) * 0.01 / math.sqrt(k) for k in (n - 1, n)]
    assert half[0] > 0.004 >= half[1]
    assert (
        values_needed(0.0, 0.1) == 2 and values_needed(1.0, 0.0) is None and values_needed(1.0, 0.01, most=50) is None
    )


def test_t_is_scipys() -> None:
    assert t_quantile(0.975, 4) == pytest.approx(stats.t.ppf(0.975, 4)) and t_tail(2.5, 3) == pytest.approx(
        stats.t.sf(2.5, 3)
    )
