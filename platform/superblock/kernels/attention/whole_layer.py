"""A whole attention layer as one operation for processors: norm, projection, norms and rotation of queries and keys,
attention, gate, projection and the addition to the residual stream. Everything between the projections is one kernel.

Legend: B sequences, T tokens, D model width, H query heads, G kv heads, K head width, n = H + 2 G heads of the
projection, 2 H + 2 G with a gate.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from superblock.kernels.attention import native
from superblock.kernels.native import native_operator
from superblock.kernels.native.operator import plain, wanted
from superblock.kernels.norm import native as norm
from superblock.kernels.packing import PackInfo
from superblock.kernels.projections import enter, enter_backward, kept_or, leave, leave_backward, multiplies, rounded

_DTYPES = (torch.float32, torch.bfloat16)
_Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Weights(NamedTuple):
    """The parameters of a layer."""

    norm_D: Tensor
    qkvg_nKD: Tensor
    query_norm_K: Tensor
    key_norm_K: Tensor
    out_DHK: Tensor


def unfit(x_BTD: Tensor, weights: Weights, dtype: torch.dtype) -> str | None:
    """Why one operation cannot serve these, in words; None if it can. `dtype` is that of the products."""
    if not plain(x_BTD, *weights) or not x_BTD.numel():
        return "it takes plain tensors in the memory of a processor, and needs some tokens"
    if any(t.dtype not in _DTYPES for t in (x_BTD, *weights)):
        return f"it has no kernel for {x_BTD.dtype}"
    if not multiplies(weights.qkvg_nKD, dtype) or not multiplies(weights.out_DHK, dtype):
        return f"its projections are not in {dtype}, and autocast is off"
    return native.why_not(x_BTD.device, dtype, len(weights.query_norm_K)) or norm.LIBRARY.why_not()


def whole_layer(
    x_BTD: Tensor,
    weights: Weights,
    pack: PackInfo,
    *,
    heads: tuple[int, int],
    window: int | None,
    fraction: float,
    theta: float,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """The stream x plus what the layer makes of its norm, in the dtype of `x`; products run in `dtype`.

    `heads` is (H, G). Differentiable once.
    """
    rotated = round(fraction * len(weights.query_norm_K))
    settings = (not pack.whole_rows, *heads, window or 0, rotated, theta, eps, dtype)
    return grouped_query_layer(x_BTD, *weights, pack.position_ids_BT, *settings)[0]


@native_operator("grouped_query_layer")
def grouped_query_layer(
    x: Tensor, norm_weight: Tensor, qkvg: Tensor, query_norm: Tensor, key_norm: Tensor, out: Tensor, positions: Tensor,
    packed: bool, H: int, G: int, window: int, rotated: int, theta: float, eps: float, dtype: torch.dtype,
) -> _Results:  # fmt: skip
    """The result of `whole_layer`, and what backward needs."""
    qkvg_rounded, out_rounded = rounded(qkvg, dtype), rounded(out, dtype)
    h, _, scales, rows = enter(x, norm_weight, kept_or(qkvg_rounded, qkvg), eps, dtype, wide=False)
    heads = rows.unflatten(-1, (-1, len(query_norm)))
    settings = (packed, H, G, window, rotated, theta, eps)
    y, o, sums = native.attention_layer(heads, query_norm, key_norm, positions, *settings)
    stream = leave(x, y.flatten(-2), kept_or(out_rounded, out))
    return stream, qkvg_rounded, out_rounded, h, scales, rows, y, o, sums


grouped_query_layer.register_fake(grouped_query_layer.function)  # it calls operators, which know their own shapes


@native_operator("grouped_query_layer_backward")
def grouped_query_layer_backward(
    dstream: Tensor, x: Tensor, norm_weight: Tensor, qkvg: Tensor, query_norm: Tensor, key_norm: Tensor, out: Tensor,
    positions: Tensor, kept: list[Tensor],
    packed: bool, H: int, G: int, window: int, rotated: int, theta: float, eps: float,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the six inputs from x to `out`, in their dtypes."""
    qkvg_rounded, out_rounded, h, scales, rows, y, o, sums = kept
    dy, dout = leave_backward(dstream, y.flatten(-2), kept_or(out_rounded, out))
    heads = rows.unflatten(-1, (-1, len(query_norm)))
    drows, dquery_norm, dkey_norm = native.attention_layer_backward(
        heads, query_norm, key_norm, positions, o if len(o) else y, sums, dy.view_as(y),
        packed, H, G, window, rotated, theta, eps,
    )  # fmt: skip
    weight = kept_or(qkvg_rounded, qkvg)
    dx, dnorm, dqkvg = enter_backward(dstream, drows.flatten(-2), None, x, norm_weight, weight, h, scales)
    return [dx, dnorm, dqkvg.to(qkvg.dtype), dquery_norm, dkey_norm, dout.to(out.dtype)]


@grouped_query_layer_backward.register_fake
def _(dstream, x, norm_weight, qkvg, query_norm, key_norm, out, *_):  # type: ignore[no-untyped-def]
    return [t.new_empty(t.shape) for t in (x, norm_weight, qkvg, query_norm, key_norm, out)]


_TENSORS = 1 + len(Weights._fields) + 1  # x, the weights, the positions


def _setup(ctx: Any, inputs: tuple[Any, ...], output: _Results) -> None:
    *ctx.settings, _dtype = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:_TENSORS], *output[1:])


def _backward(ctx: Any, dstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dstream is None:
        return wanted([], ctx.needs_input_grad)
    saved = ctx.saved_tensors  # to be read once: with recomputed activations it is a function
    grads = grouped_query_layer_backward(dstream, *saved[:_TENSORS], list(saved[_TENSORS:]), *ctx.settings)
    return wanted(grads, ctx.needs_input_grad)


grouped_query_layer.register_autograd(_backward, setup_context=_setup)
