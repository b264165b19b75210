"""Attention written out: the reference. Legend: B sequences, T queries, S keys, H heads, G kv heads, K head width."""

import torch
from torch import Tensor

from superblock.kernels.attention.masks import visible
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import accumulation_dtype, fp32_island


def eager(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, pack: PackInfo | None, window: int | None, query_start: int
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v in fp32 (float64 for float64 inputs), with every score in memory; dtype of `v` out."""
    T, H, K = q_BTHK.shape[1:]
    S, G = k_BSGK.shape[1:3]
    dtype = accumulation_dtype(q_BTHK)
    mask = visible(T, S, pack=pack, window=window, query_start=query_start, device=q_BTHK.device)
    with fp32_island(q_BTHK.device.type):
        k_BSHK = k_BSGK.to(dtype).repeat_interleave(H // G, dim=2)
        v_BSHK = v_BSGK.to(dtype).repeat_interleave(H // G, dim=2)
        scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK.to(dtype), k_BSHK) * K**-0.5
        if mask is not None:
            scores_BHTS = scores_BHTS.masked_fill(~mask, float("-inf"))
        o_BTHK = torch.einsum("bhts,bshk->bthk", scores_BHTS.softmax(-1), v_BSHK)
    return o_BTHK.to(v_BSGK.dtype)
