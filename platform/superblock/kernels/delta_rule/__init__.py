"""The gated delta rule (arXiv 2412.06464) behind one function.

Legend: B sequences, T tokens, G key heads, H value heads (a multiple of G), K key width, V value width.
"""

import torch
from torch import Tensor

from superblock.kernels.delta_rule.backend import choose
from superblock.kernels.delta_rule.chunked import chunked
from superblock.kernels.delta_rule.convolution import causal_conv
from superblock.kernels.delta_rule.flash_linear import triton_rule
from superblock.kernels.delta_rule.native import fused
from superblock.kernels.delta_rule.reference import recurrent
from superblock.kernels.packing import PackInfo

__all__ = ["causal_conv", "gated_delta_rule"]


def gated_delta_rule(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    pack: PackInfo | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Outputs o_BTHV and final state_BHKV, both fp32 (float64 for float64 inputs), autocast or not.

    `q` and `k` come in raw: they are brought to unit length here and `q` is scaled by K^-0.5. `g` is the logarithm of
    the decay (<= 0), `beta` the strength of writing, in (0, 1) or (0, 2). Value head h reads key head h // (H / G).
    `initial_state` [B, H, K, V] belongs to the first document of each row. `chunk_size` is a power of two from 8, or 0
    for the chosen form's own.
    """
    assert v_BTHV.shape[2] % q_BTGK.shape[2] == 0, "value heads must be a multiple of key heads"
    inputs = (q_BTGK, k_BTGK, v_BTHV, g_BTH, beta_BTH)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    match choose(backend, q_BTGK, v_BTHV, chunk_size=chunk_size, training=training):
        case "native":
            return fused(*inputs, pack=pack, initial_state=initial_state, chunk_size=chunk_size)
        case "fla":
            return triton_rule(*inputs, pack=pack, initial_state=initial_state)
        case "recurrent":
            return recurrent(*inputs, pack=pack, initial_state=initial_state)
    return chunked(*inputs, pack=pack, initial_state=initial_state, chunk_size=chunk_size or 32)
