"""RMSNorm, its gated form, and results in the dtype that the next matrix product wants.

Legend: ... any shape, D normalised width. Everything is computed in fp32 (float64 for float64) whatever autocast says.
The C++ kernel runs on a processor that can build it, for fp32 and bf16; PyTorch's form everywhere else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.norm import native
from superblock.kernels.norm.torch_form import torch_rms_norm
from superblock.kernels.precision import accumulation_dtype

__all__ = ["gated_rms_norm", "rms_norm", "rms_norm_and_wide"]


def rms_norm(x_D: Tensor, weight_D: Tensor, eps: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension; `weight_D` is anything that broadcasts to `x_D`.

    Returned in `dtype`, or in that of `x`: the fp32 residual stream stays fp32, queries and keys that a bf16 projection
    made stay bf16. Where only matrix products read the result, `precision.compute_dtype(x)` saves them a cast each.
    """
    dtype = dtype or x_D.dtype
    if native.fits(x_D, weight_D, dtype):
        return native.rms_norm(x_D, weight_D, eps, dtype, False)[0]
    return torch_rms_norm(x_D, weight_D, eps).to(dtype)


def rms_norm_and_wide(x_D: Tensor, weight_D: Tensor, eps: float, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The result in `dtype`, for matrix products, and unrounded: fp32, or float64 for float64.

    For layers with a small product that must not be rounded (gates, router) beside the large ones.
    """
    wide = accumulation_dtype(x_D)
    if dtype == wide:
        y_D = rms_norm(x_D, weight_D, eps, dtype=wide)
        return y_D, y_D
    if native.fits(x_D, weight_D, dtype):
        return native.rms_norm(x_D, weight_D, eps, dtype, True)[:2]
    y_D = torch_rms_norm(x_D, weight_D, eps)
    return y_D.to(dtype), y_D


def gated_rms_norm(
    x_D: Tensor, weight_D: Tensor, gate_D: Tensor, eps: float, *, dtype: torch.dtype | None = None
) -> Tensor:
    """rms_norm(x) * silu(gate) in `dtype`, or in that of `x`; rounded once, at the end. `gate` has the shape of `x`."""
    dtype = dtype or x_D.dtype
    if native.fits_gated(x_D, weight_D, gate_D, dtype):
        return native.gated_rms_norm(x_D, weight_D, gate_D, eps, dtype)[0]
    normed_D = torch_rms_norm(x_D, weight_D, eps)
    return (normed_D * F.silu(gate_D.to(normed_D.dtype))).to(dtype)
