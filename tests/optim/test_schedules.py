"""Schedules are bounded, continuous, monotone in their parts and need no memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superblock.config.optim import ScheduleConfig
from superblock.optim.schedules import learning_rate_factor, warmup_steps

NAMES = ("constant", "linear", "cosine", "polynomial", "wsd")

configs = st.builds(
    ScheduleConfig,
    name=st.sampled_from(NAMES),
    warmup=st.one_of(st.floats(0, 0.9), st.integers(1, 50).map(float)),
    final=st.floats(0, 1),
    decay=st.floats(0.01, 1),
    power=st.floats(0.2, 4),
)


@given(configs, st.integers(1, 300))
def test_bounded_and_positive_at_the_first_step(config: ScheduleConfig, total: int) -> None:
    factors = [learning_rate_factor(config, step, total) for step in range(total)]
    lowest = min(config.final, 1 / max(1, warmup_steps(config, total)))
    assert all(lowest - 1e-12 <= factor <= 1 + 1e-12 for factor in factors)
    assert factors[0] > 0


@given(configs, st.integers(1, 300))
def test_rises_in_the_warm_up_and_never_after_it(config: ScheduleConfig, total: int) -> None:
    factors = [learning_rate_factor(config, step, total) for step in range(total)]
    warmup = warmup_steps(config, total)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if warmup:
        assert factors[warmup - 1] == 1.0


@given(configs.filter(lambda c: c.power >= 1), st.integers(50, 400))
def test_continuous(config: ScheduleConfig, total: int) -> None:
    """Neighbouring steps differ by no more than the steepest slope of the shape allows."""
    warmup = warmup_steps(config, total)
    after = max(1, total - warmup)
    slope = {
        "constant": 0,
        "linear": 1,
        "cosine": 1.6,
        "polynomial": config.power,
        "wsd": max(1.0, after / max(1, config.decay * total)),
    }
    factors = [learning_rate_factor(config, step, total) for step in range(total)]
    for step in range(1, total):
        limit = 1 / warmup if step < warmup else slope[config.name] * (1 - config.final) / after
        assert abs(factors[step] - factors[step - 1]) <= limit + 1e-9


@pytest.mark.parametrize("name", [name for name in NAMES if name != "constant"])
@pytest.mark.parametrize("total", [10, 333])
def test_ends_within_one_step_of_final(name: str, total: int) -> None:
    config = ScheduleConfig(name=name, warmup=0.1, final=0.05, decay=0.5)
    last, before = (learning_rate_factor(config, step, total) for step in (total - 1, total - 2))
    assert config.final <= last <= config.final + (before - last) * 1.01


def test_known_values() -> None:
    wsd = ScheduleConfig(name="wsd", warmup=2, final=0.0, decay=0.5)
    assert [learning_rate_factor(wsd, step, 8) for step in range(8)] == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    cosine = ScheduleConfig(name="cosine", warmup=0, final=0.2)
    assert learning_rate_factor(cosine, 50, 100) == pytest.approx(0.6)
    square = ScheduleConfig(name="polynomial", warmup=0, final=0.0, power=2)
    assert learning_rate_factor(square, 50, 100) == pytest.approx(0.25)


def test_warmup_as_share_and_as_steps() -> None:
    assert warmup_steps(ScheduleConfig(warmup=0.02), 500) == 10
    assert warmup_steps(ScheduleConfig(warmup=25), 500) == 25
    assert warmup_steps(ScheduleConfig(warmup=25), 7) == 7
    assert warmup_steps(ScheduleConfig(warmup=0), 7) == 0


def test_steps_outside_the_run_are_clamped() -> None:
    config = ScheduleConfig()
    assert learning_rate_factor(config, 1000, 100) == learning_rate_factor(config, 99, 100)
    assert learning_rate_factor(config, 0, 0) > 0
