"""Cross-entropy of a linear layer with all logits in memory: the reference.

Legend: N tokens, D model width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.precision import accumulation_dtype, compute_dtype

IGNORE = -100
"""Label of a position that is not scored, torch's default."""


def full_logits(h_ND: Tensor, w_VD: Tensor) -> Tensor:
    """Products in the compute dtype, handed on in fp32 (float64 for float64 inputs)."""
    dtype = compute_dtype(h_ND)
    return (h_ND.to(dtype) @ w_VD.to(dtype).t()).to(accumulation_dtype(h_ND))


def reference_cross_entropy(h_ND: Tensor, w_VD: Tensor, labels_N: Tensor, *, z_loss: float = 0.0) -> Tensor:
    """Sum over scored positions of -log p(label) + z_loss * logsumexp^2; plain autograd."""
    logits_NV = full_logits(h_ND, w_VD)
    loss = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")
    return loss + z_loss * (logits_NV.logsumexp(-1).square() * (labels_N != IGNORE)).sum()


def reference_scores(h_ND: Tensor, w_VD: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and rank of each label by sorting all logits (ties count for the label)."""
    logits_NV = full_logits(h_ND, w_VD)
    scored_N = labels_N != IGNORE
    nll_N = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="none")
    ascending_NV = (-logits_NV).sort(dim=-1).values
    mine_N1 = -logits_NV.gather(1, labels_N.clamp_min(0)[:, None])
    rank_N = torch.searchsorted(ascending_NV, mine_N1).squeeze(1)
    return nll_N, rank_N.where(scored_N, -1)
