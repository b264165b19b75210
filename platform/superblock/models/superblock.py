"""The superblock: each mixer of the pattern followed by a mixture of experts, on one residual stream.

Legend: B sequences, T tokens, D width, J layers of the pattern, E experts.
"""

from typing import cast

import torch
from torch import Tensor, nn

from superblock.config.model import ModelConfig
from superblock.kernels.packing import PackInfo
from superblock.models.attention import GroupedQueryAttention
from superblock.models.cache import Cache, DeltaState, KeyValueState
from superblock.models.gated_deltanet import GatedDeltaNet
from superblock.models.moe import MoE, Routing
from superblock.models.norm import RMSNorm


class Layer(nn.Module):
    """Norm, mixer and MoE: seed layers 1-3 with Gated DeltaNet, 4-6 with attention.

    `wiring: prenorm` gives the MoE a norm of its own, as every published model does; `literal` has the seed's norms
    only, so that the MoE reads the residual stream as it is.
    """

    def __init__(self, config: ModelConfig, mixer: str) -> None:
        super().__init__()
        D, eps = config.d_model, config.norm_eps
        self.norm = RMSNorm(D, eps)
        self.mixer: GatedDeltaNet | GroupedQueryAttention
        if mixer == "gdn":
            self.mixer = GatedDeltaNet(D, config.gdn, norm_eps=eps)
        else:
            self.mixer = GroupedQueryAttention(D, config.gqa, norm_eps=eps)
        self.moe = MoE(D, config.moe, norm_eps=eps if config.wiring == "prenorm" else None)

    def forward(self, x_BTD: Tensor, pack: PackInfo, state: object = None) -> tuple[Tensor, Routing]:
        """The residual stream after both sublayers, in its own dtype (fp32 under autocast)."""
        if isinstance(self.mixer, GatedDeltaNet):
            x_BTD = self.mixer(x_BTD, pack, cast(DeltaState | None, state), norm=self.norm)
        else:
            x_BTD = self.mixer(x_BTD, pack, cast(KeyValueState | None, state), norm=self.norm)
        stream_BTD, routing = self.moe(x_BTD, residual=True)
        return stream_BTD, routing


class Superblock(nn.Module):
    """Seed layers 1 to 6 for the pattern `[gdn, gqa]`; the head, layers 7 and 8, is `models.mtp.MTPHead` beside it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, mixer) for mixer in config.pattern)

    def forward(
        self, x_BTD: Tensor, pack: PackInfo, cache: Cache | None = None, index: int = 0
    ) -> tuple[Tensor, Routing]:
        """The residual stream and the routers' summed loss, counts [J, E] and stats [J, 4]; `index` is for the cache."""
        routings = []
        for j, layer in enumerate(self.layers):
            state = None
            if cache is not None:
                state = cache.states.setdefault((index, j), cast(Layer, layer).mixer.new_state())
            x_BTD, routing = layer(x_BTD, pack, state)
            routings.append(routing)
        losses, counts, stats = zip(*routings, strict=True)
        return x_BTD, Routing(torch.stack(losses).sum(), torch.stack(counts), torch.stack(stats))
