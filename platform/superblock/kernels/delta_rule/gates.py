"""The gates of Gated DeltaNet: how strongly a token writes, and how fast the state decays.

Legend: ... any shape of tokens, D width, H value heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.delta_rule import native_gates
from superblock.kernels.precision import accumulation_dtype, fp32_island


def delta_gates(
    x_D: Tensor, weight_2HD: Tensor, A_log_H: Tensor, dt_bias_H: Tensor, *, strength: float
) -> tuple[Tensor, Tensor]:
    """g = -exp(A_log) softplus(a + dt_bias), the logarithm of the decay, and beta = strength sigmoid(b); [b | a] = x W^T.

    Both [..., H] in fp32 (float64 for float64), autocast or not: bf16 is too coarse for a decay that compounds over
    thousands of tokens. The C++ kernel runs on a processor that can build it, PyTorch's form everywhere else.
    """
    x_D = x_D.to(accumulation_dtype(x_D))
    inputs = x_D, weight_2HD, A_log_H, dt_bias_H
    if native_gates.fits(*inputs):
        return native_gates.delta_gates(*inputs, strength)[:2]
    return reference_gates(*inputs, strength)


def reference_gates(
    x_D: Tensor, weight_2HD: Tensor, A_log_H: Tensor, dt_bias_H: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """The formula, in the dtype of `x`; plain autograd."""
    weight_2HD, A_log_H, dt_bias_H = (t.to(x_D.dtype) for t in (weight_2HD, A_log_H, dt_bias_H))
    with fp32_island(x_D.device.type):
        b_H, a_H = F.linear(x_D, weight_2HD).chunk(2, dim=-1)
        return -A_log_H.exp() * F.softplus(a_H + dt_bias_H), strength * torch.sigmoid(b_H)
