"""Sums are exact however the data are cut; ratios are those of NumPy in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superblock.evaluation.metrics import LanguageModelLoss, LossTotals, PositionLoss, TopKAccuracy, perplexity
from superblock.models.batch import TokenScores


def random_scores(B: int, T: int, seed: int, ignored: float = 0.2) -> TokenScores:
    generator = torch.Generator().manual_seed(seed)
    nll = 5 * torch.rand(B, T, generator=generator)
    rank = torch.randint(0, 12, (B, T), generator=generator)
    hidden = torch.rand(B, T, generator=generator) < ignored
    return TokenScores(nll.masked_fill(hidden, 0.0), rank.masked_fill(hidden, -1))


def rows(scores: TokenScores, begin: int, end: int) -> TokenScores:
    return TokenScores(scores.nll_BT[begin:end], scores.rank_BT[begin:end])


def merge(metrics: list) -> None:
    """What `dist_reduce_fx="sum"` does to the first of several processes."""
    first = metrics[0]
    for state, reduce in first._reductions.items():
        assert reduce is not None
        setattr(first, state, reduce(torch.stack([getattr(m, state) for m in metrics])))


def test_loss_is_the_float64_sum_of_numpy() -> None:
    metric = LanguageModelLoss()
    parts = [random_scores(B, T, seed) for seed, (B, T) in enumerate([(3, 17), (1, 5), (8, 64)])]
    for part in parts:
        metric.update(part)
    nll = np.concatenate([p.nll_BT.numpy().astype(np.float64).ravel() for p in parts])
    rank = np.concatenate([p.rank_BT.numpy().ravel() for p in parts])
    totals = metric.compute()
    assert totals.tokens == (rank >= 0).sum()
    assert totals.nll == pytest.approx(nll.sum(), rel=1e-14)
    assert totals.loss == pytest.approx(nll[rank >= 0].mean(), rel=1e-14)
    assert totals.perplexity == pytest.approx(np.exp(nll[rank >= 0].mean()), rel=1e-13)
    assert totals.bits_per_byte(1000) == pytest.approx(nll.sum() / np.log(2) / 1000, rel=1e-14)


def test_a_long_sum_does_not_drift() -> None:
    """In fp32 two million equal terms of 0.1 would be off by about 1e-3."""
    metric = LanguageModelLoss()
    scores = TokenScores(torch.full((1, 100_000), 0.1), torch.zeros(1, 100_000, dtype=torch.int64))
    for _ in range(20):
        metric.update(scores)
    assert metric.compute().loss == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 7), seed=st.integers(0, 1000))
def test_two_processes_with_uneven_parts_equal_one(cut: int, seed: int) -> None:
    scores = random_scores(8, 24, seed)
    for make in (LanguageModelLoss, TopKAccuracy, PositionLoss):
        whole, parts = make(), [make(), make()]
        whole.update(scores)
        parts[0].update(rows(scores, 0, cut))
        parts[1].update(rows(scores, cut, 8))
        merge(parts)
        merged, expected = parts[0].compute(), whole.compute()
        if isinstance(expected, dict):
            assert merged == expected
        else:
            np.testing.assert_allclose(merged, expected, rtol=1e-13)


def test_perplexity_is_infinite_only_beyond_float64() -> None:
    assert perplexity(700.0) == pytest.approx(math.exp(700))
    assert perplexity(710.0) == math.inf
    metric = LanguageModelLoss()
    metric.update(TokenScores(torch.full((2, 4), 88.0 * 3), torch.zeros(2, 4, dtype=torch.int64)))
    assert metric.compute().perplexity == pytest.approx(math.exp(264))  # fp32 ends at exp(88.7)


def test_nothing_scored_is_not_a_number() -> None:
    ignored = TokenScores(torch.zeros(2, 8), torch.full((2, 8), -1))
    metrics = LanguageModelLoss(), TopKAccuracy(), PositionLoss()
    for metric in metrics:
        metric.update(ignored)
    assert metrics[0].compute() == LossTotals(0.0, 0)
    assert math.isnan(metrics[0].compute().loss) and math.isnan(metrics[0].compute().bits_per_byte(10))
    assert all(math.isnan(value) for value in metrics[1].compute().values())
    assert all(math.isnan(value) for value in metrics[2].compute())


def test_accuracy_counts_ranks_below_k() -> None:
    metric = TopKAccuracy((1, 2, 5))
    metric.update(TokenScores(torch.ones(1, 6), torch.tensor([[0, 1, 4, 5, -1, 0]])))
    assert metric.compute() == {1: 2 / 5, 2: 3 / 5, 5: 4 / 5}


def test_position_bins_are_equal_parts_of_the_sequence() -> None:
    metric = PositionLoss(bins=4)
    nll = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 8.0], [3.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    rank = torch.zeros(2, 8, dtype=torch.int64)
    rank[0, 6] = -1
    metric.update(TokenScores(nll, rank))
    assert metric.compute() == [2.0, 3.5, 5.5, pytest.approx((8 + 7 + 8) / 3)]


def test_position_bins_of_a_short_sequence() -> None:
    metric = PositionLoss(bins=8)
    metric.update(TokenScores(torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.int64)))
    assert [math.isnan(value) for value in metric.compute()] == [False, True] * 4


def test_reset_forgets() -> None:
    metric = LanguageModelLoss()
    metric.update(random_scores(2, 8, 0))
    metric.reset()
    metric.update(TokenScores(torch.tensor([[2.0]]), torch.tensor([[0]])))
    assert metric.compute() == LossTotals(2.0, 1)
