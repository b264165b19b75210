"""Root-mean-square normalisation, seed layers 1, 4 and 7. Legend: ... any shape, D normalised width."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from superblock.kernels.precision import accumulation_dtype


def rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension; `weight_D` is anything that broadcasts to `x_D`.

    Computed in fp32 (float64 for float64) whatever autocast says, and returned in the dtype of `x`: the fp32 residual
    stream stays fp32, queries and keys that a bf16 projection made stay bf16.
    """
    dtype = accumulation_dtype(x_D)
    x, weight = x_D.to(dtype), weight_D.to(dtype)
    if x.device.type == "cpu":
        return _RMSNorm.apply(x, weight, eps).to(x_D.dtype)
    return (F.rms_norm(x, x.shape[-1:], None, eps) * weight).to(x_D.dtype)


class _RMSNorm(torch.autograd.Function):
    """What a GPU has a fused kernel for; on a CPU torch's own form runs at half this speed, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        square = torch.linalg.vector_norm(x_D, dim=-1, keepdim=True).square_()
        scale = square.div_(x_D.shape[-1]).add_(eps).rsqrt_()
        normed_D = x_D * scale
        ctx.save_for_backward(normed_D, scale, weight_D)
        return normed_D * weight_D

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_D: Tensor) -> tuple[Tensor, Tensor, None]:
        normed_D, scale, weight_D = ctx.saved_tensors
        dweight = (dy_D * normed_D).sum_to_size(weight_D.shape)
        dx_D = dy_D * weight_D
        along = (dx_D * normed_D).sum(-1, keepdim=True).div_(dx_D.shape[-1])
        return dx_D.addcmul_(normed_D, along, value=-1).mul_(scale), dweight, None


class RMSNorm(nn.Module):
    """`rms_norm` with its weight, which starts at 1 and is stored as it is applied (not as an offset from 1)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_D: Tensor) -> Tensor:
        """Same shape and dtype as `x_D`."""
        return rms_norm(x_D, self.weight, self.eps)
