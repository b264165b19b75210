"""A whole attention layer as one operation for processors: norm, projection, norms and rotation of queries and keys,
attention, gate, projection and the addition to the residual stream, in one call of `layer.h` each way.

Legend: B sequences, T tokens, D model width, H query heads, G kv heads, K head width, n = H + 2 G heads of the
projection, 2 H + 2 G with a gate.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from superblock.kernels.attention import native
from superblock.kernels.attention.eager import eager
from superblock.kernels.attention.native import LIBRARY
from superblock.kernels.attention.rope import rotary
from superblock.kernels.native import native_operator
from superblock.kernels.native.arena import Parts, parts_of
from superblock.kernels.native.library import agree
from superblock.kernels.native.operator import in_memory, plain, shapes_fit, wanted
from superblock.kernels.native.record import Filled, Record
from superblock.kernels.norm.reference import reference_rms_norm
from superblock.kernels.packing import PackInfo
from superblock.kernels.projections import unfit_projections

_HEADER = LIBRARY.source.with_name("layer.h")
_ARGUMENTS, _GRADIENTS = Record(_HEADER, "AttentionArguments"), Record(_HEADER, "AttentionGradients")
_DTYPES = (torch.float32, torch.bfloat16)


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
    return unfit_projections(weights.qkvg_nKD, weights.out_DHK, dtype) or native.why_not(
        x_BTD.device, dtype, len(weights.query_norm_K)
    )


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

    `heads` is (H, G). Rounded once, at the end. Differentiable once.
    """
    rotated = round(fraction * len(weights.query_norm_K))
    settings = (not pack.whole_rows, *heads, window or 0, rotated, theta, eps, dtype)
    return grouped_query_layer(x_BTD, *weights, pack.position_ids_BT, *settings)[0]


@native_operator("grouped_query_layer")
def grouped_query_layer(
    x: Tensor, norm: Tensor, qkvg: Tensor, query_norm: Tensor, key_norm: Tensor, out: Tensor, positions: Tensor,
    packed: bool, H: int, G: int, window: int, rotated: int, theta: float, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result of `whole_layer`, and what backward needs."""
    weights = Weights(norm, qkvg, query_norm, key_norm, out)
    stream, parts = x.new_empty(x.shape), _kept(x, weights, H, G, dtype)
    kept = parts.new(x)
    settings = (packed, H, G, window, rotated, theta, eps, dtype)
    LIBRARY.call("attention_layer_forward", _arguments(x, weights, positions, *settings, parts.addresses(kept)), stream)
    return stream, kept


@grouped_query_layer.register_fake
def _(x, norm, qkvg, query_norm, key_norm, out, positions, packed, H, G, window, rotated, theta, eps, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), _kept(x, Weights(norm, qkvg, query_norm, key_norm, out), H, G, dtype).new(x)


@native_operator("grouped_query_layer_backward")
def grouped_query_layer_backward(
    dstream: Tensor, x: Tensor, norm: Tensor, qkvg: Tensor, query_norm: Tensor, key_norm: Tensor, out: Tensor,
    positions: Tensor, kept: Tensor,
    packed: bool, H: int, G: int, window: int, rotated: int, theta: float, eps: float, dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the six inputs from x to `out`, in their dtypes."""
    weights = Weights(norm, qkvg, query_norm, key_norm, out)
    dx, grads = x.new_empty(x.shape), [t.new_empty(t.shape, dtype=torch.float32) for t in weights]
    dnorm, dqkvg, dquery_norm, dkey_norm, dout = grads
    settings = (packed, H, G, window, rotated, theta, eps, dtype)
    LIBRARY.call(
        "attention_layer_backward",
        _arguments(x, weights, positions, *settings, _kept(x, weights, H, G, dtype).addresses(kept)),
        _GRADIENTS(
            dstream=in_memory(dstream), dx=dx, norm=dnorm, qkvg=dqkvg, query_norm=dquery_norm, key_norm=dkey_norm,
            out=dout,
        ),
    )  # fmt: skip
    return [dx, *(grad.to(t.dtype) for grad, t in zip(grads, weights, strict=True))]


@grouped_query_layer_backward.register_fake
def _(dstream, x, norm, qkvg, query_norm, key_norm, out, *_):  # type: ignore[no-untyped-def]
    return [t.new_empty(t.shape) for t in (x, norm, qkvg, query_norm, key_norm, out)]


def _arguments(
    x: Tensor, weights: Weights, positions: Tensor, packed: bool, H: int, G: int, window: int, rotated: int,
    theta: float, eps: float, dtype: torch.dtype, places: dict[str, int | None],
) -> Filled:  # fmt: skip
    """What both entry points take; `places` are those of what is kept for the backward pass.

    Raises:
        ValueError: if shapes do not belong together, or a position is negative.
    """
    norm, qkvg, query_norm, key_norm, out = weights
    (B, T, D), K = x.shape, len(query_norm)
    heads = 2 * H + 2 * G if len(qkvg) > (H + 2 * G) * K else H + 2 * G
    shapes_fit(
        "attention",
        norm=(norm, (D,)),
        projection=(qkvg, (heads * K, D)),
        key_norm=(key_norm, (K,)),
        output=(out, (D, H * K)),
        positions=(positions, (B, T)),
    )
    positions = positions.to(torch.int64)
    cosine, sine = native.rotations(positions, rotated, theta)
    position_row, position_step = positions.stride()
    return _ARGUMENTS(
        x=x.contiguous(), norm=norm.float().contiguous(), qkvg=qkvg.contiguous(), out=out.contiguous(),
        query_norm=query_norm.float().contiguous(), key_norm=key_norm.float().contiguous(),
        cosine=cosine, sine=sine, positions=positions, position_row=position_row, position_step=position_step,
        x_half=x.dtype == torch.bfloat16, weights_half=out.dtype == torch.bfloat16, half=dtype == torch.bfloat16,
        B=B, T=T, D=D, H=H, G=G, K=K, M=len(qkvg), window=window, packed=packed, rotated=rotated, epsilon=eps, **places,
    )  # fmt: skip


def _kept(x: Tensor, weights: Weights, H: int, G: int, dtype: torch.dtype) -> Parts:
    """What layer.h keeps for the backward pass."""
    (B, T, D), K, M, row = x.shape, len(weights.query_norm_K), len(weights.qkvg_nKD), dtype.itemsize
    N, gated = B * T, M > (H + 2 * G) * K
    y = row * N * H * K
    return parts_of(h=row * N * D, scales=4 * N, rows=row * N * M, y=y, o=y if gated else 0, sums=4 * 2 * N * H)


_TENSORS = 1 + len(Weights._fields) + 1  # x, the weights, the positions


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.settings = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:_TENSORS], output[1])


def _backward(ctx: Any, dstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dstream is None:
        return wanted([], ctx.needs_input_grad)
    return wanted(grouped_query_layer_backward(dstream, *ctx.saved_tensors, *ctx.settings), ctx.needs_input_grad)


grouped_query_layer.register_autograd(_backward, setup_context=_setup)


def reference_layer(
    x_BTD: Tensor,
    weights: Weights,
    pack: PackInfo,
    *,
    heads: tuple[int, int],
    window: int | None,
    fraction: float,
    theta: float,
    eps: float,
) -> Tensor:
    """The same as `whole_layer`, step by step in PyTorch and in the inputs' dtype: the reference."""
    (H, G), K = heads, len(weights.query_norm_K)
    h_BTD = reference_rms_norm(x_BTD, weights.norm_D, eps)
    rows_BTnK = (h_BTD @ weights.qkvg_nKD.t()).unflatten(-1, (-1, K))
    q, k, v, *gate = rows_BTnK.split([H, G, G, *([H] if rows_BTnK.shape[2] > H + 2 * G else [])], dim=2)
    q, k = (
        rotary(reference_rms_norm(t, weight, eps), pack.position_ids_BT, fraction=fraction, theta=theta)
        for t, weight in ((q, weights.query_norm_K), (k, weights.key_norm_K))
    )
    o_BTHK = eager(q, k, v, pack=pack, window=window, query_start=0)
    if gate:
        o_BTHK = o_BTHK * gate[0].sigmoid()
    return x_BTD + o_BTHK.flatten(-2) @ weights.out_DHK.t()


def check() -> None:
    """Two packed rows through a layer with a gate and a window."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 19, 32), (32,), (96, 32), (16,), (16,), (32, 32))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.5) for shape in shapes]
    pack = PackInfo.from_doc_ids(torch.arange(19).ge(11).int().expand(2, -1))
    settings: dict[str, Any] = {"heads": (2, 1), "window": 7, "fraction": 0.5, "theta": 1e4, "eps": 1e-6}

    def attention_layer(x: Tensor, *weights: Tensor) -> Tensor:
        return whole_layer(x, Weights(*weights), pack, dtype=torch.float32, **settings)

    agree(attention_layer, lambda x, *weights: reference_layer(x, Weights(*weights), pack, **settings), inputs, 1e-4)
