"""Attention by xFormers, for GPUs: packed documents and windows without a mask in memory.

xFormers is imported on first use (seconds, and it warns without CUDA). Its biases are built by functions of their own,
so that they can be compared with our masks on a CPU. Legend: B sequences, T queries, S keys, H heads, G kv heads,
K head width.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.cuda_runtime import SONAME, load_cuda_12
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import compute_dtype
from superblock.kernels.tracing import untraced


@functools.cache
def _ops() -> Any:
    load_cuda_12()
    return importlib.import_module("xformers.ops")


def why_not(device: torch.device) -> str | None:
    """Why xFormers cannot be used on `device`; None if it is there. Whether it is right, `proof` tells."""
    if device.type != "cuda":
        return f"it has no kernels for {device.type}"
    try:
        _ops()
        cpp_lib = importlib.import_module("xformers._cpp_lib")
    except ImportError as error:
        return f"it cannot be imported ({error}); pip install xformers"
    if cpp_lib._built_with_cuda:
        return None
    cause: BaseException | None = cpp_lib._cpp_library_load_exception
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    if load_cuda_12() is None:
        return f"its CUDA library needs {SONAME}, which is not here; pip install 'superblock[gpu]'"
    return f"its CUDA library does not load ({str(cause).splitlines()[0] if cause else 'no reason given'})"


@untraced  # xFormers chooses its kernel in Python
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
    flat = (x.reshape(1, B * T, H, K) for x in (q, k, v))  # documents of all rows in one: it wants a batch of 1
    return _ops().memory_efficient_attention(*flat, attn_bias=packed_bias(pack, window)).view(B, T, H, K)


def dense_bias(T: int, S: int, window: int | None) -> Any:
    """Mask of whole rows whose T queries are the last of S tokens: None, or an xFormers bias."""
    if T == 1 and (window is None or window >= S):
        return None
    fmha = _ops().fmha.attn_bias
    if window is None or window >= S:
        return fmha.LowerTriangularMask() if T == S else fmha.LowerTriangularFromBottomRightMask()
    return fmha.LowerTriangularFromBottomRightMask().make_local_attention(window)


def packed_bias(pack: PackInfo, window: int | None) -> Any:
    """Mask of the documents of a flattened batch, an xFormers bias."""
    bias = _documents(pack.host.cu_seqlens, pack.cu_seqlens.device)
    return bias if window is None else bias.make_local_attention(window)


@functools.lru_cache(maxsize=4)  # every layer of a step asks for the same
def _documents(cu_seqlens: Tensor, device: torch.device) -> Any:
    return _ops().fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(cu_seqlens.diff().tolist(), device=device)
