"""Chunked linear cross-entropy: against torch and the full logits, ignored labels, shared tables, scores."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from superblock.kernels.cross_entropy import linear_cross_entropy, score_tokens
from superblock.kernels.cross_entropy.reference import IGNORE, reference_cross_entropy, reference_scores


def make(
    N: int, D: int, V: int, *, ignored: float = 0.2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N)
    h, w = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in ((N, D), (V, D)))
    labels = torch.randint(V, (N,), generator=generator)
    labels[torch.rand(N, generator=generator) < ignored] = IGNORE
    return h.requires_grad_(), w.requires_grad_(), labels


@settings(max_examples=30, deadline=None)
@given(
    N=st.integers(0, 40),
    chunk=st.integers(1, 50),
    z_loss=st.sampled_from([0.0, 1e-2]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_equals_full_logits(N: int, chunk: int, z_loss: float, ignored: float) -> None:
    h, w, labels = make(N, 6, 11, ignored=ignored)
    losses = (
        linear_cross_entropy(h, w, labels, chunk=chunk, z_loss=z_loss),
        reference_cross_entropy(h, w, labels, z_loss=z_loss),
    )
    torch.testing.assert_close(losses[0], losses[1])
    grads = [torch.autograd.grad(3 * loss, (h, w)) for loss in losses]
    torch.testing.assert_close(grads[0], grads[1])
    if ignored == 1.0:
        assert losses[0] == 0
        assert not any(g.any() for g in grads[0])


def test_against_torch() -> None:
    h, w, labels = make(100, 16, 64, dtype=torch.float32)
    ours = linear_cross_entropy(h, w, labels, chunk=32)
    theirs = F.linear_cross_entropy(h, w, labels, reduction="sum")
    plain = F.cross_entropy(h @ w.t(), labels, reduction="sum")
    for other in (theirs, plain):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=0)
        for a, b in zip(
            torch.autograd.grad(ours, (h, w), retain_graph=True), torch.autograd.grad(other, (h, w)), strict=True
        ):
            assert (a - b).norm() < 1e-6 * b.norm()


def test_autocast_keeps_the_softmax_in_fp32() -> None:
    h, w, labels = make(200, 32, 128, dtype=torch.float32)
    exact = reference_cross_entropy(h, w, labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(h, w, labels, chunk=64)
        same_products = reference_cross_entropy(h, w, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, same_products, rtol=1e-6, atol=0)
    assert abs(loss - exact) < 1e-3 * exact
    for a, b in zip(torch.autograd.grad(loss, (h, w)), torch.autograd.grad(exact, (h, w)), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 1e-2 * b.norm()


def test_16_bit_parameters() -> None:
    h, w, labels = make(50, 16, 64, dtype=torch.bfloat16)
    loss = linear_cross_entropy(h, w, labels, chunk=16)
    assert loss.dtype == torch.float32
    assert [g.dtype for g in torch.autograd.grad(loss, (h, w))] == [torch.bfloat16] * 2


def test_a_table_used_several_times() -> None:
    """A tied table embeds the input and scores two heads."""
    _, w, labels = make(30, 8, 20)

    def objective(form: object) -> Tensor:
        h = F.embedding(labels.clamp_min(0), w).tanh()
        return form(h, w, labels) + 0.5 * form(h * 2, w, labels.roll(1))  # type: ignore[operator]

    ours = objective(lambda h, t, y: linear_cross_entropy(h, t, y, chunk=7))
    want = objective(reference_cross_entropy)
    torch.testing.assert_close(torch.autograd.grad(ours, w), torch.autograd.grad(want, w))


def test_frozen_sides_and_no_grad() -> None:
    h, w, labels = make(20, 8, 16)
    want = torch.autograd.grad(reference_cross_entropy(h, w, labels), (h, w))
    torch.testing.assert_close(torch.autograd.grad(linear_cross_entropy(h, w.detach(), labels, chunk=8), h)[0], want[0])
    torch.testing.assert_close(torch.autograd.grad(linear_cross_entropy(h.detach(), w, labels, chunk=8), w)[0], want[1])
    with torch.no_grad():
        loss = linear_cross_entropy(h, w, labels, chunk=8)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference_cross_entropy(h, w, labels).detach())


def test_strides_do_not_matter() -> None:
    h, w, labels = make(20, 8, 16)
    turned = [t.detach().t().contiguous().t().requires_grad_() for t in (h, w)]
    loss, same = linear_cross_entropy(h, w, labels, chunk=8), linear_cross_entropy(*turned, labels, chunk=8)
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(torch.autograd.grad(loss, (h, w)), torch.autograd.grad(same, turned))


def test_huge_logits_stay_finite() -> None:
    h, w, labels = make(10, 8, 16, ignored=0, dtype=torch.float32)
    loss = linear_cross_entropy(h * 1e4, w, labels, chunk=4)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (h, w)))


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_scores_equal_sorting_all_logits(chunk: int) -> None:
    h, w, labels = make(60, 8, 30, dtype=torch.float32)
    nll, rank = score_tokens(h, w, labels, chunk=chunk)
    want_nll, want_rank = reference_scores(h.detach(), w.detach(), labels)
    assert nll.dtype == torch.float32
    assert rank.dtype == torch.int64
    assert not nll.requires_grad
    torch.testing.assert_close(nll, want_nll, rtol=1e-6, atol=1e-6)
    assert torch.equal(rank, want_rank)
    assert (rank[labels == IGNORE] == -1).all()
    assert (nll[labels == IGNORE] == 0).all()
    top = (h @ w.t()).argmax(-1)
    assert torch.equal(rank == 0, top == labels)
    torch.testing.assert_close(nll.sum(), linear_cross_entropy(h, w, labels, chunk=chunk).detach())
