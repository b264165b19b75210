"""Mixture of SwiGLU experts with a shared expert, seed layers 3 and 6.

Legend: B sequences, T tokens, N = B T, D width, E experts, F hidden width of an expert, k experts per token.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superblock.config.model import MoEConfig
from superblock.kernels.experts import mix_experts
from superblock.kernels.experts.backend import router_is_native
from superblock.kernels.experts.native_router import Routes, route_native
from superblock.kernels.experts.whole_layer import Settings, Weights, unfit, whole_layer
from superblock.kernels.precision import accumulation_dtype, compute_dtype, fp32_island
from superblock.models.norm import RMSNorm
from superblock.models.untouched import untouched

STATS = ("router_logit_rms", "gate_top1_mean", "gate_entropy", "shared_routed_ratio")
"""What `Routing.stats` holds: root mean square of the router's logits; mean share of the strongest of a token's experts;
mean entropy of a token's shares over ln k; root mean square of the shared over that of the routed output."""


class Routing(NamedTuple):
    """What a MoE layer reports beside its output; returned, not stored, so that recomputed activations count once."""

    loss: Tensor
    """fp32 scalar with gradient: weighted balancing and z-loss."""
    counts_E: Tensor
    """fp32 tokens routed to each expert."""
    stats: Tensor
    """fp32 [4], without gradient, see `STATS`."""


class MoE(nn.Module):
    """y = sum over the k chosen experts of w_e expert_e(x), plus the shared expert; expert(x) = down(silu(gate x) * up x).

    Nothing is dropped. Parameter layout: `gate_up` is [E, 2F, D] with the gate's rows first, `down` [E, D, F];
    `shared_gate_up` and `shared_down` likewise without E; `shared_gate` [D]. The buffer `balance_bias` [E] moves the
    choice of experts, never their weights (DeepSeek-V3, arXiv 2412.19437); only `balance` changes it.
    """

    balance_bias: Tensor

    def __init__(self, d_model: int, config: MoEConfig, *, norm_eps: float | None) -> None:
        """`norm_eps` None leaves the input as it is (the seed's literal wiring)."""
        super().__init__()
        self.config = config
        E, width, shared = config.num_experts, config.d_expert, config.d_shared
        self.norm = None if norm_eps is None else RMSNorm(d_model, norm_eps)
        self.router = nn.Linear(d_model, E, bias=False)
        self.gate_up = nn.Parameter(torch.empty(E, 2 * width, d_model))
        self.down = nn.Parameter(torch.empty(E, d_model, width))
        self.shared_gate_up = nn.Parameter(torch.empty(2 * shared, d_model)) if shared else None
        self.shared_down = nn.Parameter(torch.empty(d_model, shared)) if shared else None
        self.shared_gate = nn.Parameter(torch.empty(d_model)) if shared and config.shared_gate else None
        self.register_buffer("balance_bias", torch.zeros(E))

    def forward(self, x_BTD: Tensor, *, residual: bool = False) -> tuple[Tensor, Routing]:
        """The layer's contribution to the residual stream, plus the stream if `residual`; and what its router did."""
        if residual and (whole := self._whole(x_BTD)) is not None:
            return whole
        y_BTD, routing = self._contribution(x_BTD)
        return x_BTD + y_BTD if residual else y_BTD, routing

    def _whole(self, x_BTD: Tensor) -> tuple[Tensor, Routing] | None:
        """Norm, router, experts and the addition as one kernel, where there is one."""
        c = self.config
        if type(self) is not MoE or self.norm is None or c.backend not in ("auto", "native"):
            return None
        if not untouched(self.norm, self.router):
            return None
        shared = self.shared_gate_up, self.shared_down
        weights = Weights(
            self.norm.weight, self.router.weight, self.shared_gate, self.balance_bias, self.gate_up, self.down, *shared
        )
        dtype, softmax = compute_dtype(x_BTD), c.score == "softmax"
        settings = Settings(self.norm.eps, dtype, c.top_k, softmax, c.route_scale, c.aux_loss, c.z_loss)
        if unfit(x_BTD, weights, settings) is not None:
            return None
        y_BTD, *routing = whole_layer(x_BTD, weights, settings)
        return y_BTD, Routing(*routing)

    def _contribution(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        h_BTD, unrounded_BTD = (x_BTD, x_BTD) if self.norm is None else self.norm.for_products_and_wide(x_BTD)
        with fp32_island(x_BTD.device.type):
            routes = self._routes(unrounded_BTD.flatten(0, 1))
        shared = None
        if self.shared_gate_up is not None and self.shared_down is not None:
            shared = self.shared_gate_up, self.shared_down
        y_ND, power_2 = mix_experts(
            h_BTD.flatten(0, 1),
            self.gate_up,
            self.down,
            routes.index_Nk,
            routes.weight_Nk,
            shared=shared,
            shared_weight_N=None if self.shared_gate is None else routes.gate_N,
            backend=self.config.backend,
        )
        rms_routed, rms_shared = power_2.sqrt()
        stats = torch.cat([routes.stats_3, (rms_shared / (rms_routed + 1e-20)).float()[None]])
        return y_ND.unflatten(0, x_BTD.shape[:2]), Routing(routes.loss, routes.counts_E, stats)

    def _routes(self, h_ND: Tensor) -> Routes:
        """Routing, its losses and statistics, as one kernel where there is one."""
        c = self.config
        if router_is_native(c.backend, h_ND, self.router.weight, score=c.score, z_loss=c.z_loss):
            gate = () if self.shared_gate is None else (self.shared_gate[None],)
            return route_native(
                h_ND,
                torch.cat([self.router.weight, *gate]),
                self.balance_bias,
                top_k=c.top_k,
                score=c.score,
                scale=c.route_scale,
                aux_loss=c.aux_loss,
                z_loss=c.z_loss,
            )
        index_Nk, weight_Nk, logits_NE, scores_NE = self.route(h_ND)
        counts_E = _count(index_Nk, c.num_experts)
        gate_N = h_ND.new_empty(0)
        if self.shared_gate is not None:
            gate_N = (h_ND.to(logits_NE.dtype) @ self.shared_gate.to(logits_NE.dtype)).sigmoid()
        with torch.no_grad():
            stats_3 = self._stats(logits_NE, weight_Nk)
        return Routes(weight_Nk, index_Nk, gate_N, self._loss(logits_NE, scores_NE, counts_E), counts_E, stats_3)

    def route(self, h_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Chosen experts [N, k] and their weights [N, k], logits and scores [N, E]; fp32 also under autocast's bf16."""
        c = self.config
        dtype = accumulation_dtype(h_ND)
        logits_NE = F.linear(h_ND.to(dtype), self.router.weight.to(dtype))
        scores_NE = logits_NE.sigmoid() if c.score == "sigmoid" else logits_NE.softmax(-1)
        index_Nk = (scores_NE.detach() + self.balance_bias).topk(c.top_k, dim=-1, sorted=False).indices
        chosen_Nk = scores_NE.gather(-1, index_Nk)
        weight_Nk = chosen_Nk * (c.route_scale / (chosen_Nk.sum(-1, keepdim=True) + 1e-20))
        return index_Nk, weight_Nk, logits_NE, scores_NE

    def _loss(self, logits_NE: Tensor, scores_NE: Tensor, counts_E: Tensor) -> Tensor:
        """Balancing loss E / (k N^2) sum_e counts_e sum_n P_ne, which is 1 when balanced, and z-loss, both weighted.

        The balancing loss is Megatron's form; transformers' is k times it. A sigmoid's scores are normalised with a tiny
        epsilon only, or the model lowers all scores below it instead of balancing.
        """
        c, N = self.config, len(logits_NE)
        loss = logits_NE.new_zeros(())
        if c.aux_loss:
            p_NE = scores_NE
            if c.score == "sigmoid":
                p_NE = scores_NE / (scores_NE.sum(-1, keepdim=True) + torch.finfo(scores_NE.dtype).tiny)
            balance = (counts_E * p_NE.sum(0)).sum() * (c.num_experts / (c.top_k * N**2))
            loss = loss + c.aux_loss * balance
        if c.z_loss:
            loss = loss + c.z_loss * logits_NE.logsumexp(-1).square().mean()
        return loss

    def _stats(self, logits_NE: Tensor, weight_Nk: Tensor) -> Tensor:
        """The first three of `STATS`."""
        share_Nk = weight_Nk / self.config.route_scale
        entropy = torch.special.entr(share_Nk).sum(-1).mean() / math.log(max(2, self.config.top_k))
        rms = torch.linalg.vector_norm(logits_NE) / logits_NE.numel() ** 0.5
        return torch.stack([value.float() for value in (rms, share_Nk.amax(-1).mean(), entropy)])

    @torch.no_grad()
    def balance(self, counts_E: Tensor, rate: float) -> None:
        """Moves the bias by `rate` towards experts below the mean load of one optimizer step, over all processes.

        Its mean is kept at 0, so that it stays bounded.
        """
        step_E = rate * torch.sign(counts_E.mean() - counts_E).to(self.balance_bias.dtype)
        self.balance_bias += step_E - step_E.mean()


def _count(index_Nk: Tensor, num_experts: int) -> Tensor:
    """Like `bincount`, which on a GPU would wait for the largest index."""
    flat = index_Nk.flatten()
    ones = torch.ones_like(flat, dtype=torch.float32)
    return ones.new_zeros(num_experts).scatter_add_(0, flat, ones)
