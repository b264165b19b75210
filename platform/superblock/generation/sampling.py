"""From logits to the next token, as pure functions. Legend: B sequences, V vocabulary.

The caller supplies one uniform number per sequence, so a text depends on its own seed and not on what is generated
beside it.
"""

import torch
from torch import Tensor

ENOUGH = 512
"""Tokens among which those that are kept are looked for first."""


def probabilities(logits_BV: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The distribution that tokens are drawn from, float64 [B, V]; each row sums to 1.

    Temperature comes first, then the `top_k` most likely tokens are kept, then the smallest number of the most likely
    of those that together reach `top_p` of what is left. Equal tokens rank by their number, so k tokens are exactly k.

    Args:
        logits_BV: unnormalised log-probabilities; -inf excludes a token.
        temperature: divides the logits; 0 puts everything on the most likely token.
        top_k: 0 keeps all.
        top_p: 1 keeps all.

    Raises:
        FloatingPointError: if the logits of a row are not numbers or exclude every token.
    """
    best_B = logits_BV.max(dim=-1).values  # NaN if any is
    if not torch.isfinite(best_B).all():
        raise FloatingPointError("the model's logits are not finite: its weights have diverged")
    shifted_BV = (logits_BV - best_B[:, None]).double()  # the maximum is 0, so a tiny temperature cannot overflow
    if temperature == 0:
        return torch.zeros_like(shifted_BV).scatter_(1, logits_BV.argmax(-1, keepdim=True), 1.0)
    p_BV = torch.softmax(shifted_BV / temperature, dim=-1)
    if not 0 < top_k < p_BV.shape[1] and top_p >= 1:
        return p_BV
    sorted_BC, order_BC = _candidates(p_BV, top_k, top_p)
    if top_k:
        sorted_BC[:, top_k:] = 0
        sorted_BC /= sorted_BC.sum(-1, keepdim=True)
    if top_p < 1:
        before_BC = sorted_BC.cumsum(-1) - sorted_BC
        before_BC[:, 0] = 0  # the most likely token always stays
        sorted_BC[before_BC >= top_p] = 0
        sorted_BC /= sorted_BC.sum(-1, keepdim=True)
    return torch.zeros_like(p_BV).scatter_(1, order_BC, sorted_BC)


def _candidates(p_BV: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities [B, C] and numbers [B, C] of every token that may be kept, most likely first, equal ones by number.

    C is `ENOUGH` where so many are certain to do and no two of them are equal, else V: sorting all takes five times as
    long.
    """
    if p_BV.shape[1] > ENOUGH and top_k < ENOUGH:
        sorted_BC, order_BC = p_BV.topk(ENOUGH, dim=-1)
        kept = top_k > 0 or bool((sorted_BC[:, :-1].sum(-1) >= top_p).all())
        different = (sorted_BC[:, 1:] < sorted_BC[:, :-1]) | (sorted_BC[:, 1:] == 0)
        if kept and bool(different.all()):
            return sorted_BC, order_BC
    return p_BV.sort(dim=-1, descending=True, stable=True)


def choose(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Inverts the cumulative distribution: int64 [B], never a token of probability 0.

    Args:
        p_BV: probabilities, float64.
        uniform_B: one number in [0, 1) per sequence, float64.
    """
    cumulative_BV = p_BV.cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    below_B1 = torch.minimum(uniform_B[:, None] * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, below_B1, right=True).squeeze(1)
