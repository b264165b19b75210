"""RMSNorm as a module, seed layers 1, 4 and 7. Legend: ... any shape, D normalised width."""

import torch
from torch import Tensor, nn

from superblock.kernels.norm import rms_norm, rms_norm_and_wide
from superblock.kernels.precision import compute_dtype

__all__ = ["RMSNorm", "rms_norm"]


class RMSNorm(nn.Module):
    """`rms_norm` with its weight, which starts at 1 and is stored as it is applied (not as an offset from 1)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_D: Tensor) -> Tensor:
        """Same shape and dtype as `x_D`."""
        return rms_norm(x_D, self.weight, self.eps)

    def for_products(self, x_D: Tensor) -> Tensor:
        """In the dtype of matrix products, bf16 under autocast, for a result that nothing else reads."""
        return rms_norm(x_D, self.weight, self.eps, dtype=compute_dtype(x_D))

    def for_products_and_wide(self, x_D: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and unrounded: for readers with a small fp32 product (gates, router) beside the large ones."""
        return rms_norm_and_wide(x_D, self.weight, self.eps, dtype=compute_dtype(x_D))
