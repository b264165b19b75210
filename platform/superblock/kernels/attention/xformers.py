"""Attention by xFormers, for GPUs: packed documents without a mask in memory.

xFormers is imported on first use (seconds, and it warns without CUDA). Its biases are built by functions of their own,
so that they can be compared with our masks on a CPU. Legend: B sequences, T queries, S keys, H heads, G kv heads,
K head width.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import compute_dtype


@functools.cache
def _ops() -> Any:
    return importlib.import_module("xformers.ops")


def why_not(device: torch.device) -> str | None:
    """Why xFormers cannot run on `device`; None if it can."""
    if device.type != "cuda":
        return f"it has no kernels for {device.type}"
    try:
        _ops()
        cpp_lib = importlib.import_module("xformers._cpp_lib")
    except ImportError as error:
        return f"it cannot be imported ({error}); pip install xformers"
    if not cpp_lib._built_with_cuda:
        return "its CUDA library does not load; install the wheel for this torch's CUDA version"
    return None


def memory_efficient(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, pack: PackInfo | None, window: int | None, query_start: int
) -> Tensor:
    """Same as `eager`, in the compute dtype. Keys and values are repeated: grouped heads have no backward there."""
    B, T, H, K = q_BTHK.shape
    end = query_start + T
    dtype = compute_dtype(q_BTHK)
    k, v = (x[:, :end].to(dtype).repeat_interleave(H // k_BSGK.shape[2], dim=2) for x in (k_BSGK, v_BSGK))
    q = q_BTHK.to(dtype)
    if pack is None or pack.whole_rows:
        return _ops().memory_efficient_attention(q, k, v, attn_bias=dense_bias(T, end, window))
    bias = packed_bias(pack.cu_seqlens, window, q.device)
    flat = (x.reshape(1, B * T, H, K) for x in (q, k, v))  # documents of all rows in one: it wants a batch of 1
    return _ops().memory_efficient_attention(*flat, attn_bias=bias).view(B, T, H, K)


def dense_bias(T: int, S: int, window: int | None) -> Any:
    """Mask of whole rows whose T queries are the last of S tokens: None, or an xFormers bias."""
    if T == 1 and (window is None or window >= S):
        return None
    fmha = _ops().fmha.attn_bias
    if window is None or window >= S:
        return fmha.LowerTriangularMask() if T == S else fmha.LowerTriangularFromBottomRightMask()
    return fmha.LowerTriangularFromBottomRightMask().make_local_attention(window)


@functools.lru_cache(maxsize=4)  # every layer of a step asks for the same; reading the lengths waits for the GPU
def packed_bias(cu_seqlens: Tensor, window: int | None, device: torch.device) -> Any:
    """Mask of the documents of a flattened batch, an xFormers bias."""
    lengths = cu_seqlens.diff().tolist()
    bias = _ops().fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(lengths, device=device)
    return bias if window is None else bias.make_local_attention(window)
