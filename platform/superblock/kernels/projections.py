"""What stands around a mixer in an operation that is a whole layer: norm and projection before it, projection and sum behind.

For operations that write their own gradients; nothing here is differentiable. Products are torch's, of weights that are
in their dtype already; the norm is the C++ one.

Legend: B sequences, T tokens, D model width, N columns of the projection, M columns of the mixer's output.
"""

import torch
from torch import Tensor

from superblock.kernels.norm.native import rms_norm, rms_norm_backward


def multiplies(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a module would multiply this weight in `dtype`: only autocast makes it another than its own."""
    return weight.dtype == dtype or torch.is_autocast_enabled("cpu")


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`, to be kept for the backward pass; empty if it is in that dtype already."""
    return weight.to(dtype) if weight.dtype != dtype else weight.new_empty(0)


def kept_or(kept: Tensor, weight: Tensor) -> Tensor:
    """What `rounded` kept, or the weight itself if that was nothing."""
    return kept if kept.numel() else weight


def enter(
    x_BTD: Tensor, norm_D: Tensor, weight_ND: Tensor, eps: float, dtype: torch.dtype, *, wide: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The normed tokens in `dtype`, the same in fp32 (empty if not `wide`, or if `dtype` is), the norm's scales, and rows
    [B, T, N]."""
    h_BTD, wide_BTD, scales = rms_norm(x_BTD, norm_D, eps, dtype, wide and dtype != torch.float32)
    return h_BTD, wide_BTD, scales, _times(h_BTD, weight_ND.t())


def leave(x_BTD: Tensor, y_BTM: Tensor, weight_DM: Tensor) -> Tensor:
    """The residual stream x plus the mixer's output after its projection, in the dtype of `x`."""
    branch_BTD = _times(y_BTM, weight_DM.t())
    return torch.add(x_BTD, branch_BTD) if branch_BTD.dtype == x_BTD.dtype else branch_BTD.to(x_BTD.dtype).add_(x_BTD)


def leave_backward(dstream_BTD: Tensor, y_BTM: Tensor, weight_DM: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the mixer's output and of the projection's weight; that of the stream is `dstream` itself."""
    d_BTD = dstream_BTD.to(y_BTM.dtype)
    return _times(d_BTD, weight_DM), _summed(d_BTD, y_BTM)


def enter_backward(
    dstream_BTD: Tensor,
    drows_BTN: Tensor,
    dwide_BTD: Tensor | None,
    x_BTD: Tensor,
    norm_D: Tensor,
    weight_ND: Tensor,
    h_BTD: Tensor,
    scales: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the stream, by both ways, of the norm's and of the projection's weight."""
    dweight, dh_BTD = _summed(drows_BTN, h_BTD), _times(drows_BTN, weight_ND)
    dx_BTD, dnorm = rms_norm_backward(x_BTD, norm_D, scales, dh_BTD, dwide_BTD, dstream_BTD)
    return dx_BTD, dnorm, dweight


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.mm(x.flatten(0, 1), matrix).unflatten(0, x.shape[:2])


def _summed(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of a projection's weight, in the dtype of the product."""
    return torch.mm(dy.flatten(0, 1).t(), x.flatten(0, 1))
