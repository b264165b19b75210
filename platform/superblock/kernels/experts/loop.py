"""A mixture of SwiGLU experts, one expert after the other: the reference.

Legend: N tokens, D model width, E experts, F expert width, k experts per token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.precision import accumulation_dtype, compute_dtype


def loop(x_ND: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
    """y_n = sum_k weight_nk expert_{index_nk}(x_n); works in every dtype, differentiable by plain autograd."""
    dtype = compute_dtype(x_ND)
    x_ND = x_ND.to(dtype)
    y_ND = torch.zeros_like(x_ND, dtype=accumulation_dtype(x_ND))
    for e in range(len(gate_up_E2FD)):
        token, slot = (index_Nk == e).nonzero(as_tuple=True)
        out = swiglu(x_ND[token], gate_up_E2FD[e], down_EDF[e])
        y_ND = y_ND.index_add(0, token, out.to(y_ND.dtype) * weight_Nk[token, slot, None].to(y_ND.dtype))
    return y_ND.to(dtype)


def swiglu(x_ND: Tensor, gate_up_2FD: Tensor, down_DF: Tensor) -> Tensor:
    """One expert on every token, in the dtype of `x`."""
    gate, up = F.linear(x_ND, gate_up_2FD.to(x_ND.dtype)).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down_DF.to(x_ND.dtype))
