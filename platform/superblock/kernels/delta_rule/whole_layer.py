"""A whole Gated DeltaNet layer as one operation for processors: norm, projection, convolution, gates, rule, gated norm,
projection and the addition to the residual stream, in one call of `layer.h` each way.

Legend: B sequences, T tokens, D model width, G key heads, H value heads, K key width, V value width, C = 2GK + HV
convolved channels, N = C + HV rows of the projection, W taps.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from superblock.kernels.delta_rule import native, native_convolution
from superblock.kernels.delta_rule.convolution import shifted_conv
from superblock.kernels.delta_rule.gates import reference_gates
from superblock.kernels.delta_rule.native_library import LIBRARY
from superblock.kernels.delta_rule.reference import recurrent
from superblock.kernels.native import native_operator
from superblock.kernels.native.arena import Parts, parts_of
from superblock.kernels.native.library import agree
from superblock.kernels.native.operator import in_memory, plain, shapes_fit, wanted
from superblock.kernels.native.record import Filled, Record
from superblock.kernels.norm.reference import reference_gated_rms_norm, reference_rms_norm
from superblock.kernels.packing import PackInfo
from superblock.kernels.projections import unfit_projections

_HEADER = LIBRARY.source.with_name("layer.h")
_ARGUMENTS, _GRADIENTS = Record(_HEADER, "DeltaArguments"), Record(_HEADER, "DeltaGradients")
_DTYPES = (torch.float32, torch.bfloat16)
_TILE = 64
"""Tokens whose gates lie together, as in gates.h."""


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
    return (
        unfit_projections(weights.qkvz_ND, weights.out_DHV, dtype)
        or native_convolution.unfit_sizes(x_BTD.shape[0] * x_BTD.shape[1], C, weights.conv_CW.shape[1])
        or native.unfit_widths((C - H * V) // (2 * G), V, chunk_size)
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

    Rounded once, at the end. Differentiable once. Documents, and rows, begin with an empty state.
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
    norm: Tensor,
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
) -> tuple[Tensor, Tensor]:
    """The result of `whole_layer`, and what backward needs."""
    weights = Weights(norm, qkvz, conv, ba, A_log, dt_bias, gated_norm, out)
    parts = _kept(x, weights, G, dtype, chunk, keep)
    stream, kept = x.new_empty(x.shape), parts.new(x)
    places = parts.addresses(kept)
    LIBRARY.call(
        "delta_layer_forward", _arguments(x, weights, documents, G, strength, eps, dtype, chunk, places), stream
    )
    return stream, kept


@delta_layer.register_fake
def _(x, norm, qkvz, conv, ba, A_log, dt_bias, gated_norm, out, documents, G, strength, eps, dtype, chunk, keep):  # type: ignore[no-untyped-def]
    weights = Weights(norm, qkvz, conv, ba, A_log, dt_bias, gated_norm, out)
    return x.new_empty(x.shape), _kept(x, weights, G, dtype, chunk, keep).new(x)


@native_operator("delta_layer_backward")
def delta_layer_backward(
    dstream: Tensor,
    x: Tensor,
    norm: Tensor,
    qkvz: Tensor,
    conv: Tensor,
    ba: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    gated_norm: Tensor,
    out: Tensor,
    documents: Tensor | None,
    kept: Tensor,
    G: int,
    strength: float,
    eps: float,
    dtype: torch.dtype,
    chunk: int,
) -> list[Tensor]:
    """Gradients of the nine inputs from x to `out`, in their dtypes."""
    weights = Weights(norm, qkvz, conv, ba, A_log, dt_bias, gated_norm, out)
    places = _kept(x, weights, G, dtype, chunk, True).addresses(kept)
    dx, grads = x.new_empty(x.shape), [t.new_empty(t.shape, dtype=torch.float32) for t in weights]
    dnorm, dqkvz, dconv, dba, dA_log, ddt_bias, dgated_norm, dout = grads
    LIBRARY.call(
        "delta_layer_backward",
        _arguments(x, weights, documents, G, strength, eps, dtype, chunk, places),
        _GRADIENTS(
            dstream=in_memory(dstream), dx=dx, norm=dnorm, qkvz=dqkvz, conv=dconv, ba=dba, A_log=dA_log,
            dt_bias=ddt_bias, gated_norm=dgated_norm, out=dout,
        ),
    )  # fmt: skip
    return [dx, *(grad.to(t.dtype) for grad, t in zip(grads, weights, strict=True))]


@delta_layer_backward.register_fake
def _(dstream, x, norm, qkvz, conv, ba, A_log, dt_bias, gated_norm, out, *_):  # type: ignore[no-untyped-def]
    return [t.new_empty(t.shape) for t in (x, norm, qkvz, conv, ba, A_log, dt_bias, gated_norm, out)]


def _arguments(
    x: Tensor,
    weights: Weights,
    documents: Tensor | None,
    G: int,
    strength: float,
    eps: float,
    dtype: torch.dtype,
    chunk: int,
    places: dict[str, int | None],
) -> Filled:
    """What both entry points take; `places` are those of what is kept for the backward pass.

    Raises:
        ValueError: if shapes do not belong together.
    """
    norm, qkvz, conv, ba, A_log, dt_bias, gated_norm, out = weights
    (B, T, D), (C, taps), H, V = x.shape, conv.shape, len(A_log), len(gated_norm)
    K = (C - H * V) // (2 * G)
    shapes_fit(
        "Gated DeltaNet",
        norm=(norm, (D,)),
        projection=(qkvz, (2 * G * K + 2 * H * V, D)),
        convolution=(conv, (2 * G * K + H * V, taps)),
        gates=(ba, (2 * H, D)),
        bias=(dt_bias, (H,)),
        output=(out, (D, H * V)),
        documents=(documents, (B, T)),
    )
    small = (t.float().contiguous() for t in (norm, conv, ba, A_log, dt_bias, gated_norm))
    norm, conv, ba, A_log, dt_bias, gated_norm = small
    return _ARGUMENTS(
        x=x.contiguous(), norm=norm, qkvz=qkvz.contiguous(), conv=conv, ba=ba, A_log=A_log, dt_bias=dt_bias,
        gated_norm=gated_norm, out=out.contiguous(), documents=documents,
        x_half=x.dtype == torch.bfloat16, weights_half=out.dtype == torch.bfloat16, half=dtype == torch.bfloat16,
        B=B, T=T, D=D, G=G, H=H, K=K, VD=V, taps=taps, chunk=chunk, strength=strength, epsilon=eps, **places,
    )  # fmt: skip


def _kept(x: Tensor, weights: Weights, G: int, dtype: torch.dtype, chunk: int, keep: bool) -> Parts:
    """What layer.h keeps for the backward pass."""
    (B, T, D), H, V, C = x.shape, len(weights.A_log_H), len(weights.gated_norm_V), len(weights.conv_CW)
    N, K, row = B * T, (C - H * V) // (2 * G), dtype.itemsize
    return parts_of(
        h=row * N * D, wide=4 * N * D if row < 4 else 0, scales=4 * N, rows=row * N * (C + H * V), mixed=row * N * C,
        g=4 * N * H, beta=4 * N * H, ba_kept=4 * -(-N // _TILE) * 2 * H * _TILE,
        states=4 * B * H * -(-T // chunk) * K * V if keep else 0, residuals=4 * N * H * V if keep else 0,
        o=4 * N * H * V, gated_scales=4 * N * H, y=row * N * H * V,
    )  # fmt: skip


_TENSORS = 1 + len(Weights._fields) + 1  # x, the weights, the documents


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *ctx.settings, _keep = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:_TENSORS], output[1])


def _backward(ctx: Any, dstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dstream is None:
        return wanted([], ctx.needs_input_grad)
    return wanted(delta_layer_backward(dstream, *ctx.saved_tensors, *ctx.settings), ctx.needs_input_grad)


delta_layer.register_autograd(_backward, setup_context=_setup)


def reference_layer(x_BTD: Tensor, weights: Weights, pack: PackInfo, *, G: int, strength: float, eps: float) -> Tensor:
    """The same as `whole_layer`, step by step in PyTorch and in the inputs' dtype: the reference."""
    C, H, V = len(weights.conv_CW), len(weights.A_log_H), len(weights.gated_norm_V)
    h_BTD = reference_rms_norm(x_BTD, weights.norm_D, eps)
    qkv_BTC, z_BTHV = (h_BTD @ weights.qkvz_ND.t()).split([C, H * V], dim=-1)
    mixed_BTC, _ = shifted_conv(qkv_BTC, weights.conv_CW, pack=pack)
    keys = (C - H * V) // 2
    q, k, v = (
        t.unflatten(-1, (n, -1)) for t, n in zip(mixed_BTC.split([keys, keys, H * V], -1), (G, G, H), strict=True)
    )
    gates = reference_gates(h_BTD, weights.ba_2HD, weights.A_log_H, weights.dt_bias_H, strength)
    o_BTHV, _ = recurrent(q, k, v, *gates, pack=pack)
    y_BTHV = reference_gated_rms_norm(o_BTHV, weights.gated_norm_V, z_BTHV.unflatten(-1, (H, V)), eps)
    return x_BTD + y_BTHV.flatten(-2) @ weights.out_DHV.t()


def check() -> None:
    """Two packed rows through a layer with shared key heads."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 19, 32), (32,), (96, 32), (64, 4), (4, 32), (2,), (2,), (16,), (32, 32))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.5) for shape in shapes]
    pack = PackInfo.from_doc_ids(torch.arange(19).ge(11).int().expand(2, -1))
    settings = {"strength": 2.0, "eps": 1e-6}

    def delta_layer(x: Tensor, *weights: Tensor) -> Tensor:
        every = {"heads": (1, 2), "dtype": torch.float32, "chunk_size": 16} | settings
        return whole_layer(x, Weights(*weights), pack, **every)  # type: ignore[arg-type]

    agree(delta_layer, lambda x, *weights: reference_layer(x, Weights(*weights), pack, G=1, **settings), inputs, 1e-4)
