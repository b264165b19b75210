"""Prediction head of a superblock, seed layers 7 and 8: an exit for the next token and depths for the tokens after it.

Depth k predicts the token 1 + k places ahead from the hidden state of depth k - 1 and the embedding of the token k
places ahead (DeepSeek-V3, arXiv 2412.19437, section 2.2). Embedding and unembedding are the model's own. A head is a
side branch: what it computes never returns to the residual stream, so it can be dropped when the model is used.

Legend: B sequences, T tokens, D width, R hidden width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superblock.config.model import ModelConfig
from superblock.kernels.packing import PackInfo
from superblock.kernels.swiglu import swiglu
from superblock.models.attention import GroupedQueryAttention
from superblock.models.norm import RMSNorm


class MTPHead(nn.Module):
    """Norm (the exit: unembedding its output predicts the next token) and, where enabled, `mtp.depth` depths.

    Superblock S, the last, has depths of kind `mtp.last`; the others have the small `mlp` kind, which has no attention
    and hence nothing to cache.
    """

    def __init__(self, config: ModelConfig, *, last: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        kind = BlockDepth if last and config.mtp.last == "block" else MLPDepth
        self.mtp = nn.ModuleList(kind(config) for _ in range(config.mtp.depth if config.mtp.enabled else 0))

    def forward(self, x_BTD: Tensor, embedded: Sequence[Tensor], pack: PackInfo) -> list[Tensor]:
        """Hidden states [B, T, D] of the exit and of the first `len(embedded)` depths, to be unembedded.

        Args:
            x_BTD: residual stream after the superblock.
            embedded: for depth k (from 1) the embeddings [B, T, D] of the tokens k places ahead. Slots where that token
                belongs to another document hold anything: they follow all valid slots of their document, so causal
                attention keeps them out of sight, and their own result is not scored.
            pack: boundaries of these T tokens.
        """
        hidden = [self.norm(x_BTD)]
        for depth, e_BTD in zip(self.mtp, embedded, strict=False):
            hidden.append(depth(hidden[-1], e_BTD, pack))
        return hidden


class MLPDepth(nn.Module):
    """h + W2 silu(W1 [norm(e) | norm(h)]); W2 starts at 0, so a new depth repeats its predecessor's prediction."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, eps = config.d_model, config.norm_eps
        self.embedding_norm, self.hidden_norm = RMSNorm(D, eps), RMSNorm(D, eps)
        self.w1 = nn.Linear(2 * D, config.mtp.d_hidden, bias=False)
        self.w2 = nn.Linear(config.mtp.d_hidden, D, bias=False)

    def forward(self, h_BTD: Tensor, e_BTD: Tensor, pack: PackInfo) -> Tensor:
        """The next depth's hidden state [B, T, D]."""
        merged = torch.cat([self.embedding_norm.for_products(e_BTD), self.hidden_norm.for_products(h_BTD)], dim=-1)
        return h_BTD + self.w2(F.silu(self.w1(merged)))


class BlockDepth(nn.Module):
    """norm(block(W [norm(e) | norm(h)])) with a pre-norm transformer block of attention and SwiGLU, as in DeepSeek-V3."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, R, eps = config.d_model, config.mtp.d_block, config.norm_eps
        self.embedding_norm, self.hidden_norm = RMSNorm(D, eps), RMSNorm(D, eps)
        self.merge = nn.Linear(2 * D, D, bias=False)
        self.attention_norm = RMSNorm(D, eps)
        self.attention = GroupedQueryAttention(D, config.gqa, norm_eps=eps)
        self.mlp_norm = RMSNorm(D, eps)
        self.gate_up = nn.Linear(D, 2 * R, bias=False)
        self.down = nn.Linear(R, D, bias=False)
        self.norm = RMSNorm(D, eps)

    def forward(self, h_BTD: Tensor, e_BTD: Tensor, pack: PackInfo) -> Tensor:
        """The next depth's hidden state [B, T, D]; its residual stream has the dtype of `h_BTD`."""
        merged = torch.cat([self.embedding_norm.for_products(e_BTD), self.hidden_norm.for_products(h_BTD)], dim=-1)
        x_BTD = self.merge(merged).to(h_BTD.dtype)
        x_BTD = self.attention(x_BTD, pack, norm=self.attention_norm)
        return self.norm(x_BTD + self.down(swiglu(self.gate_up(self.mlp_norm.for_products(x_BTD)))))
