"""The last change of level is found where it was planted, and noise is not taken for one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import NOISES

from superblock.reporting.changepoint import MINIMUM_LENGTH, Fit, fit, outliers

NOISE = 0.01


def found_at(levels: list[float], seed: int = 0) -> tuple[int | None, float]:
    """Where the last change begins and how large it is."""
    found = fit((np.asarray(levels) + NOISE * np.random.default_rng(seed).standard_normal(len(levels))).tolist())
    assert found is not None
    return (found.shift.began, found.shift.size) if found.shift else (None, 0.0)


@pytest.mark.parametrize("size", [-0.1, 0.1])
def test_finds_a_step_where_it_is(size: float) -> None:
    at, measured = found_at([0.0] * 12 + [size] * 6)
    assert at == 12 and measured == pytest.approx(size, abs=0.015)


def test_the_last_of_several_changes_counts() -> None:
    at, measured = found_at([0.0] * 8 + [0.2] * 8 + [0.1] * 5)
    assert at == 16 and measured == pytest.approx(-0.1, abs=0.015)


def test_a_drift_is_one_change_from_where_it_began() -> None:
    values = [0.0] * 10 + [0.03] * 5 + [0.06] * 5 + [0.09] * 5
    found = fit((np.asarray(values) + 0.002 * np.random.default_rng(3).standard_normal(len(values))).tolist())
    assert found and found.shift
    assert (found.shift.began, found.shift.steps) == (10, 3) and found.shift.size == pytest.approx(0.09, abs=0.005)


def test_values_that_stand_alone_are_left_out() -> None:
    values = NOISE * np.random.default_rng(1).standard_normal(20)
    values[[4, 11, 19]] -= 0.5
    found = fit(values.tolist())
    assert found and found.shift is None and found.outliers == (4, 11, 19) and found.noise < 2 * NOISE
    values[12:] += 0.1
    found = fit(values.tolist())
    assert found and found.shift and found.shift.began == 12


def test_a_step_of_three_is_no_outlier() -> None:
    values = np.array([0.0, 0.001, -0.001, 0.0, 0.002, 0.0, 0.1, 0.101, 0.099])
    assert not outliers(values).any()


@pytest.mark.parametrize("count", range(MINIMUM_LENGTH))
def test_short_series_say_nothing(count: int) -> None:
    assert fit([0.0, 5.0, 5.0, 5.0, 5.0][:count]) is None


def test_values_that_repeat_to_the_last_digit() -> None:
    """Deterministic runs have no noise at all; rounding is no change, and a step is sure."""
    assert (found := fit([0.5] * 10)) and found.shift is None and found.noise > 0
    rounded = fit([0.5 + 1e-9 * (i % 2) for i in range(10)])
    assert rounded and rounded.shift is None
    step = fit([0.5] * 4 + [0.51] * 3)
    assert step and step.shift and step.shift.began == 4 and step.shift.p < 1e-6


@given(st.lists(st.floats(-10, 10, allow_nan=False), min_size=5, max_size=40))
def test_whatever_comes_is_fitted(values: list[float]) -> None:
    found = fit(values)
    if found is None:
        return
    assert math.isfinite(found.noise) and found.n + len(found.outliers) == len(values)
    assert found.detectable(0.05) >= 0.05
    if found.shift:
        assert 2 <= found.shift.began <= len(values) - 3 and found.shift.low <= found.shift.size <= found.shift.high


@given(st.floats(-5, 5), st.integers(0, 1000))
def test_level_and_direction_do_not_matter(offset: float, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(15) + np.repeat([0.0, 4.0], [9, 6])
    here, there, mirrored = fit(values.tolist()), fit((values + offset).tolist()), fit((-values).tolist())
    assert here and there and mirrored
    for other, sign in ((there, 1), (mirrored, -1)):
        assert (here.shift is None) == (other.shift is None)
        if here.shift and other.shift:
            assert other.shift.began == here.shift.began
            assert other.shift.size * sign == pytest.approx(here.shift.size)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_alone_is_rarely_a_change(noise: str) -> None:
    """In either direction and of any size; alarms are rarer."""
    rng = np.random.default_rng(7)
    found = sum(fit(NOISES[noise](rng, 20).tolist()).shift is not None for _ in range(200))  # type: ignore[union-attr]
    assert found <= (24 if noise == "wandering" else 12)


def test_what_is_called_detectable_is_found() -> None:
    rng = np.random.default_rng(5)
    known = Fit(shift=None, noise=NOISE, dependence=1.0, level=0.0, outliers=(), n=20)
    size, found = known.detectable(0.01), 0
    for _ in range(300):
        values = NOISE * rng.standard_normal(23) + size * (np.arange(23) >= 20)
        one = fit(values.tolist())
        found += bool(one and one.shift and one.shift.size > 0)
    assert 210 <= found <= 280, found
