"""Grouped-query attention, seed layer 5: normed queries and keys, partial rotary positions, an output gate.

Legend: B sequences, T tokens, D width, H query heads, G kv heads, K head width.
"""

import torch
from torch import Tensor, nn

from superblock.config.model import AttentionConfig
from superblock.kernels.attention import attend, rotary
from superblock.kernels.packing import PackInfo
from superblock.models.cache import KeyValueState
from superblock.models.norm import rms_norm


class GroupedQueryAttention(nn.Module):
    """softmax(q k^T / sqrt(K)) v over earlier tokens of the same document, times sigmoid of a gate, projected.

    Parameter layout: rows of `qkvg` are [q: H x K | k: G x K | v: G x K | gate: H x K], without the gate if the
    configuration has none. Queries and keys lie side by side so that one norm and one rotation serve both.
    """

    def __init__(self, d_model: int, config: AttentionConfig, *, norm_eps: float) -> None:
        super().__init__()
        self.config, self.norm_eps = config, norm_eps
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkvg = nn.Linear(d_model, queries * (2 if config.output_gate else 1) + 2 * keys, bias=False)
        self.query_norm = nn.Parameter(torch.empty(config.head_dim))
        self.key_norm = nn.Parameter(torch.empty(config.head_dim))
        self.out = nn.Linear(queries, d_model, bias=False)

    @staticmethod
    def new_state() -> KeyValueState:
        """The empty state of a sequence's start."""
        return KeyValueState()

    def forward(self, x_BTD: Tensor, pack: PackInfo, state: KeyValueState | None = None) -> Tensor:
        """Mixes tokens of the same document; a `state` is continued and updated, and then `pack` has whole rows."""
        c = self.config
        heads_BTnK = self.qkvg(x_BTD).unflatten(-1, (-1, c.head_dim))
        rotated, H, G = c.num_heads + c.num_kv_heads, c.num_heads, c.num_kv_heads
        v_BTGK = heads_BTnK[:, :, rotated : rotated + G]
        q_BTHK, k_BTGK = self._positioned(heads_BTnK[:, :, :rotated], pack).split([H, G], dim=2)
        if state is None:
            o_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, pack=pack, window=c.window, backend=c.backend)
        else:
            start = state.length
            k_BSGK, v_BSGK = state.append(k_BTGK, v_BTGK)
            o_BTHK = attend(q_BTHK, k_BSGK, v_BSGK, pack=None, window=c.window, query_start=start, backend=c.backend)
        if c.output_gate:
            o_BTHK = o_BTHK * heads_BTnK[:, :, rotated + G :].sigmoid()
        return self.out(o_BTHK.flatten(-2))

    def _positioned(self, qk_BTnK: Tensor, pack: PackInfo) -> Tensor:
        """Queries and keys after norm and rotation."""
        c = self.config
        weight_nK = torch.cat([self.query_norm.expand(c.num_heads, -1), self.key_norm.expand(c.num_kv_heads, -1)])
        normed_BTnK = rms_norm(qk_BTnK, weight_nK, self.norm_eps)
        return rotary(normed_BTnK, pack.position_ids_BT, fraction=c.rope_fraction, theta=c.rope_theta)
