"""What a language model's evaluation adds up, exactly.

Sums of negative log-likelihood are float64 and counts are int64, so that the order of batches and the number of
processes do not show in the result. Peers that average per batch, or take a softmax before the logarithm, report a
perplexity of infinity where it is 1e16. Legend: B sequences, T tokens, P bins of position, K values of k.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from superblock.models.batch import TokenScores

LN2 = math.log(2)


class LossTotals(NamedTuple):
    """The sums behind loss, perplexity and bits per byte."""

    nll: float
    """Nats, summed over the scored tokens of every process."""
    tokens: int
    """Scored tokens."""

    @property
    def loss(self) -> float:
        """Nats per token; NaN when nothing was scored."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """`exp(loss)`; infinite only where a float64 cannot hold it."""
        return perplexity(self.loss)

    def bits_per_byte(self, num_bytes: float) -> float:
        """Bits needed per byte of the raw text that the scored tokens stand for; does not depend on the tokenizer."""
        return self.nll / LN2 / num_bytes if self.tokens and num_bytes > 0 else math.nan


def perplexity(loss: float) -> float:
    """`exp` of a loss in nats, without an OverflowError."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class LanguageModelLoss(Metric):
    """Total negative log-likelihood and number of scored tokens."""

    full_state_update = False
    nll: Tensor
    tokens: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: TokenScores) -> None:
        """Adds a batch; `scores.nll_BT` is 0 and `scores.rank_BT` is -1 where a token is not scored."""
        self.nll += scores.nll_BT.double().sum()
        self.tokens += (scores.rank_BT >= 0).sum()

    def compute(self) -> LossTotals:
        """The totals of every process."""
        return LossTotals(float(self.nll), int(self.tokens))


class TopKAccuracy(Metric):
    """Share of targets among the k most likely tokens, from the target's rank (0 is the most likely)."""

    full_state_update = False
    hits_K: Tensor
    tokens: Tensor

    def __init__(self, top: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top = tuple(top)
        self.add_state("hits_K", torch.zeros(len(self.top), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: TokenScores) -> None:
        """Adds a batch; rank -1 is not scored."""
        rank = scores.rank_BT
        scored = rank >= 0
        self.hits_K += torch.stack([(scored & (rank < k)).sum() for k in self.top])
        self.tokens += scored.sum()

    def compute(self) -> dict[int, float]:
        """Accuracy by k; NaN when nothing was scored."""
        tokens = int(self.tokens)
        return {
            k: hits / tokens if tokens else math.nan for k, hits in zip(self.top, self.hits_K.tolist(), strict=True)
        }


class PositionLoss(Metric):
    """Mean loss in equal bins of the position in the sequence: does more context help?"""

    full_state_update = False
    nll_P: Tensor
    tokens_P: Tensor

    def __init__(self, bins: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins
        self.add_state("nll_P", torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens_P", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: TokenScores) -> None:
        """Adds a batch; column t of T belongs to bin `t * bins // T`."""
        T = scores.nll_BT.shape[1]
        bin_T = torch.arange(T, device=scores.nll_BT.device) * self.bins // T
        self.nll_P.index_add_(0, bin_T, scores.nll_BT.double().sum(dim=0))
        self.tokens_P.index_add_(0, bin_T, (scores.rank_BT >= 0).sum(dim=0))

    def compute(self) -> list[float]:
        """Nats per token, first bin first; NaN for a bin without tokens."""
        sums, counts = self.nll_P.tolist(), self.tokens_P.tolist()
        return [nll / count if count else math.nan for nll, count in zip(sums, counts, strict=True)]
