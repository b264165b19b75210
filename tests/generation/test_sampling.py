"""Temperature, top-k and top-p against their definitions, and drawing against exact probabilities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from superblock.generation import sampling
from superblock.generation.sampling import choose, probabilities

ROWS = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 4.0]), min_size=2, max_size=12)  # few values: many ties


def row(values: list[float]) -> Tensor:
    return torch.tensor([values])


@given(ROWS, st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_top_k_keeps_exactly_k_of_the_most_likely(values: list[float], k: int) -> None:
    full, kept = (probabilities(row(values), temperature=1, top_k=n)[0] for n in (0, k))
    chosen = kept > 0
    assert chosen.sum() == min(k, len(values))
    assert full[chosen].min() >= full[~chosen].max() if (~chosen).any() else True
    torch.testing.assert_close(kept[chosen], full[chosen] / full[chosen].sum())


def test_top_k_breaks_ties_by_number() -> None:
    assert probabilities(torch.zeros(1, 5), temperature=1, top_k=2).tolist() == [[0.5, 0.5, 0, 0, 0]]


@given(ROWS, st.floats(0.01, 1.0))
@settings(max_examples=100, deadline=None)
def test_top_p_keeps_the_smallest_set_that_reaches_p(values: list[float], p: float) -> None:
    full, kept = (probabilities(row(values), temperature=1, top_p=q)[0] for q in (1.0, p))
    mass = sorted(full[kept > 0].tolist(), reverse=True)
    assert sum(mass) >= p - 1e-12
    assert sum(mass[:-1]) < p + 1e-12
    assert mass == sorted(full.tolist(), reverse=True)[: len(mass)]
    torch.testing.assert_close(kept.sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.5), (0, 0.95), (0, 0.99999), (40, 1.0), (40, 0.9), (511, 0.9), (600, 0.9)]
)
def test_a_large_vocabulary_is_not_sorted_for_nothing(
    ties: bool, top_k: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking among the most likely first changes nothing, whether they are enough or not."""
    logits = 3 * torch.randn(3, 4096, generator=torch.Generator().manual_seed(top_k))
    logits[1] *= 0.1  # so flat that far more are needed
    logits[2, 9:] = -torch.inf
    logits = logits.round() if ties else logits
    for rows in (logits, logits[:1], logits[2:]):
        quick = probabilities(rows, temperature=0.8, top_k=top_k, top_p=top_p)
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "ENOUGH", 4096)
            whole = probabilities(rows, temperature=0.8, top_k=top_k, top_p=top_p)
        assert torch.equal(quick > 0, whole > 0)
        torch.testing.assert_close(quick, whole, rtol=1e-14, atol=0)


def test_top_p_acts_on_what_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert (probabilities(logits, temperature=1, top_k=2, top_p=0.57) > 0).sum() == 1  # 0.4 / 0.7 = 0.571
    assert (probabilities(logits, temperature=1, top_p=0.57) > 0).sum() == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    expected = torch.softmax(logits.double() / temperature, -1)
    torch.testing.assert_close(probabilities(logits, temperature=temperature), expected)


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_no_temperature_is_greedy(temperature: float) -> None:
    p = probabilities(torch.tensor([[1.0, 30.0, 2.0], [9.0, -1.0, 0.0]]), temperature=temperature, top_k=2, top_p=0.9)
    assert p.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_rows_are_independent() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    together = probabilities(logits, temperature=0.7, top_k=9, top_p=0.8)
    alone = torch.cat([probabilities(one[None], temperature=0.7, top_k=9, top_p=0.8) for one in logits])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diverged_logits_are_refused(bad: float) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        probabilities(torch.tensor([[0.0, bad, 1.0]]), temperature=1)
    with pytest.raises(FloatingPointError, match="not finite"):
        probabilities(torch.full((1, 3), -math.inf), temperature=1)


def test_excluded_tokens_are_never_chosen() -> None:
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    edges = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert choose(p.expand(4, -1), edges).tolist() == [1, 1, 3, 3]


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_the_largest_uniform_number_stays_in_range(values: list[float]) -> None:
    p = probabilities(row(values), temperature=1, top_p=0.9)
    token = choose(p, torch.tensor([1 - 2**-53], dtype=torch.float64))
    assert p[0, token] > 0


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20 000 draws; the limit is the 99.99th percentile for 7 degrees of freedom."""
    logits = torch.tensor([[0.0, 0.3, -0.5, 1.0, 2.0, -1.0, 0.7, 0.1, -2.0, 0.2]])
    p = probabilities(logits, temperature=0.9, top_k=8)[0]
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    counts = torch.bincount(choose(p.expand(20_000, -1), uniform), minlength=10)
    assert counts[p == 0].sum() == 0
    expected = 20_000 * p[p > 0]
    assert ((counts[p > 0] - expected) ** 2 / expected).sum() < 29.9
