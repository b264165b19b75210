"""Causal depthwise convolution and SiLU over packed documents, with the state that decoding needs.

Legend: B sequences, T tokens, C channels, W taps (tap W-1 is the token itself), P = W - 1 + T padded tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from superblock.kernels.delta_rule.native_convolution import fused_conv, unfit
from superblock.kernels.packing import PackInfo


def causal_conv(
    x_BTC: Tensor, weight_CW: Tensor, *, pack: PackInfo | None = None, state_BWC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """silu(conv(x)) in the dtype of `x`, and the last W-1 inputs [B, W-1, C], which continue the last document.

    `state_BWC` holds the W-1 inputs before the first token of each row; without it they are zero. Taps that reach into
    another document count as zero; in the returned state such inputs are zero for the same reason. In C++ where that can
    run, else by shifts.
    """
    form = fused_conv if unfit(x_BTC, weight_CW) is None else shifted_conv
    return form(x_BTC, weight_CW, pack=pack, state_BWC=state_BWC)


def shifted_conv(
    x_BTC: Tensor, weight_CW: Tensor, *, pack: PackInfo | None = None, state_BWC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`causal_conv` in PyTorch alone, for every device and dtype."""
    B, T, C = x_BTC.shape
    W = weight_CW.shape[1]
    before_BWC = x_BTC.new_zeros(B, W - 1, C) if state_BWC is None else state_BWC.to(x_BTC.dtype)
    x_BPC = torch.cat([before_BWC, x_BTC], dim=1)
    state_BWC = x_BPC[:, T:]
    keep_WBT = None
    if pack is not None and not pack.whole_rows:
        doc_BP = torch.cat([pack.doc_ids_BT[:, :1].expand(-1, W - 1), pack.doc_ids_BT], dim=1)
        keep_WBT = torch.stack([doc_BP[:, j : j + T] == doc_BP[:, W - 1 :] for j in range(W)])
        state_BWC = state_BWC * (doc_BP[:, T:] == doc_BP[:, -1:])[..., None].to(x_BTC.dtype)
    return F.silu(_ShiftAdd.apply(x_BPC, weight_CW.to(x_BTC.dtype), keep_WBT)), state_BWC


class _ShiftAdd(torch.autograd.Function):
    """y_t = sum_j x_{t+j} w_j as W shifted multiply-adds, which on CPU beat a grouped convolution with its transposes."""

    @staticmethod
    def forward(ctx: Any, x_BPC: Tensor, w_CW: Tensor, keep_WBT: Tensor | None) -> Tensor:
        W = w_CW.shape[1]
        T = x_BPC.shape[1] - W + 1
        taps_WC = w_CW.t().contiguous()
        y_BTC = x_BPC[:, W - 1 :] * taps_WC[W - 1]
        for j in range(W - 1):
            y_BTC.addcmul_(_tap(x_BPC, j, T, keep_WBT), taps_WC[j])
        ctx.save_for_backward(x_BPC, taps_WC, keep_WBT)
        return y_BTC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTC: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BPC, taps_WC, keep_WBT = ctx.saved_tensors
        W, T = len(taps_WC), dy_BTC.shape[1]
        dx_BPC = torch.zeros_like(x_BPC)
        dtaps_WC = torch.empty_like(taps_WC)
        for j in range(W):
            d_BTC = dy_BTC if keep_WBT is None else dy_BTC * keep_WBT[j, ..., None].to(dy_BTC.dtype)
            dx_BPC[:, j : j + T].addcmul_(d_BTC, taps_WC[j])
            dtaps_WC[j] = (d_BTC * x_BPC[:, j : j + T]).sum((0, 1))
        return dx_BPC, dtaps_WC.t(), None


def _tap(x_BPC: Tensor, j: int, T: int, keep_WBT: Tensor | None) -> Tensor:
    """What tap j reads, zero where that is another document."""
    x_BTC = x_BPC[:, j : j + T]
    return x_BTC if keep_WBT is None else x_BTC * keep_WBT[j, ..., None].to(x_BTC.dtype)
