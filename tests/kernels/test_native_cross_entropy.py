"""The C++ rows of a cross-entropy at every level of this processor: against float64, odd widths, ignored labels, extremes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from superblock.kernels.cross_entropy import linear_cross_entropy, native, score_tokens
from superblock.kernels.cross_entropy.reference import IGNORE, reference_cross_entropy, reference_scores
from superblock.kernels.cross_entropy.rows import torch_row_losses, torch_row_scores
from superblock.kernels.native import processor

LEVELS = processor.levels()
if reason := native.LIBRARY.why_not():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(params=LEVELS, scope="module")
def _level(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native.LIBRARY.at(request.param)
    assert library.why_not() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LIBRARY", library)
        yield


def rows(C: int, V: int, *, spread: float = 3.0, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(V)
    logits = spread * torch.randn(C, V, generator=generator)
    labels = torch.randint(V, (C,), generator=generator)
    labels[torch.rand(C, generator=generator) < ignored] = IGNORE
    return logits, labels


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("V", [1, 3, 16, 61, 64, 130, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_rows_against_float64(V: int, dtype: torch.dtype, z_loss: float) -> None:
    logits, labels = rows(33, V)
    logits = logits.to(dtype)
    exact = logits.double()
    want = torch_row_losses(exact, labels, z_loss, True)
    unchanged = logits.clone()
    torch.testing.assert_close(
        native.native_row_losses(unchanged, labels, z_loss, False).double(), want, rtol=2e-6, atol=2e-6
    )
    assert torch.equal(unchanged, logits)
    loss = native.native_row_losses(logits, labels, z_loss, True)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=2e-6)
    rtol, atol = (4e-3, 1e-30) if dtype == torch.bfloat16 else (2e-6, 3e-7)
    torch.testing.assert_close(logits.double(), exact, rtol=rtol, atol=max(atol, 3e-7))


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("V", [1, 5, 64, 77])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_against_sorting(V: int, dtype: torch.dtype) -> None:
    logits, labels = rows(50, V)
    logits = logits.round().to(dtype)  # ties
    nll, rank = native.native_row_scores(logits, labels)
    want_nll, want_rank = torch_row_scores(logits.double(), labels)
    torch.testing.assert_close(nll.double(), want_nll, rtol=2e-6, atol=2e-6)
    assert torch.equal(rank, want_rank)


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("V", [40, 64])
def test_extreme_rows(V: int) -> None:
    logits = torch.zeros(6, V)
    logits[0, 3], logits[1] = 1e30, 1e4 * torch.arange(V)
    logits[2] = -torch.inf
    logits[2, 7] = 0.0
    logits[3, 5], logits[4, 35], logits[5] = torch.nan, torch.inf, -torch.inf
    labels = torch.tensor([3, 0, 7, 1, 1, 1])
    want = torch_row_losses(exact := logits.double(), labels, 0.0, True)
    loss = native.native_row_losses(logits, labels, 0.0, True)
    torch.testing.assert_close(loss[:3].double(), want[:3])
    torch.testing.assert_close(logits[:3].double(), exact[:3], atol=1e-7, rtol=1e-6)
    assert loss[3:].isnan().all(), "what has no softmax must not look like a number"
    assert logits[3:].isnan().all(dim=1).all()


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize(
    "N,D,V,chunk", [(40, 16, 61, 7), (64, 32, 128, 64), (1, 8, 33, 5), (13, 32, 32, 5), (150, 64, 96, 70)]
)
@pytest.mark.parametrize("half", [False, True])
def test_whole_loss_against_full_logits(N: int, D: int, V: int, chunk: int, half: bool) -> None:
    generator = torch.Generator().manual_seed(N)
    h, w = (torch.randn(n, D, generator=generator).requires_grad_() for n in (N, V))
    _, labels = rows(N, V)
    labels[0] = 0
    exact = [t.detach().double().requires_grad_() for t in (h, w)]
    want = reference_cross_entropy(*exact, labels, z_loss=1e-3)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = linear_cross_entropy(h, w, labels, chunk=chunk, z_loss=1e-3)
        nll, rank = score_tokens(h, w, labels, chunk=chunk)
        want_nll, want_rank = reference_scores(h.detach(), w.detach(), labels)
    torch.testing.assert_close(loss.double(), want, rtol=5e-3 if half else 1e-6, atol=0)
    torch.testing.assert_close(nll, want_nll, rtol=2e-6, atol=2e-6)
    assert torch.equal(rank, want_rank)
    in_one = native.fits_linear(h, w)
    assert in_one == (V % 32 == D % 32 == 0)
    for ours, theirs in zip(torch.autograd.grad(loss / 7, (h, w)), torch.autograd.grad(want / 7, exact), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < (2e-2 if half else 1e-6) * theirs.norm()


def test_wrong_labels_are_refused() -> None:
    for label in (-1, -101, 64):
        with pytest.raises(IndexError, match=f"label {label} is not one of 64"):
            native.native_row_losses(torch.zeros(2, 64), torch.tensor([3, label]), 0.0, True)
        with pytest.raises(IndexError, match=f"label {label} is not one of 64"):
            linear_cross_entropy(torch.zeros(2, 32), torch.zeros(64, 32), torch.tensor([3, label]), chunk=8)


def test_every_thread_count_gives_the_same_bits() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        logits, labels = rows(100, 200)
        linear = native.linear_losses(
            logits[:, :64], logits[:96, :64], labels % 96, torch.bfloat16, 32, 0.0, True, True
        )
        found.append((native.native_row_losses(logits, labels, 1e-3, True), logits, *linear))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_describe_themselves(dtype: torch.dtype) -> None:
    logits, labels = rows(5, 21)
    torch.library.opcheck(native.native_row_losses.registered, (logits.to(dtype), labels, 1e-3, True))
    torch.library.opcheck(native.native_row_scores.registered, (logits.to(dtype), labels))
    h, w, labels = torch.randn(40, 32).to(dtype), torch.randn(64, 32), torch.arange(40)
    for wanted in ((True, True), (False, True), (False, False)):
        torch.library.opcheck(native.linear_losses.registered, (h, w, labels, torch.bfloat16, 32, 1e-3, *wanted))


@pytest.mark.usefixtures("_level")
def test_any_strides_and_what_is_wanted() -> None:
    h, w, labels = torch.randn(70, 64), torch.randn(96, 64), torch.randint(96, (70,))
    every = native.linear_losses(h, w, labels, torch.float32, 32, 1e-3, True, True)
    wide = torch.cat([h, h], dim=1)[:, :64]
    found = native.linear_losses(wide, w.t().contiguous().t(), labels, torch.float32, 64, 1e-3, True, True)
    for a, b in zip(every, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for dh, dw in ((True, False), (False, True), (False, False)):
        loss, dh_ND, dw_VD = native.linear_losses(h, w, labels, torch.float32, 32, 1e-3, dh, dw)
        assert torch.equal(loss, every[0])
        assert torch.equal(dh_ND, every[1]) if dh else not len(dh_ND)
        assert torch.equal(dw_VD, every[2]) if dw else not len(dw_VD)
    nothing = native.linear_losses(h[:0], w, labels[:0], torch.float32, 32, 1e-3, True, True)
    assert nothing[1].shape == (0, 64) and not nothing[2].any()


def test_any_chunk_and_widths_that_differ() -> None:
    h, w, labels = torch.randn(40, 32), torch.randn(64, 32), torch.arange(40)
    want = linear_cross_entropy(h, w, labels, chunk=32)
    for chunk in (1, 33, 10**9, 2**62):
        torch.testing.assert_close(linear_cross_entropy(h, w, labels, chunk=chunk), want)
    with pytest.raises(ValueError, match=r"tokens \[40, 32\] do not fit the unembedding \[64, 96\]"):
        linear_cross_entropy(h, torch.randn(64, 96), labels, chunk=32)
