"""Gated DeltaNet (arXiv 2412.06464), seed layer 2: a linear-time mixer whose state is a matrix per head.

Legend: B sequences, T tokens, D width, G key heads, H value heads, K key width, V value width, C = 2GK + HV convolved
channels, W taps.
"""

import torch
from torch import Tensor, nn

from superblock.config.model import DeltaNetConfig
from superblock.kernels.delta_rule import causal_conv, gated_delta_rule
from superblock.kernels.delta_rule.gates import delta_gates
from superblock.kernels.delta_rule.whole_layer import Weights, unfit, whole_layer
from superblock.kernels.norm import gated_rms_norm
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import compute_dtype
from superblock.models.cache import DeltaState
from superblock.models.norm import RMSNorm
from superblock.models.untouched import untouched


class GatedDeltaNet(nn.Module):
    """Projections, short convolution, gates, delta rule, norm, output gate, projection.

    Parameter layout: rows of `qkvz` are [q: G x K | k: G x K | v: H x V | z: H x V], rows of `ba` are [b: H | a: H],
    `conv` is [C, W] over [q | k | v]. Write strength and decay have a projection of their own because bf16 is too
    coarse for a decay that compounds over thousands of tokens.
    """

    def __init__(self, d_model: int, config: DeltaNetConfig, *, norm_eps: float) -> None:
        super().__init__()
        self.config = config
        keys, values = config.num_key_heads * config.key_dim, config.num_value_heads * config.value_dim
        self.widths = [keys, keys, values]
        self.qkvz = nn.Linear(d_model, 2 * keys + 2 * values, bias=False)
        self.ba = nn.Linear(d_model, 2 * config.num_value_heads, bias=False)
        self.conv = nn.Parameter(torch.empty(2 * keys + values, config.conv_width))
        self.A_log = nn.Parameter(torch.empty(config.num_value_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.num_value_heads))
        self.norm = RMSNorm(config.value_dim, norm_eps)
        self.out = nn.Linear(values, d_model, bias=False)

    @staticmethod
    def new_state() -> DeltaState:
        """The empty state of a sequence's start."""
        return DeltaState()

    def forward(
        self, x_BTD: Tensor, pack: PackInfo, state: DeltaState | None = None, *, norm: RMSNorm | None = None
    ) -> Tensor:
        """Mixes tokens of the same document; a `state` is continued and updated, and then `pack` has whole rows.

        With a `norm`, x is the residual stream: norm(x) is mixed, and the result is added to x. The gates then read the
        norm before it is rounded for the matrix products.
        """
        if norm is not None and state is None and (stream_BTD := self._in_one(x_BTD, pack, norm)) is not None:
            return stream_BTD
        h_BTD, wide_BTD = (x_BTD, x_BTD) if norm is None else norm.for_products_and_wide(x_BTD)
        y_BTD = self.out(self._mix(self.qkvz(h_BTD), wide_BTD, pack, state))
        return y_BTD if norm is None else x_BTD + y_BTD

    def _in_one(self, x_BTD: Tensor, pack: PackInfo, norm: RMSNorm) -> Tensor | None:
        """The layer as one operation, where there is one."""
        c = self.config
        if type(self) is not GatedDeltaNet or c.backend not in ("auto", "native") or norm.eps != self.norm.eps:
            return None
        if not untouched(norm, *self.children()):
            return None
        weights = Weights(
            *(norm.weight, self.qkvz.weight, self.conv, self.ba.weight, self.A_log, self.dt_bias),
            *(self.norm.weight, self.out.weight),
        )
        heads, dtype = (c.num_key_heads, c.num_value_heads), compute_dtype(x_BTD)
        if unfit(x_BTD, weights, heads, dtype, c.chunk_size) is not None:
            return None
        return whole_layer(
            x_BTD,
            weights,
            pack,
            heads=heads,
            strength=self._strength,
            eps=norm.eps,
            dtype=dtype,
            chunk_size=c.chunk_size,
        )

    def _mix(self, rows_BTN: Tensor, x_BTD: Tensor, pack: PackInfo, state: DeltaState | None) -> Tensor:
        """Between the projections, step by step, as a cache and every other kernel want it."""
        c = self.config
        past = state or DeltaState()
        qkv_BTC, z_BTC = rows_BTN.split([sum(self.widths), self.widths[-1]], dim=-1)
        mixed_BTC, conv_BWC = causal_conv(qkv_BTC, self.conv, pack=pack, state_BWC=past.conv_BWC)
        q, k, v = mixed_BTC.split(self.widths, dim=-1)
        g_BTH, beta_BTH = self.gates(x_BTD)
        o_BTHV, recurrent_BHKV = gated_delta_rule(
            q.unflatten(-1, (c.num_key_heads, c.key_dim)),
            k.unflatten(-1, (c.num_key_heads, c.key_dim)),
            v.unflatten(-1, (c.num_value_heads, c.value_dim)),
            g_BTH,
            beta_BTH,
            pack=pack,
            initial_state=past.recurrent_BHKV,
            chunk_size=c.chunk_size,
            backend=c.backend,
        )
        if state is not None:
            state.conv_BWC, state.recurrent_BHKV = conv_BWC, recurrent_BHKV
        z_BTHV = z_BTC.unflatten(-1, (c.num_value_heads, c.value_dim))
        y_BTHV = gated_rms_norm(o_BTHV, self.norm.weight, z_BTHV, self.norm.eps, dtype=rows_BTN.dtype)
        return y_BTHV.flatten(-2)

    def gates(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the decay g = -exp(A_log) softplus(a + dt_bias) and write strength beta, both fp32 [B, T, H]."""
        return delta_gates(x_BTD, self.ba.weight, self.A_log, self.dt_bias, strength=self._strength)

    @property
    def _strength(self) -> float:
        return 2.0 if self.config.negative_eigenvalues else 1.0
