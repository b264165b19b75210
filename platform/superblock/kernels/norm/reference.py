"""Root-mean-square normalisation as its formula. Legend: ... any shape, D normalised width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.precision import accumulation_dtype


def reference_rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps), in fp32 (float64 for float64); plain autograd."""
    x = x_D.to(accumulation_dtype(x_D))
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight_D.to(x.dtype)


def reference_gated_rms_norm(x_D: Tensor, weight_D: Tensor, gate_D: Tensor, eps: float) -> Tensor:
    """The same times silu(gate)."""
    normed_D = reference_rms_norm(x_D, weight_D, eps)
    return normed_D * F.silu(gate_D.to(normed_D.dtype))
