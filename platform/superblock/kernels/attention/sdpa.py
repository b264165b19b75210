"""Attention by torch's scaled_dot_product_attention: the default on CPU and GPU.

Legend: B sequences, T queries, S keys, H heads, G kv heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.attention.masks import visible
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import compute_dtype


def sdpa(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, pack: PackInfo | None, window: int | None, query_start: int
) -> Tensor:
    """Same as `eager`, in the compute dtype, without keeping the scores."""
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    dtype = compute_dtype(q_BTHK)
    q_BHTK, k_BGSK, v_BGSK = (x.to(dtype).transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    repeats = q_BHTK.shape[1] // k_BGSK.shape[1]
    if repeats > 1 and dtype == torch.float32 and q_BTHK.device.type == "cuda":
        # enable_gqa in fp32 on CUDA falls back to the form that keeps all scores
        k_BGSK, v_BGSK, repeats = k_BGSK.repeat_interleave(repeats, 1), v_BGSK.repeat_interleave(repeats, 1), 1
    # torch's is_causal aligns the triangle at the top left, so it is right only where queries and keys start together
    causal = plain_causal(T, S, pack=pack, window=window)
    mask = None
    if not causal:
        mask = visible(T, S, pack=pack, window=window, query_start=query_start, device=q_BTHK.device)
    o_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=causal, enable_gqa=repeats > 1
    )
    return o_BHTK.transpose(1, 2)


def plain_causal(T: int, S: int, *, pack: PackInfo | None, window: int | None) -> bool:
    """Whether the mask is the square lower triangle of whole rows."""
    whole = pack is None or pack.whole_rows
    return whole and T == S and (window is None or window >= S)
