"""The gated delta rule one token at a time: the definition, the check of the fast form, and the form for decoding.

Gated DeltaNet (arXiv 2412.06464), equation 10, with the state transposed. Each value head keeps a matrix S [K, V]:

    S_t = exp(g_t) S_{t-1};  u_t = beta_t (v_t - k_t^T S_t);  S_t = S_t + k_t u_t^T;  o_t = q_t^T S_t

Legend: B sequences, T tokens, G key heads, H value heads (a multiple of G), K key width, V value width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import accumulation_dtype, fp32_island
from superblock.kernels.tracing import untraced

EPS = 1e-6
"""Added to the squared length of a key or query before its inverse square root."""


def normalize(x: Tensor) -> Tensor:
    """`x` with unit length along its last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


@untraced
def recurrent(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    pack: PackInfo | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs o_BTHV and the state after the last token, state_BHKV.

    Computes in fp32 (float64 if `q` is float64) and returns that dtype. `initial_state` [B, H, K, V] belongs to the
    first document of each row; later documents of a row start from zero. Differentiable by plain autograd.
    """
    steps = list(_steps(q_BTGK, k_BTGK, v_BTHV, g_BTH, beta_BTH, pack, initial_state))
    return torch.stack([o_BHV for o_BHV, _ in steps], dim=1), steps[-1][1]


def recurrent_states(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    pack: PackInfo | None = None,
    initial_state: Tensor | None = None,
) -> Tensor:
    """The state after every token, [B, T, H, K, V]."""
    steps = _steps(q_BTGK, k_BTGK, v_BTHV, g_BTH, beta_BTH, pack, initial_state)
    return torch.stack([S_BHKV for _, S_BHKV in steps], dim=1)


def _steps(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    pack: PackInfo | None,
    initial_state: Tensor | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Output and state of each token in turn."""
    B, T, G, K = q_BTGK.shape
    H, V = v_BTHV.shape[2:]
    dtype = accumulation_dtype(q_BTGK)
    with fp32_island(q_BTGK.device.type):
        q_BTHK = (normalize(q_BTGK.to(dtype)) * K**-0.5).repeat_interleave(H // G, dim=2)
        k_BTHK = normalize(k_BTGK.to(dtype)).repeat_interleave(H // G, dim=2)
        v_BTHV, g_BTH, beta_BTH = v_BTHV.to(dtype), g_BTH.to(dtype), beta_BTH.to(dtype)
    keep_BT = None if pack is None or pack.whole_rows else _continues(pack)
    S = v_BTHV.new_zeros(B, H, K, V) if initial_state is None else initial_state.to(dtype)
    for t in range(T):
        with fp32_island(q_BTGK.device.type):
            decay_BH = g_BTH[:, t].exp()
            if keep_BT is not None:
                decay_BH = decay_BH * keep_BT[:, t, None]
            S = S * decay_BH[..., None, None]
            u_BHV = beta_BTH[:, t, :, None] * (v_BTHV[:, t] - (k_BTHK[:, t, :, None] @ S).squeeze(2))
            S = S + k_BTHK[:, t, ..., None] * u_BHV[:, :, None]
            o_BHV = (q_BTHK[:, t, :, None] @ S).squeeze(2)
        yield o_BHV, S


def _continues(pack: PackInfo) -> Tensor:
    """Whether a token continues the document before it in the row; the first of a row continues the initial state."""
    doc_BT = pack.doc_ids_BT
    first_BT = torch.ones_like(doc_BT[:, :1], dtype=torch.bool)
    return torch.cat([first_BT, doc_BT[:, 1:] == doc_BT[:, :-1]], dim=1)
