"""A whole Gated DeltaNet layer as one operation for processors: norm, projection, convolution, gates, rule, gated norm,
projection and the addition to the residual stream.

One node of the graph instead of ten, and gradients go where the next kernel reads them: those of queries, keys and
values into one row per token, that row's and the output gate's into the gradient of the projection, without copies. The
kernels are those of `native_convolution`, `native_gates`, `native` and `norm.native`, of which each is an operation too.

Legend: B sequences, T tokens, D model width, G key heads, H value heads, K key width, V value width, C = 2GK + HV
convolved channels, N = C + HV rows of the projection, W taps.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from superblock.kernels.delta_rule import native, native_convolution, native_gates
from superblock.kernels.native import native_operator
from superblock.kernels.native.operator import plain, wanted
from superblock.kernels.norm import native as norm
from superblock.kernels.packing import PackInfo
from superblock.kernels.projections import enter, enter_backward, kept_or, leave, leave_backward, multiplies, rounded

_DTYPES = (torch.float32, torch.bfloat16)
_Results = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    Tensor, Tensor,
]  # fmt: skip


class Weights(NamedTuple):
    """The parameters of a layer."""

    norm_D: Tensor
    qkvz_ND: Tensor
    conv_CW: Tensor
    ba_2HD: Tensor
    A_log_H: Tensor
    dt_bias_H: Tensor
    gated_norm_V: Tensor
    out_DHV: Tensor


def unfit(x_BTD: Tensor, weights: Weights, heads: tuple[int, int], dtype: torch.dtype, chunk_size: int) -> str | None:
    """Why one operation cannot serve these, in words; None if it can. `heads` is (G, H), `dtype` that of the products."""
    (G, H), C, V = heads, len(weights.conv_CW), len(weights.gated_norm_V)
    if not plain(x_BTD, *weights):
        return "it takes plain tensors in the memory of a processor"
    if any(t.dtype not in _DTYPES for t in (x_BTD, *weights)) or dtype not in _DTYPES:
        return f"it has no kernel for {x_BTD.dtype} with products in {dtype}"
    if not multiplies(weights.qkvz_ND, dtype) or not multiplies(weights.out_DHV, dtype):
        return f"its projections are not in {dtype}, and autocast is off"
    return (
        native_convolution.unfit_sizes(x_BTD.shape[0] * x_BTD.shape[1], C, weights.conv_CW.shape[1])
        or native.unfit_widths((C - H * V) // (2 * G), V, chunk_size)
        or native_gates.LIBRARY.why_not()
        or norm.LIBRARY.why_not()
    )


def whole_layer(
    x_BTD: Tensor,
    weights: Weights,
    pack: PackInfo,
    *,
    heads: tuple[int, int],
    strength: float,
    eps: float,
    dtype: torch.dtype,
    chunk_size: int,
) -> Tensor:
    """The stream x plus what the layer makes of its norm, in the dtype of `x`; products run in `dtype`.

    Differentiable once. Documents, and rows, begin with an empty state.
    """
    documents_BT = None if pack.whole_rows else pack.doc_ids_BT.to(torch.int32).contiguous()
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x_BTD, *weights))
    (G, H), V = heads, len(weights.gated_norm_V)
    K = (len(weights.conv_CW) - H * V) // (2 * G)
    chunk = native.chunk_for(chunk_size, x_BTD.shape[1], K, V, keep)
    return delta_layer(x_BTD, *weights, documents_BT, G, strength, eps, dtype, chunk, keep)[0]


@native_operator("delta_layer")
def delta_layer(
    x: Tensor,
    norm_weight: Tensor,
    qkvz: Tensor,
    conv: Tensor,
    ba: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    gated_norm: Tensor,
    out: Tensor,
    documents: Tensor | None,
    G: int,
    strength: float,
    eps: float,
    dtype: torch.dtype,
    chunk: int,
    keep: bool,
) -> _Results:
    """The result of `whole_layer`, and what backward needs."""
    V = len(gated_norm)
    qkvz_rounded, out_rounded = rounded(qkvz, dtype), rounded(out, dtype)
    h, wide, scales, rows = enter(x, norm_weight, kept_or(qkvz_rounded, qkvz), eps, dtype, wide=True)
    qkv, z = rows.split([len(conv), rows.shape[-1] - len(conv)], dim=-1)
    mixed, _ = native_convolution.convolve(qkv, conv.float().contiguous(), None, documents)
    g, beta, ba_kept = native_gates.delta_gates(kept_or(wide, h), ba, A_log, dt_bias, strength)
    q, k, v = _heads(mixed, G, g.shape[-1], V)
    o, _, states, residuals = native.rule(q, k, v, g, beta, None, documents, chunk, keep)
    y, gated_scales = norm.gated_rms_norm(o, gated_norm, z.unflatten(-1, (-1, V)), eps, dtype)
    y = y.flatten(-2)
    kept = (qkvz_rounded, out_rounded, h, wide, scales, rows, mixed, g, beta, ba_kept, states, residuals, o)
    return leave(x, y, kept_or(out_rounded, out)), *kept, gated_scales, y


def _heads(mixed: Tensor, G: int, H: int, V: int) -> tuple[Tensor, Tensor, Tensor]:
    keys = (mixed.shape[-1] - H * V) // 2
    q, k, v = mixed.split([keys, keys, H * V], dim=-1)
    return q.unflatten(-1, (G, -1)), k.unflatten(-1, (G, -1)), v.unflatten(-1, (H, V))


delta_layer.register_fake(delta_layer.function)  # it calls operators, which know their own shapes


@native_operator("delta_layer_backward")
def delta_layer_backward(
    dstream: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    qkvz: Tensor,
    conv: Tensor,
    ba: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    gated_norm: Tensor,
    out: Tensor,
    documents: Tensor | None,
    kept: list[Tensor],
    G: int,
    strength: float,
    chunk: int,
) -> list[Tensor]:
    """Gradients of the nine inputs from x to `out`, in their dtypes."""
    qkvz_rounded, out_rounded, h, wide, scales, rows, *inner, o, gated_scales, y = kept
    mixed, g, beta, ba_kept, states, residuals = inner
    H, V, C = g.shape[-1], len(gated_norm), len(conv)
    dy, dout = leave_backward(dstream, y, kept_or(out_rounded, out))
    drows = rows.new_empty(rows.shape)
    z, dz = (t[..., C:].unflatten(-1, (H, V)) for t in (rows, drows))
    do, dgated_norm = norm.gated_rms_norm_gradients(o, gated_norm, z, gated_scales, dy.unflatten(-1, (H, V)), dz)
    q, k, _ = _heads(mixed, G, H, V)
    dmixed, dg, dbeta = torch.empty_like(mixed), torch.empty_like(g), torch.empty_like(beta)
    native.write_gradients(
        (do, None), (q, k, g, beta, documents, states, residuals), chunk, (*_heads(dmixed, G, H, V), dg, dbeta, None)
    )
    dwide, dba, dA_log, dbias = native_gates.delta_gates_backward(
        kept_or(wide, h), ba, A_log, dt_bias, ba_kept, strength, dg, dbeta
    )
    weight = conv.float().contiguous()
    dconv = torch.empty_like(weight)
    native_convolution.write_gradients(dmixed, rows[..., :C], weight, None, documents, drows[..., :C], dconv, None)
    weight = kept_or(qkvz_rounded, qkvz)
    dx, dnorm, dqkvz = enter_backward(dstream, drows, dwide, x, norm_weight, weight, h, scales)
    return [
        *(dx, dnorm, dqkvz.to(qkvz.dtype), dconv.to(conv.dtype)),
        *(dba, dA_log, dbias, dgated_norm, dout.to(out.dtype)),
    ]


@delta_layer_backward.register_fake
def _(dstream, x, norm_weight, qkvz, conv, ba, A_log, dt_bias, gated_norm, out, documents, kept, G, strength, chunk):  # type: ignore[no-untyped-def]
    return [t.new_empty(t.shape) for t in (x, norm_weight, qkvz, conv, ba, A_log, dt_bias, gated_norm, out)]


_TENSORS = 1 + len(Weights._fields) + 1  # x, the weights, the documents


def _setup(ctx: Any, inputs: tuple[Any, ...], output: _Results) -> None:
    G, strength, _eps, _dtype, chunk, _keep = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:_TENSORS], *output[1:])
    ctx.settings = G, strength, chunk


def _backward(ctx: Any, dstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dstream is None:
        return wanted([], ctx.needs_input_grad)
    saved = ctx.saved_tensors  # to be read once: with recomputed activations it is a function
    grads = delta_layer_backward(dstream, *saved[:_TENSORS], list(saved[_TENSORS:]), *ctx.settings)
    return wanted(grads, ctx.needs_input_grad)


delta_layer.register_autograd(_backward, setup_context=_setup)
