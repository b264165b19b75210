"""The C++ forms of a cross-entropy: with its products, or of what lies between them.

Legend: N tokens, D model width, C rows of logits, V vocabulary.
"""

from pathlib import Path

import torch
from torch import Tensor

from superblock.kernels.cross_entropy.reference import IGNORE
from superblock.kernels.cross_entropy.rows import torch_row_losses, torch_row_scores
from superblock.kernels.native import NativeLibrary, native_operator
from superblock.kernels.native.operator import plain
from superblock.kernels.precision import compute_dtype
from superblock.kernels.projections import unfit_width

_DTYPES = (torch.float32, torch.bfloat16)


def fits(logits_dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the C++ form serves logits of this dtype; builds it at the first call."""
    return device.type == "cpu" and logits_dtype in _DTYPES and LIBRARY.why_not() is None


@native_operator("row_losses", mutates=("logits_CV",))
def native_row_losses(logits_CV: Tensor, labels_C: Tensor, z_loss: float, gradient: bool) -> Tensor:
    """Like `rows.torch_row_losses`: each row's loss, fp32; with `gradient`, the logits become their gradient.

    Raises IndexError for a label that is neither `IGNORE` nor a column.
    """
    labels_C = _checked(logits_CV, labels_C)
    loss_C = logits_CV.new_empty(len(labels_C), dtype=torch.float32)
    half = int(logits_CV.dtype == torch.bfloat16)
    LIBRARY.call("row_losses", logits_CV, half, labels_C, z_loss, int(gradient), loss_C, *logits_CV.shape)
    return loss_C


@native_row_losses.register_fake
def _(logits_CV: Tensor, labels_C: Tensor, z_loss: float, gradient: bool) -> Tensor:
    return logits_CV.new_empty(len(logits_CV), dtype=torch.float32)


@native_operator("row_scores")
def native_row_scores(logits_CV: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
    """Like `rows.torch_row_scores`: nll, fp32, and rank, int64. Raises IndexError as `native_row_losses` does."""
    labels_C = _checked(logits_CV, labels_C)
    nll_C, rank_C = logits_CV.new_empty(len(labels_C), dtype=torch.float32), torch.empty_like(labels_C)
    half = int(logits_CV.dtype == torch.bfloat16)
    LIBRARY.call("row_scores", logits_CV, half, labels_C, nll_C, rank_C, *logits_CV.shape)
    return nll_C, rank_C


@native_row_scores.register_fake
def _(logits_CV: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
    C = len(logits_CV)
    return logits_CV.new_empty(C, dtype=torch.float32), logits_CV.new_empty(C, dtype=torch.int64)


def fits_linear(h_ND: Tensor, w_VD: Tensor) -> bool:
    """Whether the C++ form with products serves these; builds it at the first call."""
    return (
        plain(h_ND, w_VD)
        and all(t.dtype in _DTYPES for t in (h_ND, w_VD))
        and unfit_width(w_VD) is None
        and fits(compute_dtype(h_ND), h_ND.device)
    )


@native_operator("linear_cross_entropy")
def linear_losses(
    h_ND: Tensor, w_VD: Tensor, labels_N: Tensor, dtype: torch.dtype, chunk: int, z_loss: float, dh: bool, dw: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's loss [N], fp32, and the gradients of their sum: of `h` [N, D] in its dtype and of `w` [V, D] in fp32,
    empty unless wanted.

    Products take `dtype`; at most `chunk` rows of logits exist, in blocks of 32.

    Raises:
        IndexError: as `native_row_losses`.
        ValueError: if `h` and `w` have not one width.
    """
    if h_ND.ndim != 2 or w_VD.ndim != 2 or h_ND.shape[1] != w_VD.shape[1]:
        raise ValueError(f"tokens {list(h_ND.shape)} do not fit the unembedding {list(w_VD.shape)}")
    labels_N = _known(labels_N, len(h_ND), len(w_VD))
    loss_N, dh_ND, dw_VD = _linear_outputs(h_ND, w_VD, dh, dw)
    LIBRARY.call(
        "linear_cross_entropy", h_ND.contiguous(), h_ND.dtype == torch.bfloat16, w_VD.contiguous(),
        w_VD.dtype == torch.bfloat16, labels_N, z_loss, dtype == torch.bfloat16, chunk,
        loss_N, dh_ND if dh else None, dh_ND.dtype == torch.bfloat16, dw_VD if dw else None, *h_ND.shape, len(w_VD),
    )  # fmt: skip
    return loss_N, dh_ND, dw_VD


def _linear_outputs(h_ND: Tensor, w_VD: Tensor, dh: bool, dw: bool) -> tuple[Tensor, Tensor, Tensor]:
    loss_N = h_ND.new_empty(len(h_ND), dtype=torch.float32)
    return loss_N, h_ND.new_empty(h_ND.shape if dh else 0), w_VD.new_empty(w_VD.shape if dw else 0, dtype=torch.float32)


@linear_losses.register_fake
def _(h_ND, w_VD, labels_N, dtype, chunk, z_loss, dh, dw):  # type: ignore[no-untyped-def]
    return _linear_outputs(h_ND, w_VD, dh, dw)


def _checked(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    """The labels as the source reads them."""
    assert logits_CV.is_contiguous(), "the logits are one product's result, contiguous"
    assert logits_CV.dtype in _DTYPES, f"the C++ form has no {logits_CV.dtype}"
    C, V = logits_CV.shape
    return _known(labels_C, C, V)


def _known(labels_C: Tensor, C: int, V: int) -> Tensor:
    """The labels, each `IGNORE` or below V, as the source reads them."""
    assert labels_C.shape == (C,), f"{tuple(labels_C.shape)} labels for {C} rows"
    if C and ((wrong := (labels_C != IGNORE) & ((labels_C < 0) | (labels_C >= V))).any()):
        raise IndexError(f"label {int(labels_C[wrong][0])} is not one of {V} tokens")
    return labels_C.to(torch.int64).contiguous()


def _check() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_CV = 3 * torch.randn(7, 83, generator=generator)
    labels_C = torch.tensor([0, 82, IGNORE, 5, 80, 16, 15])
    found, want = logits_CV.clone(), logits_CV.clone()
    loss_C = native_row_losses(found, labels_C, 1e-2, True)
    torch.testing.assert_close(loss_C, torch_row_losses(want, labels_C, 1e-2, True), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
    scores, exact = native_row_scores(logits_CV, labels_C), torch_row_scores(logits_CV, labels_C)
    torch.testing.assert_close(scores[0], exact[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(scores[1], exact[1])
    h_ND, w_VD = torch.randn(7, 32, generator=generator), torch.randn(96, 32, generator=generator)
    logits_NV = h_ND @ w_VD.t()
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        loss_N, dh_ND, dw_VD = linear_losses(h_ND, w_VD, labels_C, dtype, 64, 1e-2, True, True)
        slopes_NV = logits_NV.clone()
        exact_N = torch_row_losses(slopes_NV, labels_C, 1e-2, True)
        wanted = exact_N, slopes_NV @ w_VD, slopes_NV.t() @ h_ND
        for a, b in zip((loss_N, dh_ND, dw_VD), wanted, strict=True):
            assert float((a - b).norm() / b.norm()) < bound


LIBRARY = NativeLibrary(Path(__file__).with_name("native.cpp"), check=_check)
