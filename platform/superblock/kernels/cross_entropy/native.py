"""The C++ form of what lies between the products of a cross-entropy. Legend: C rows, V vocabulary."""

from pathlib import Path

import torch
from torch import Tensor

from superblock.kernels.cross_entropy.reference import IGNORE
from superblock.kernels.cross_entropy.rows import torch_row_losses, torch_row_scores
from superblock.kernels.native import NativeLibrary, native_operator


def fits(logits_dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the C++ form serves logits of this dtype; builds it at the first call."""
    return device.type == "cpu" and logits_dtype in (torch.float32, torch.bfloat16) and LIBRARY.why_not() is None


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


def _checked(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    """The labels as the source reads them."""
    C, V = logits_CV.shape
    assert logits_CV.is_contiguous(), "the logits are one product's result, contiguous"
    assert logits_CV.dtype in (torch.float32, torch.bfloat16), f"the C++ form has no {logits_CV.dtype}"
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


LIBRARY = NativeLibrary(Path(__file__).with_name("native.cpp"), check=_check)
