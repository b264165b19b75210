"""A decoding step from the other kernels' references: what the native form is checked against.

Legend: B sequences, D width, N vocabulary, L layers, E experts; see `weights`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.attention import rotary
from superblock.kernels.attention.eager import eager
from superblock.kernels.decode.weights import Attention, Delta, DeltaState, Experts, KeyValues, Sizes
from superblock.kernels.delta_rule import causal_conv
from superblock.kernels.delta_rule.reference import recurrent
from superblock.kernels.experts.loop import loop


def step(
    sizes: Sizes,
    layers: Sequence[tuple[Delta | Attention, Experts]],
    norm_D: Tensor,
    table_ND: Tensor,
    theta: float,
    x_BD: Tensor,
    states: Sequence[DeltaState | KeyValues],
    position: int,
) -> tuple[Tensor, list[DeltaState], Tensor]:
    """Logits [B, N], the new states of the delta rule, and tokens routed to each expert [L, E].

    Keys and values are written into their buffers. Any floating dtype.
    """
    x_BD, after, counts = x_BD.clone(), [], []
    for (mixer, experts), state in zip(layers, states, strict=True):
        h_BD = _norm(x_BD, mixer.norm, sizes)
        if isinstance(mixer, Delta):
            assert isinstance(state, DeltaState)
            y_BD, new = _delta(sizes, mixer, h_BD, state)
            after.append(new)
        else:
            assert isinstance(state, KeyValues)
            y_BD = _attention(sizes, mixer, h_BD, state, position, theta)
        x_BD = x_BD + y_BD
        y_BD, counts_E = _experts(sizes, experts, x_BD)
        x_BD = x_BD + y_BD
        counts.append(counts_E)
    return F.linear(_norm(x_BD, norm_D, sizes), table_ND), after, torch.stack(counts)


def _norm(x: Tensor, weight: Tensor, s: Sizes) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, s.epsilon)


def _delta(s: Sizes, w: Delta, h_BD: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
    qkvz = F.linear(h_BD, w.project)[:, None]
    mixed_BTC, conv_BWC = causal_conv(qkvz[..., : s.channels], w.conv, state_BWC=state.conv_BWC)
    keys = s.key_heads * s.key_width
    q, k, v = mixed_BTC.split([keys, keys, s.value_heads * s.value_width], dim=-1)
    b_BTH, a_BTH = F.linear(h_BD, w.gates)[:, None].chunk(2, dim=-1)
    g_BTH = -w.decay.exp() * F.softplus(a_BTH + w.bias)
    q, k = q.unflatten(-1, (s.key_heads, -1)), k.unflatten(-1, (s.key_heads, -1))
    v = v.unflatten(-1, (s.value_heads, -1))
    o, matrix = recurrent(q, k, v, g_BTH, b_BTH.sigmoid() * s.write_scale, initial_state=state.matrix_BHKV)
    z = qkvz[..., s.channels :].unflatten(-1, (s.value_heads, -1))
    y = _norm(o, w.head_norm, s) * F.silu(z)
    return F.linear(y.flatten(1), w.out), DeltaState(conv_BWC, matrix)


def _attention(s: Sizes, w: Attention, h_BD: Tensor, state: KeyValues, position: int, theta: float) -> Tensor:
    heads = F.linear(h_BD, w.project).unflatten(-1, (-1, s.head_width))[:, None]
    Q, G, at = s.query_heads, s.kv_heads, state.length
    positions_BT = torch.full((len(h_BD), 1), position)
    fraction = s.rotated / s.head_width
    turn = lambda x, weight: rotary(_norm(x, weight, s), positions_BT, fraction=fraction, theta=theta)  # noqa: E731
    q = turn(heads[:, :, :Q], w.query_norm)
    state.keys_BSGK[:, at : at + 1] = turn(heads[:, :, Q : Q + G], w.key_norm)
    state.values_BSGK[:, at : at + 1] = heads[:, :, Q + G : Q + 2 * G]
    keys, values = state.keys_BSGK[:, : at + 1].to(q.dtype), state.values_BSGK[:, : at + 1].to(q.dtype)
    o = eager(q, keys, values, pack=None, window=s.window or None, query_start=at)
    if s.gated:
        o = o * heads[:, :, Q + 2 * G :].sigmoid()
    return F.linear(o.flatten(1), w.out)


def _experts(s: Sizes, w: Experts, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    h_BD = x_BD if w.moe_norm is None else _norm(x_BD, w.moe_norm, s)
    logits_BE = F.linear(h_BD, w.router)
    scores_BE = logits_BE.softmax(-1) if s.softmax else logits_BE.sigmoid()
    index_Bk = (scores_BE + w.balance).topk(s.chosen, dim=-1).indices
    weight_Bk = scores_BE.gather(-1, index_Bk)
    weight_Bk = weight_Bk * (s.route_scale / (weight_Bk.sum(-1, keepdim=True) + 1e-20))
    y_BD = loop(h_BD, w.gate_up, w.down, index_Bk, weight_Bk)
    if w.shared_gate_up is not None and w.shared_down is not None:
        gate, up = F.linear(h_BD, w.shared_gate_up).chunk(2, dim=-1)
        shared_BD = F.linear(F.silu(gate) * up, w.shared_down)
        if w.shared_gate is not None:
            shared_BD = shared_BD * F.linear(h_BD, w.shared_gate[None]).sigmoid()
        y_BD = y_BD + shared_BD
    return y_BD, torch.bincount(index_Bk.flatten(), minlength=s.experts).to(x_BD.dtype)
