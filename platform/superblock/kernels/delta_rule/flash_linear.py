"""The gated delta rule by flash-linear-attention's Triton kernel, for GPUs; imported on first use.

It has not run on a GPU yet: its shapes and the rearranging of documents are tested with the recurrence in its place.
Legend: B sequences, T tokens, G key heads, H value heads, N documents of the batch, K key width, V value width.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.packing import PackInfo, move
from superblock.kernels.tracing import untraced

CHUNK = 64
"""Tokens of the library's chunks unless it is told otherwise."""


@functools.cache
def _kernel() -> Any:
    return importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule


def why_not(q_BTGK: Tensor) -> str | None:
    """Why flash-linear-attention cannot run on these queries, in words; None if it can."""
    if q_BTGK.device.type != "cuda":
        return f"it has no kernels for {q_BTGK.device.type}"
    if q_BTGK.dtype not in (torch.bfloat16, torch.float16):
        return f"it wants bf16 or fp16 queries (bf16 precision gives them), not {q_BTGK.dtype}"
    if q_BTGK.shape[3] > 256:
        return f"key_dim={q_BTGK.shape[3]} is above 256"
    try:
        _kernel()
    except ImportError as error:
        return f"it cannot be imported ({error}); pip install flash-linear-attention"
    return None


@untraced
def triton_rule(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    pack: PackInfo | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same as `reference.recurrent`, in the dtype of `q` with fp32 accumulation; results are fp32.

    Packed rows go in as one row of N documents, each with a state of its own.
    """
    B, T = q_BTGK.shape[:2]
    repeat = v_BTHV.shape[2] // q_BTGK.shape[2]
    dtype = q_BTGK.dtype
    q, k = (x.to(dtype).repeat_interleave(repeat, dim=2) for x in (q_BTGK, k_BTGK))
    inputs = [q, k, v_BTHV.to(dtype), g_BTH.float(), beta_BTH.float()]
    state = None if initial_state is None else initial_state.float()
    options: dict[str, Any] = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    if pack is None or pack.whole_rows:
        o, last = _kernel()(*inputs, initial_state=state, **options)
        return o.float(), last.float()
    cu_seqlens, chunk_indices = _documents(pack.host.cu_seqlens, q_BTGK.device)
    ends_B = torch.arange(1, B + 1, device=cu_seqlens.device) * T
    last_of_row_B = torch.searchsorted(cu_seqlens, ends_B) - 1
    if state is not None:
        first_of_row_B = torch.searchsorted(cu_seqlens, ends_B - T)
        state = state.new_zeros(len(cu_seqlens) - 1, *state.shape[1:]).index_copy(0, first_of_row_B, state)
    flat = (x.flatten(0, 1)[None] for x in inputs)
    options |= {"cu_seqlens": cu_seqlens, "chunk_indices": chunk_indices}
    o, last = _kernel()(*flat, initial_state=state, **options)
    return o.unflatten(1, (B, T))[0].float(), last[last_of_row_B].float()


@functools.lru_cache(maxsize=4)  # every layer of a step asks for the same
def _documents(cu_seqlens: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cumulative lengths, and for each chunk its document and its number there, int64 on the device.

    Made where the lengths are known: the library would wait for the device to count its chunks.
    """
    cu_seqlens = cu_seqlens.long()
    chunks_N = (cu_seqlens.diff() + CHUNK - 1) // CHUNK
    document_C = torch.repeat_interleave(chunks_N)
    number_C = torch.arange(len(document_C)) - (chunks_N.cumsum(0) - chunks_N)[document_C]
    return move(cu_seqlens, device), move(torch.stack([document_C, number_C], dim=1), device)
