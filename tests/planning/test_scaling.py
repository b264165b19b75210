"""The laws on ladders whose truth is known: how often the interval holds, and that knowledge narrows it."""

import dataclasses

import numpy as np
import pytest
from ladders import ACTIVE, TOKENS, Truth, coverage, from_prior, interval, ladder

from superblock.planning import scaling
from superblock.planning.scaling import DRAWS, LossLaw, LossPoint

ORDINARY = Truth(floor=0.5, by_size=0.05, by_tokens=0.34, kept=0.7)
DEPTH_COSTS = Truth(floor=0.3, by_size=-0.03, by_tokens=0.25, kept=0.5)


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_four_of_five_intervals_contain_what_comes(stages: int, grown: bool) -> None:
    """Where laws are as likely as believed and runs scatter as believed; 120 ladders leave 4 % of doubt about a share of 80 %."""
    share, _ = coverage(from_prior, stages, 0.02, grown=grown)
    assert 0.72 <= share <= 0.95


@pytest.mark.parametrize("truth", [ORDINARY, DEPTH_COSTS])
@pytest.mark.parametrize(("noise", "least"), [(0.01, 0.8), (0.04, 0.5)])
def test_a_single_law_is_covered_also_where_runs_scatter_twice_as_much_as_believed(
    truth: Truth, noise: float, least: float
) -> None:
    shares = [coverage(lambda _: truth, stages, noise, grown=True, ladders=50)[0] for stages in (1, 2, 3)]
    assert min(shares) >= least


def test_the_check_of_coverage_notices_intervals_that_are_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "PARAMETERS", (0.02, 0.005))
    monkeypatch.setattr(scaling, "TOKENS", (0.22, 0.007))
    share, _ = coverage(from_prior, 1, 0.02, grown=False)
    assert share < 0.72


@pytest.mark.parametrize("grown", [False, True])
def test_more_stages_narrow_the_interval(grown: bool) -> None:
    widths = [coverage(lambda _: ORDINARY, stages, 0.01, grown=grown, ladders=40)[1] for stages in (1, 2, 3)]
    assert widths[0] > widths[1] > widths[2]


def test_more_tokens_and_more_of_the_parents_lower_the_loss() -> None:
    law = LossLaw(ladder(ORDINARY, 2, 0.0, np.random.default_rng(0), grown=False))

    def median(parents: list[float], own: float) -> float:
        return float(np.median(law.predict(ACTIVE[2], parents, np.full(DRAWS, own))))

    assert median([], 2e6) > median([], 4e6) > median([], 8e6)
    assert median([], 2e6) > median([2e6], 2e6) > median([2e6, 2e6], 2e6)


def test_farther_away_is_wider() -> None:
    [known] = ladder(ORDINARY, 1, 0.0, np.random.default_rng(0), grown=False)
    widths = []
    for factor in (1, 4, 16):
        low, high = interval([known], LossPoint(factor * ACTIVE[0], (factor * TOKENS[0],), 1.0))
        widths.append((high - low) / low)
    assert widths[0] < widths[1] < widths[2]


def test_uncertain_steps_make_the_loss_uncertain() -> None:
    law = LossLaw(ladder(ORDINARY, 3, 0.0, np.random.default_rng(0), grown=False))
    own = np.full(DRAWS, TOKENS[3])
    scattered = own * np.exp(0.5 * np.random.default_rng(1).standard_normal(DRAWS))
    spreads = [np.ptp(np.quantile(law.predict(ACTIVE[3], [], tokens), [0.1, 0.9])) for tokens in (own, scattered)]
    assert spreads[1] > 1.3 * spreads[0]


@pytest.mark.parametrize("steepness", [0.1, 0.3])
def test_the_losses_within_a_run_teach_how_tokens_count(steepness: float) -> None:
    """One run says nothing about its law; the validations on its way do."""
    truth = Truth(0.0, 0.0, steepness, 0.7)
    curve = tuple((share, share**-steepness, 0.0) for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    [alone] = ladder(truth, 1, 0.0, np.random.default_rng(0), grown=False)
    expected = truth.loss(ACTIVE[0], (0.25 * TOKENS[0],))
    new = LossPoint(ACTIVE[0], (0.25 * TOKENS[0],), expected)
    apart = [
        abs(np.mean(interval([point], new)) - expected) for point in (alone, dataclasses.replace(alone, curve=curve))
    ]
    assert apart[1] < 0.7 * apart[0]


def test_time_is_proportional_to_flops_but_for_a_constant_part() -> None:
    """b (F + f) with f a tenth of the mean: found from two sizes, and extrapolated."""
    sizes = [1.0, 3.0, 6.0]
    seconds = [0.5 * (size + 0.33) for size in sizes]
    draws = scaling.proportional(sizes, seconds, 12.0, noise=0.03, offsets=(0, 0.03, 0.1, 0.25, 0.5), seed=0)
    low, middle, high = np.quantile(draws, [0.1, 0.5, 0.9])
    assert low < 0.5 * 12.33 < high
    assert middle == pytest.approx(0.5 * 12.33, rel=0.03)


def test_the_interval_of_time_covers() -> None:
    random, inside, widths = np.random.default_rng(0), 0, {1: [], 3: []}
    for _ in range(150):
        offset, n = random.choice([0.0, 0.1, 0.3, 1.0]), int(random.choice([1, 3]))
        sizes = [1.0, 2.2, 3.7][:n]
        seconds = [(size + offset) * np.exp(0.05 * random.standard_normal()) for size in (*sizes, 6.7)]
        draws = scaling.proportional(
            sizes, seconds[:-1], 6.7, noise=0.06, offsets=(0, 0.03, 0.1, 0.25, 0.5, 1.0), seed=0
        )
        low, high = np.quantile(draws, [0.1, 0.9])
        inside += low <= seconds[-1] <= high
        widths[n].append(high / low)
    assert 0.7 <= inside / 150 <= 0.97
    assert np.mean(widths[3]) < np.mean(widths[1])


def test_memory_of_a_deeper_model() -> None:
    def bytes_of(model: tuple[float, float]) -> float:
        return 0.7e9 + 16 * model[0] + 90 * model[1]

    models = [(4.5e6 + 2.42e6 * s, 2048 * 256 * (s + 1.0)) for s in (0, 2, 5, 11)]
    widths = []
    for n in (1, 2, 3):
        draws = scaling.memory(models[:n], [bytes_of(m) for m in models[:n]], models[3], seed=0)
        low, high = np.quantile(draws, [0.1, 0.9])
        assert low < bytes_of(models[3]) < high
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]


def test_a_share_that_was_measured_counts_more_than_what_was_believed() -> None:
    believed = scaling.ratio([], mean=0.93, spread=0.07, seed=0)
    told = scaling.ratio([1.1, 1.1, 1.1], mean=0.93, spread=0.07, seed=0)
    assert np.median(believed) == pytest.approx(0.93, rel=0.01)
    assert 1.05 < np.median(told) < 1.11
    assert told.std() < believed.std()
