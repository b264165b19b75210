"""Gated DeltaNet (arXiv 2412.06464), seed layer 2: a linear-time mixer whose state is a matrix per head.

Legend: B sequences, T tokens, D width, G key heads, H value heads, K key width, V value width, C = 2GK + HV convolved
channels, W taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superblock.config.model import DeltaNetConfig
from superblock.kernels.delta_rule import causal_conv, gated_delta_rule
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import accumulation_dtype, fp32_island
from superblock.models.cache import DeltaState
from superblock.models.norm import RMSNorm


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

    def forward(self, x_BTD: Tensor, pack: PackInfo, state: DeltaState | None = None) -> Tensor:
        """Mixes tokens of the same document; a `state` is continued and updated, and then `pack` has whole rows."""
        c = self.config
        past = state or DeltaState()
        qkvz = self.qkvz(x_BTD)
        convolved = sum(self.widths)
        mixed_BTC, conv_BWC = causal_conv(qkvz[..., :convolved], self.conv, pack=pack, state_BWC=past.conv_BWC)
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
        z_BTHV = qkvz[..., convolved:].unflatten(-1, (c.num_value_heads, c.value_dim))
        y_BTHV = self.norm(o_BTHV) * F.silu(z_BTHV.to(o_BTHV.dtype))
        return self.out(y_BTHV.flatten(-2))

    def gates(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the decay g = -exp(A_log) softplus(a + dt_bias) and write strength beta, both fp32 [B, T, H]."""
        with fp32_island(x_BTD.device.type):
            dtype = accumulation_dtype(x_BTD)
            b_BTH, a_BTH = F.linear(x_BTD.to(dtype), self.ba.weight.to(dtype)).chunk(2, dim=-1)
            beta_BTH = b_BTH.sigmoid() * (2.0 if self.config.negative_eigenvalues else 1.0)
            g_BTH = -self.A_log.to(dtype).exp() * F.softplus(a_BTH + self.dt_bias.to(dtype))
        return g_BTH, beta_BTH
