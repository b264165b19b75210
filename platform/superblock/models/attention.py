"""Grouped-query attention, seed layer 5: normed queries and keys, partial rotary positions, an output gate.

Legend: B sequences, T tokens, D width, H query heads, G kv heads, K head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from superblock.config.model import AttentionConfig
from superblock.kernels.attention import attend, choose, native_layer, native_positions, rotary
from superblock.kernels.attention.whole_layer import Weights, unfit, whole_layer
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import compute_dtype
from superblock.models.cache import KeyValueState
from superblock.models.norm import RMSNorm, rms_norm
from superblock.models.untouched import untouched


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

    def forward(
        self, x_BTD: Tensor, pack: PackInfo, state: KeyValueState | None = None, *, norm: RMSNorm | None = None
    ) -> Tensor:
        """Mixes tokens of the same document; a `state` is continued and updated, and then `pack` has whole rows.

        With a `norm`, x is the residual stream: norm(x) is mixed, and the result is added to x.
        """
        if norm is not None and state is None and (stream_BTD := self._in_one(x_BTD, pack, norm)) is not None:
            return stream_BTD
        h_BTD = x_BTD if norm is None else norm.for_products(x_BTD)
        heads_BTnK = self.qkvg(h_BTD).unflatten(-1, (-1, self.config.head_dim))
        if state is None and self._native(heads_BTnK):
            o_BTHK = native_layer(heads_BTnK, self.query_norm, self.key_norm, pack, **self._masked())
        else:
            o_BTHK = self._attend(heads_BTnK, pack, state)
        y_BTD = self.out(o_BTHK.flatten(-2))
        return y_BTD if norm is None else x_BTD + y_BTD

    def _in_one(self, x_BTD: Tensor, pack: PackInfo, norm: RMSNorm) -> Tensor | None:
        """The layer as one operation, where there is one."""
        if (
            type(self) is not GroupedQueryAttention
            or not self._native(x_BTD)
            or norm.eps != self.norm_eps
            or not untouched(norm, *self.children())
        ):
            return None
        weights = Weights(norm.weight, self.qkvg.weight, self.query_norm, self.key_norm, self.out.weight)
        dtype = compute_dtype(x_BTD)
        if unfit(x_BTD, weights, dtype) is not None:
            return None
        return whole_layer(x_BTD, weights, pack, dtype=dtype, **self._masked())

    def _attend(self, heads_BTnK: Tensor, pack: PackInfo, state: KeyValueState | None) -> Tensor:
        """The same step by step, as a cache and every other kernel want it."""
        c = self.config
        rotated, H, G = c.num_heads + c.num_kv_heads, c.num_heads, c.num_kv_heads
        v_BTGK = heads_BTnK[:, :, rotated : rotated + G]
        q_BTHK, k_BTGK = self._positioned(heads_BTnK, pack).split([H, G], dim=2)
        if state is None:
            o_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, pack=pack, window=c.window, backend=c.backend)
        else:
            start = state.length
            k_BSGK, v_BSGK = state.append(k_BTGK, v_BTGK)
            o_BTHK = attend(q_BTHK, k_BSGK, v_BSGK, pack=None, window=c.window, query_start=start, backend=c.backend)
        return o_BTHK * heads_BTnK[:, :, rotated + G :].sigmoid() if c.output_gate else o_BTHK

    def _positioned(self, heads_BTnK: Tensor, pack: PackInfo) -> Tensor:
        """Queries and keys after norm and rotation."""
        c = self.config
        if not torch.is_grad_enabled() and self._native(heads_BTnK):
            return native_positions(heads_BTnK, self.query_norm, self.key_norm, pack, **self._turning())
        qk_BTnK = heads_BTnK[:, :, : c.num_heads + c.num_kv_heads]
        weight_nK = torch.cat([self.query_norm.expand(c.num_heads, -1), self.key_norm.expand(c.num_kv_heads, -1)])
        normed_BTnK = rms_norm(qk_BTnK, weight_nK, self.norm_eps)
        return rotary(normed_BTnK, pack.position_ids_BT, fraction=c.rope_fraction, theta=c.rope_theta)

    def _native(self, x: Tensor) -> bool:
        c = self.config
        dtype = compute_dtype(x)
        return choose(c.backend, x.device, dtype=dtype, head_dim=c.head_dim) == "native"

    def _masked(self) -> dict[str, Any]:
        return {"window": self.config.window, **self._turning()}

    def _turning(self) -> dict[str, Any]:
        c = self.config
        heads = c.num_heads, c.num_kv_heads
        return {"heads": heads, "fraction": c.rope_fraction, "theta": c.rope_theta, "eps": self.norm_eps}
