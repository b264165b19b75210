"""All of Gated DeltaNet between its two projections as one operation for processors: convolution, gates, rule, gated norm.

One node of the graph instead of four, and gradients go where the next kernel reads them: those of queries, keys and
values into one row per token, that row's and the output gate's into the gradient of the projection, without copies. The
kernels are those of `native_convolution`, `native_gates`, `native` and `norm.native`, of which each is an operation too.

Legend: B sequences, T tokens, D model width, G key heads, H value heads, K key width, V value width, C = 2GK + HV
convolved channels, W taps.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from superblock.kernels.delta_rule import native, native_convolution, native_gates
from superblock.kernels.native import native_operator
from superblock.kernels.norm import native as norm
from superblock.kernels.packing import PackInfo

_Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Weights(NamedTuple):
    """The parameters of the layer without its projections."""

    conv_CW: Tensor
    ba_2HD: Tensor
    A_log_H: Tensor
    dt_bias_H: Tensor
    norm_V: Tensor


def unfit(rows_BTN: Tensor, x_BTD: Tensor, weights: Weights, heads: tuple[int, int], chunk_size: int) -> str | None:
    """Why one operation cannot serve these, in words; None if it can. `heads` is (G, H)."""
    (G, H), C = heads, len(weights.conv_CW)
    V = len(weights.norm_V)
    if rows_BTN.dtype not in (torch.float32, torch.bfloat16):
        return f"it has no kernel for {rows_BTN.dtype}"
    q_BTGK = rows_BTN[..., : (C - H * V) // 2].unflatten(-1, (G, -1))
    z_BTHV = rows_BTN[..., C:].unflatten(-1, (H, V))
    if not native_gates.fits(x_BTD, *weights[1:4]) or weights.norm_V.dtype not in (torch.float32, torch.bfloat16):
        return "the gates need fp32 or bf16, and some tokens"
    if reason := norm.LIBRARY.why_not():
        return reason
    return native_convolution.unfit(rows_BTN[..., :C], weights.conv_CW) or native.unfit(q_BTGK, z_BTHV, chunk_size)


def native_layer(
    rows_BTN: Tensor,
    x_BTD: Tensor,
    weights: Weights,
    pack: PackInfo,
    *,
    heads: tuple[int, int],
    strength: float,
    eps: float,
    chunk_size: int,
) -> Tensor:
    """Gated output [B, T, HV] of a projection's rows [q: G x K | k: G x K | v: H x V | z: H x V], in their dtype.

    `x` is the projection's input in fp32, for the gates. Differentiable once. Documents begin with an empty state.
    """
    documents_BT = None if pack.whole_rows else pack.doc_ids_BT.to(torch.int32).contiguous()
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (rows_BTN, x_BTD, *weights))
    H, V = heads[1], len(weights.norm_V)
    K, T = (len(weights.conv_CW) - H * V) // (2 * heads[0]), rows_BTN.shape[1]
    chunk = native.chunk_for(chunk_size, T, K, V, keep)
    return delta_layer(rows_BTN, x_BTD, *weights, documents_BT, heads[0], strength, eps, chunk, keep)[0]


@native_operator("delta_layer")
def delta_layer(
    rows: Tensor,
    x: Tensor,
    conv: Tensor,
    ba: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    documents: Tensor | None,
    G: int,
    strength: float,
    eps: float,
    chunk: int,
    keep: bool,
) -> _Results:
    """The result of `native_layer`, and what backward needs."""
    V = len(norm_weight)
    qkv, z = rows.split([len(conv), rows.shape[-1] - len(conv)], dim=-1)
    mixed, _ = native_convolution.convolve(qkv, conv.float().contiguous(), None, documents)
    g, beta, ba_kept = native_gates.delta_gates(x, ba, A_log, dt_bias, strength)
    q, k, v = _heads(mixed, G, g.shape[-1], V)
    o, _, states, residuals = native.rule(q, k, v, g, beta, None, documents, chunk, keep)
    y, scales = norm.gated_rms_norm(o, norm_weight, z.unflatten(-1, (-1, V)), eps, rows.dtype)
    return y.flatten(-2), mixed, g, beta, ba_kept, states, residuals, o, scales


def _heads(mixed: Tensor, G: int, H: int, V: int) -> tuple[Tensor, Tensor, Tensor]:
    keys = (mixed.shape[-1] - H * V) // 2
    q, k, v = mixed.split([keys, keys, H * V], dim=-1)
    return q.unflatten(-1, (G, -1)), k.unflatten(-1, (G, -1)), v.unflatten(-1, (H, V))


delta_layer.register_fake(delta_layer.function)  # it calls operators, which know their own shapes


@native_operator("delta_layer_backward")
def delta_layer_backward(
    dy: Tensor,
    rows: Tensor,
    x: Tensor,
    conv: Tensor,
    ba: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    documents: Tensor | None,
    kept: list[Tensor],
    G: int,
    strength: float,
    chunk: int,
) -> list[Tensor]:
    """Gradients of the seven inputs before `documents`, in their dtypes."""
    mixed, g, beta, ba_kept, states, residuals, o, scales = kept
    H, V, C = g.shape[-1], len(norm_weight), len(conv)
    drows = rows.new_empty(rows.shape)
    z, dz = (t[..., C:].unflatten(-1, (H, V)) for t in (rows, drows))
    do, dnorm = norm.gated_rms_norm_gradients(o, norm_weight, z, scales, dy.unflatten(-1, (H, V)), dz)
    q, k, _ = _heads(mixed, G, H, V)
    dmixed, dg, dbeta = torch.empty_like(mixed), torch.empty_like(g), torch.empty_like(beta)
    native.write_gradients(
        (do, None), (q, k, g, beta, documents, states, residuals), chunk, (*_heads(dmixed, G, H, V), dg, dbeta, None)
    )
    dx, dba, dA_log, dbias = native_gates.delta_gates_backward(x, ba, A_log, dt_bias, ba_kept, strength, dg, dbeta)
    weight = conv.float().contiguous()
    dconv = torch.empty_like(weight)
    native_convolution.write_gradients(dmixed, rows[..., :C], weight, None, documents, drows[..., :C], dconv, None)
    return [drows, dx, dconv.to(conv.dtype), dba, dA_log, dbias, dnorm]


@delta_layer_backward.register_fake
def _(dy, rows, x, conv, ba, A_log, dt_bias, norm_weight, documents, kept, G, strength, chunk):  # type: ignore[no-untyped-def]
    return [t.new_empty(t.shape) for t in (rows, x, conv, ba, A_log, dt_bias, norm_weight)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: _Results) -> None:
    *tensors, G, strength, _eps, chunk, _keep = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.settings = G, strength, chunk


def _backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    if dy is None:
        return (None,) * len(needs)
    tensors, kept = ctx.saved_tensors[:8], list(ctx.saved_tensors[8:])
    grads = delta_layer_backward(dy, *tensors, kept, *ctx.settings)
    wanted = (grad if need else None for grad, need in zip(grads, needs, strict=False))
    return *wanted, *(None,) * (len(needs) - len(grads))


delta_layer.register_autograd(_backward, setup_context=_setup)
