"""Next-token loss and scores of a linear unembedding, without all logits in memory.

Legend: N tokens, D model width, V vocabulary.
"""

import torch
from torch import Tensor

from superblock.kernels.cross_entropy.chunked import ChunkedCrossEntropy, chunked_scores

__all__ = ["linear_cross_entropy", "score_tokens"]


def linear_cross_entropy(h_ND: Tensor, w_VD: Tensor, labels_N: Tensor, *, chunk: int, z_loss: float = 0.0) -> Tensor:
    """Sum over labels other than -100 of -log softmax(h w^T)[label] + z_loss * logsumexp(h w^T)^2, an fp32 scalar.

    Products run in autocast's dtype, the softmax in fp32. At most `chunk` rows of logits exist at a time; exact
    gradients for `h` and `w`, once. 0 (with zero gradients) if every label is ignored.
    """
    return ChunkedCrossEntropy.apply(h_ND, w_VD, labels_N, chunk, z_loss, torch.is_grad_enabled())


def score_tokens(h_ND: Tensor, w_VD: Tensor, labels_N: Tensor, *, chunk: int) -> tuple[Tensor, Tensor]:
    """Without gradient: nll_N, fp32 nats, 0 where the label is -100; rank_N, int64, the number of tokens with a higher
    logit than the label's (0: it is the most likely), -1 where ignored."""
    return chunked_scores(h_ND, w_VD, labels_N, chunk=chunk)
