"""Root-mean-square normalisation, seed layers 1, 4 and 7. Legend: ... any shape, D normalised width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superblock.kernels.precision import accumulation_dtype


def rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension; `weight_D` is anything that broadcasts to `x_D`.

    Computed in fp32 (float64 for float64) whatever autocast says, and returned in the dtype of `x`: the fp32 residual
    stream stays fp32, queries and keys that a bf16 projection made stay bf16.
    """
    dtype = accumulation_dtype(x_D)
    return (F.rms_norm(x_D.to(dtype), x_D.shape[-1:], None, eps) * weight_D.to(dtype)).to(x_D.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its weight, which starts at 1 and is stored as it is applied (not as an offset from 1)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_D: Tensor) -> Tensor:
        """Same shape and dtype as `x_D`."""
        return rms_norm(x_D, self.weight, self.eps)
