"""Experts by torch's grouped GEMM, for GPUs. Legend: N tokens, D model width, E experts, F expert width, k per token.

torch's kernel is not aware of autocast, and rows behind the last offset are left uninitialised in both passes, so rows
are never padded here (`backend.why_not_grouped` has its other limits).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.precision import compute_dtype


def grouped(x_ND: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
    """Same as `loop`, in three kernels per direction; differentiable by plain autograd."""
    N, k = index_Nk.shape
    dtype = compute_dtype(x_ND)
    if N == 0:
        return x_ND.to(dtype)
    order = index_Nk.flatten().argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=order.device))
    # counted by comparison: bincount waits for the GPU
    experts_E1 = torch.arange(len(gate_up_E2FD), device=order.device)[:, None]
    ends_E = (index_Nk.flatten() == experts_E1).sum(1).cumsum(0).to(torch.int32)
    rows = x_ND.to(dtype)[order // k]
    gate, up = F.grouped_mm(rows, gate_up_E2FD.to(dtype).transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up, down_EDF.to(dtype).transpose(1, 2), offs=ends_E)
    # back in the tokens' order, so that the sum over k has a fixed order
    out_NkD = out[place].view(N, k, -1)
    return (out_NkD.float() * weight_Nk.float()[..., None]).sum(1).to(dtype)
