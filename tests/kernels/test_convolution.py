"""The causal depthwise convolution: against torch, across document boundaries, and continued from its state."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from superblock.kernels.delta_rule import causal_conv
from superblock.kernels.packing import PackInfo


def make(B: int, T: int, C: int, W: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    x, w = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in ((B, T, C), (C, W)))
    return x.requires_grad_(), w.requires_grad_()


def by_torch(x_BTC: Tensor, weight_CW: Tensor) -> Tensor:
    C, W = weight_CW.shape
    return F.silu(F.conv1d(F.pad(x_BTC.transpose(1, 2), (W - 1, 0)), weight_CW[:, None], groups=C)).transpose(1, 2)


@settings(max_examples=25, deadline=None)
@given(T=st.integers(1, 12), W=st.integers(1, 5), C=st.integers(1, 4))
def test_against_torch(T: int, W: int, C: int) -> None:
    x, w = make(2, T, C, W)
    (y, state), want = causal_conv(x, w), by_torch(x, w)
    torch.testing.assert_close(y, want)
    assert state.shape == (2, W - 1, C)
    ours, theirs = (torch.autograd.grad(out.sin().sum(), (x, w)) for out in (y, want))
    torch.testing.assert_close(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), W=st.integers(1, 5), cut=st.integers(0, 100))
def test_packed_and_continued_equal_separate_documents(lengths: list[int], W: int, cut: int) -> None:
    x, w = make(1, sum(lengths), 3, W)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    want = torch.cat([by_torch(part, w) for part in x.split(lengths, dim=1)], dim=1)
    y, state = causal_conv(x, w, pack=PackInfo.from_doc_ids(ids))
    torch.testing.assert_close(y, want)
    ours, theirs = (torch.autograd.grad(out.sin().sum(), (x, w)) for out in (y, want))
    torch.testing.assert_close(ours, theirs)
    cut %= sum(lengths)
    if cut:  # first part, then the rest from its state, which must not remember earlier documents
        head, middle = causal_conv(x[:, :cut], w, pack=PackInfo.from_doc_ids(ids[:, :cut]))
        rest = ids[:, cut:]
        if ids[0, cut] != ids[0, cut - 1]:
            middle = torch.zeros_like(middle)
        tail, last = causal_conv(x[:, cut:], w, pack=PackInfo.from_doc_ids(rest), state_BWC=middle)
        torch.testing.assert_close(torch.cat([head, tail], dim=1), want)
        torch.testing.assert_close(last, state)


def test_token_by_token_equals_all_at_once() -> None:
    x, w = make(2, 9, 3, 4)
    state = None
    steps = []
    for t in range(9):
        y, state = causal_conv(x[:, t : t + 1], w, state_BWC=state)
        steps.append(y)
    torch.testing.assert_close(torch.cat(steps, dim=1), causal_conv(x, w)[0])


def test_gradient_reaches_the_state() -> None:
    x, w = make(1, 5, 3, 4)
    state = torch.randn(1, 3, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: causal_conv(a[0], a[1], state_BWC=a[2])[0], (x, w, state))


def test_strides_and_16_bit() -> None:
    x, w = make(2, 20, 8, 4, torch.float32)
    strided = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(causal_conv(strided, w)[0], causal_conv(x, w)[0])
    y, state = causal_conv(x.bfloat16(), w)
    assert y.dtype == state.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), causal_conv(x, w)[0], rtol=3e-2, atol=3e-2)
