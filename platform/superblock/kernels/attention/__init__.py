"""Causal grouped-query attention over packed documents behind one function.

Legend: B sequences, T queries, S keys, H heads, G kv heads (divides H), K head width.
"""

from torch import Tensor

from superblock.kernels.attention.backend import choose
from superblock.kernels.attention.eager import eager
from superblock.kernels.attention.native import native_attention, native_layer, native_positions
from superblock.kernels.attention.rope import rotary
from superblock.kernels.attention.sdpa import plain_causal, sdpa
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import compute_dtype

__all__ = ["attend", "choose", "native_layer", "native_positions", "rotary"]


def attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    *,
    pack: PackInfo | None,
    window: int | None = None,
    query_start: int = 0,
    backend: str = "auto",
) -> Tensor:
    """o_BTHK = softmax(q k^T / sqrt(K)) v over the keys a query may see; query head h reads kv head h // (H / G).

    Query i sits at absolute index `query_start` + i and key j at index j. It sees keys up to its own index, of its own
    document, and with `window` only the last `window` of them, itself included. With cached keys (S > T) `pack` is None.
    """
    assert q_BTHK.shape[2] % k_BSGK.shape[2] == 0, "query heads must be a multiple of kv heads"
    assert k_BSGK.shape[1] >= query_start + q_BTHK.shape[1], "every query needs its own key"
    masked = query_start == 0 and not plain_causal(q_BTHK.shape[1], k_BSGK.shape[1], pack=pack, window=window)
    dtype, head_dim = compute_dtype(q_BTHK), q_BTHK.shape[-1]
    name = choose(backend, q_BTHK.device, dtype=dtype, head_dim=head_dim, masked=masked)
    if name == "eager":
        return eager(q_BTHK, k_BSGK, v_BSGK, pack=pack, window=window, query_start=query_start)
    if name == "native":
        return native_attention(q_BTHK, k_BSGK, v_BSGK, pack=pack, window=window, query_start=query_start)
    if name == "sdpa":
        return sdpa(q_BTHK, k_BSGK, v_BSGK, pack=pack, window=window, query_start=query_start)
    from superblock.kernels.attention.xformers import memory_efficient

    return memory_efficient(q_BTHK, k_BSGK, v_BSGK, pack=pack, window=window, query_start=query_start)
