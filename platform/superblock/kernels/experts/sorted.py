"""Experts as one GEMM pair per expert over tokens sorted by expert, with a hand-written backward: the form for CPU.

Legend: N tokens, D model width, E experts, F expert width, k experts per token, P rows: N * k and padding.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from superblock.kernels.precision import accumulation_dtype, compute_dtype
from superblock.kernels.tracing import untraced

HALF_ROWS = 128
"""Rows of each expert are padded to a multiple of this in 16-bit: oneDNN builds a kernel for every new shape (2-3 ms
against 0.3 ms when it has seen it), and token counts differ in every step."""


class _Plan(NamedTuple):
    """Where each token goes."""

    ends: list[int]
    """E + 1 numbers: expert e has the rows from ends[e] to ends[e + 1]."""
    token_P: Tensor
    """Which token lies in a row; 0 in rows of padding."""
    place_Nk: Tensor
    """In which row each choice of each token lies."""


def _plan(index_Nk: Tensor, num_experts: int, multiple: int) -> _Plan:
    """Sort the choices by expert, each expert's rows padded to a multiple."""
    N, k = index_Nk.shape
    expert = index_Nk.flatten()
    order = expert.argsort(stable=True)
    counts_E = torch.bincount(expert, minlength=num_experts)
    padded_E = (counts_E + multiple - 1) // multiple * multiple
    shift_E = (padded_E.cumsum(0) - padded_E) - (counts_E.cumsum(0) - counts_E)
    row = torch.arange(N * k, device=expert.device) + shift_E[expert[order]]
    ends = [0, *padded_E.cumsum(0).tolist()]
    token_P = order.new_zeros(ends[-1]).index_copy_(0, row, order // k)
    place = torch.empty_like(order).index_copy_(0, order, row)
    return _Plan(ends, token_P, place.view(N, k))


@untraced
def sorted_experts(x_ND: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
    """Same as `loop`; differentiable once in `x`, both weights and the routing weights. Deterministic."""
    dtype = compute_dtype(x_ND)
    plan = _plan(index_Nk, len(gate_up_E2FD), HALF_ROWS if dtype.itemsize == 2 else 1)
    return _SortedExperts.apply(x_ND, gate_up_E2FD, down_EDF, weight_Nk, plan, dtype)


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        weight_Nk: Tensor,
        plan: _Plan,
        dtype: torch.dtype,
    ) -> Tensor:
        width = down_EDF.shape[2]
        gate_up, down = gate_up_E2FD.to(dtype), down_EDF.to(dtype)
        x_PD = x_ND.to(dtype).index_select(0, plan.token_P)
        hidden = x_PD.new_empty(len(x_PD), 2 * width)
        act, out = x_PD.new_empty(len(x_PD), width), torch.empty_like(x_PD)
        for e, rows in _filled(plan.ends):
            torch.mm(x_PD[rows], gate_up[e].t(), out=hidden[rows])
            torch.mul(F.silu(hidden[rows, :width]), hidden[rows, width:], out=act[rows])
            torch.mm(act[rows], down[e].t(), out=out[rows])
        ctx.save_for_backward(x_PD, hidden, act, out, gate_up, down, weight_Nk)
        ctx.plan, ctx.dtypes = plan, (x_ND.dtype, gate_up_E2FD.dtype, down_EDF.dtype)
        return _combine(out, plan.place_Nk, weight_Nk.to(accumulation_dtype(x_ND))).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_PD, hidden, act, out, gate_up, down, weight_Nk = ctx.saved_tensors
        plan, (x_dtype, gate_up_dtype, down_dtype) = ctx.plan, ctx.dtypes
        width, wide = act.shape[1], accumulation_dtype(x_PD)
        dout = dy_ND.to(x_PD.dtype).index_select(0, plan.token_P)
        dweight_P = (dout * out).sum(-1, dtype=wide)
        weight_P = dout.new_zeros(len(dout)).index_copy_(0, plan.place_Nk.flatten(), weight_Nk.flatten().to(dout.dtype))
        dout.mul_(weight_P[:, None])  # 0 in rows of padding, so that they reach no gradient
        dx_PD = torch.empty_like(x_PD)
        dgate_up = torch.zeros_like(gate_up, dtype=gate_up_dtype, memory_format=torch.contiguous_format)
        ddown = torch.zeros_like(down, dtype=down_dtype, memory_format=torch.contiguous_format)
        for e, rows in _filled(plan.ends):
            gate, up = hidden[rows, :width], hidden[rows, width:]
            dact = torch.mm(dout[rows], down[e])
            ddown[e].copy_(torch.mm(dout[rows].t(), act[rows]))
            dhidden = torch.empty_like(hidden[rows])
            dhidden[:, :width] = torch.ops.aten.silu_backward(dact * up, gate)
            torch.mul(dact, F.silu(gate), out=dhidden[:, width:])
            dgate_up[e].copy_(torch.mm(dhidden.t(), x_PD[rows]))
            torch.mm(dhidden, gate_up[e], out=dx_PD[rows])
        dx_ND = _combine(dx_PD, plan.place_Nk, None).to(x_dtype)
        dweight_Nk = dweight_P[plan.place_Nk].to(weight_Nk.dtype)
        return dx_ND, dgate_up, ddown, dweight_Nk, None, None


def _filled(ends: list[int]) -> list[tuple[int, slice]]:
    """The experts that have rows, and which."""
    return [(e, slice(*span)) for e, span in enumerate(pairwise(ends)) if span[0] < span[1]]


def _combine(rows_PD: Tensor, place_Nk: Tensor, weight_Nk: Tensor | None) -> Tensor:
    """Each token's rows, weighted and added in the order of its choices, in fp32 (float64)."""
    total_ND = rows_PD.new_zeros(len(place_Nk), rows_PD.shape[1], dtype=accumulation_dtype(rows_PD))
    for choice in range(place_Nk.shape[1]):
        part_ND = rows_PD.index_select(0, place_Nk[:, choice])
        if weight_Nk is None:
            total_ND.add_(part_ND)
        else:
            total_ND.addcmul_(part_ND.to(total_ND.dtype), weight_Nk[:, choice, None])
    return total_ND
