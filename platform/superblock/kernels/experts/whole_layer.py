"""A whole MoE layer as one operation for processors: norm, router, experts and the addition to the residual stream.

The normed tokens reach the router in fp32 without a way through memory, forwards and backwards, and between the kernels
there is nothing of torch's: no casts, no additions, one node of the graph. The kernels are those of `native_router` and
`native`, of which each is an operation too.

Legend: ... any shape of N tokens, D model width, E experts, F expert width, G width of the shared expert, k experts per token.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from superblock.kernels.experts import native, native_router
from superblock.kernels.experts.native import LIBRARY
from superblock.kernels.native import native_operator
from superblock.kernels.native.operator import plain, wanted

_Outputs = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]  # fmt: skip


class Weights(NamedTuple):
    """The parameters of a layer and its balancing bias; `shared_gate` [D] and the shared expert's may be missing."""

    norm_D: Tensor
    router_ED: Tensor
    shared_gate_D: Tensor | None
    bias_E: Tensor
    gate_up_E2FD: Tensor
    down_EDF: Tensor
    shared_gate_up_2GD: Tensor | None
    shared_down_DG: Tensor | None


class Settings(NamedTuple):
    """As `native_router.route_native` takes them, after the norm's epsilon and the dtype of products."""

    eps: float
    dtype: torch.dtype
    top_k: int
    softmax: bool
    scale: float
    aux_loss: float
    z_loss: float


def unfit(x_D: Tensor, weights: Weights, settings: Settings) -> str | None:
    """Why one operation cannot serve them, in words; None if it can."""
    if not plain(x_D, *weights):
        return "it takes plain tensors in the memory of a processor"
    if (
        any(t is not None and t.dtype not in native._READS for t in (x_D, *weights))
        or settings.dtype not in native._READS
    ):
        return f"it has no kernel for {x_D.dtype} with products in {settings.dtype}"
    shared = None
    if weights.shared_gate_up_2GD is not None and weights.shared_down_DG is not None:
        shared = weights.shared_gate_up_2GD, weights.shared_down_DG
    score = "softmax" if settings.softmax else "sigmoid"
    x_ND = x_D.flatten(0, -2)
    return native_router.why_not_native_router(
        x_ND, weights.router_ED, score, settings.z_loss
    ) or native.why_not_native(x_ND, weights.gate_up_E2FD, weights.down_EDF, shared)


def whole_layer(x_D: Tensor, weights: Weights, settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The stream x plus the layer's contribution, in the dtype of `x`; the auxiliary loss, counts [E] and stats [4].

    Rounded once, at the end. Differentiable once; forward gives the same bits with any number of threads, backward with
    the same number.
    """
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_D, *weights))
    return moe_layer(x_D, *weights, *settings, keep)[:4]


@native_operator("moe_layer")
def moe_layer(
    x: Tensor,
    norm: Tensor,
    router: Tensor,
    shared_gate: Tensor | None,
    bias: Tensor,
    gate_up: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    top_k: int,
    softmax: bool,
    scale: float,
    aux_loss: float,
    z_loss: float,
    keep: bool,
) -> _Outputs:
    """y, loss, counts and stats of `whole_layer`, and what backward needs."""
    results = _outputs(x, router, shared_gate, down, shared_down, dtype, top_k, z_loss, keep)
    y, loss, counts, stats, h, scales, index, weight, gate, scores, lse, hidden, shared_hidden = results
    settings = (top_k, softmax, scale, aux_loss, z_loss)
    args = _router_problem(x, norm, router, shared_gate, bias, h, scales, eps, settings)
    N, D = h.shape
    LIBRARY.call("router_forward", *args, index, weight, gate, loss, counts, stats, scores, lse)
    shared_weight = gate if shared_gate is not None else None
    args = native._problem(h, gate_up, down, index, weight, shared_gate_up, shared_down, shared_weight, dtype)
    parts, power = hidden.new_empty(index.numel(), D), x.new_empty((N + 31) // 32, 2, dtype=torch.float32)
    stream, half, stride = native._rows(x.flatten(0, -2))
    states = (hidden, shared_hidden) if keep else (None, None)
    LIBRARY.call("experts_forward", *args, y, half, stream, stride, *states, parts, power)
    routed, shared = power.sum(0).sqrt().tolist()
    stats[3] = shared / (routed + 1e-20)
    return results


def _router_problem(
    x: Tensor,
    norm: Tensor,
    router: Tensor,
    shared_gate: Tensor | None,
    bias: Tensor,
    h: Tensor,
    scales: Tensor,
    eps: float,
    settings: tuple[int, bool, float, float, float],
) -> list[Any]:
    assert norm.shape == x.shape[-1:], "the norm has one weight per column"
    rows = [router] if shared_gate is None else [router, shared_gate[None]]
    normed = (*native._rows(x.flatten(0, -2)), norm.float().contiguous(), eps, scales)
    return native_router._problem(h, torch.cat(rows).float(), bias.float(), *settings, norm=normed)


def _outputs(
    x: Tensor,
    router: Tensor,
    shared_gate: Tensor | None,
    down: Tensor,
    shared_down: Tensor | None,
    dtype: torch.dtype,
    top_k: int,
    z_loss: float,
    keep: bool,
) -> _Outputs:
    """y, loss, counts, stats; normed tokens, their scales, index, weight, gate, scores, lse, hidden, shared_hidden."""
    N, D, E = x.numel() // x.shape[-1], x.shape[-1], len(router)
    rows = N * top_k if keep else 0
    shared_rows, G = (0, 0) if shared_down is None else (N if keep else 0, shared_down.shape[1])
    gates, lses = 0 if shared_gate is None else N, N if z_loss else 0
    kept = native._kept_dtype(dtype)

    def floats(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    h, index = x.new_empty(N, D, dtype=dtype), x.new_empty(N, top_k, dtype=torch.int64)
    hidden, shared_hidden = (
        x.new_empty(n, 2 * width, dtype=kept) for n, width in ((rows, down.shape[2]), (shared_rows, G))
    )
    weight, gate, scores, lse = floats(N, top_k), floats(gates), floats(N, E), floats(lses)
    y, loss, counts, stats = x.new_empty(x.shape), floats(), floats(E), floats(4)
    return y, loss, counts, stats, h, floats(N), index, weight, gate, scores, lse, hidden, shared_hidden


@moe_layer.register_fake
def _(  # type: ignore[no-untyped-def]
    x, norm, router, gate, bias, gate_up, down, shared_gate_up, shared_down,
    eps, dtype, top_k, softmax, scale, aux_loss, z_loss, keep,
):  # fmt: skip
    return _outputs(x, router, gate, down, shared_down, dtype, top_k, z_loss, keep)


@native_operator("moe_layer_backward")
def moe_layer_backward(
    dy: Tensor | None,
    dloss: Tensor | None,
    x: Tensor,
    norm: Tensor,
    router: Tensor,
    shared_gate: Tensor | None,
    bias: Tensor,
    gate_up: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    counts: Tensor,
    kept: list[Tensor],
    eps: float,
    dtype: torch.dtype,
    top_k: int,
    softmax: bool,
    scale: float,
    aux_loss: float,
    z_loss: float,
    learn: bool,
) -> list[Tensor]:
    """Gradients of x (in its dtype), norm, router and shared gate, gate_up, down and the shared expert's two (all fp32).

    Those of the experts' own weights are empty unless `learn`, as are those of weights that are not there.
    """
    h, scales, index, weight, gate, scores, lse, hidden, shared_hidden = kept
    shared_weight = gate if shared_gate is not None else None
    dstream = (torch.zeros_like(x) if dy is None else dy).flatten(0, -2)
    dnormed, dweight, dgate, *dweights = native.mix_experts_backward(
        dstream,
        h,
        gate_up,
        down,
        index,
        weight,
        shared_gate_up,
        shared_down,
        shared_weight,
        hidden,
        shared_hidden,
        dtype,
        learn,
    )
    settings = (top_k, softmax, scale, aux_loss, z_loss)
    args = _router_problem(x, norm, router, shared_gate, bias, h, scales, eps, settings)
    dx, dnorm, drouter = _router_gradients(x, norm, router, shared_gate)
    upstream, _, stride = native._rows(dstream)
    LIBRARY.call(
        "router_backward", *args, index, weight, gate, counts, scores, lse, dweight,
        dgate if shared_gate is not None else None, dloss, None, drouter, dnormed, upstream, stride, dx, dnorm,
    )  # fmt: skip
    return [dx, dnorm, drouter, *dweights]


def _router_gradients(x: Tensor, norm: Tensor, router: Tensor, shared_gate: Tensor | None) -> list[Tensor]:
    columns = len(router) + (shared_gate is not None)
    small = [t.new_empty(shape, dtype=torch.float32) for t, shape in ((norm, norm.shape), (x, (columns, x.shape[-1])))]
    return [x.new_empty(x.shape), *small]


@moe_layer_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    dy, dloss, x, norm, router, gate, bias, gate_up, down, shared_gate_up, shared_down, counts, kept,
    eps, dtype, top_k, softmax, scale, aux_loss, z_loss, learn,
):  # fmt: skip
    every = native._gradients(x, gate_up, down, norm, shared_gate_up, shared_down, None, learn)
    return [*_router_gradients(x, norm, router, gate), *every[3:]]


_TENSORS = len(Weights._fields) + 1


def _setup(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    *tensors, counts = *inputs[:_TENSORS], output[2]
    tensors[4] = tensors[4].clone()  # the bias, which the balance may move before the backward pass
    *ctx.settings, _ = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*tensors, counts, *output[4:])


def _backward(ctx: Any, dy: Tensor | None, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    if dy is None and dloss is None:
        return wanted([], needs)
    saved = ctx.saved_tensors  # to be read once: with recomputed activations it is a function
    (*tensors, counts), kept = saved[: _TENSORS + 1], list(saved[_TENSORS + 1 :])
    learn = dy is not None and any(needs[5:_TENSORS])
    dx, dnorm, dcolumns, *dexperts = moe_layer_backward(dy, dloss, *tensors, counts, kept, *ctx.settings, learn)
    drouter, dgate = dcolumns[: len(tensors[2])].clone(), dcolumns[-1].clone()  # gradients that share no memory
    of_experts = [None] * 4 if dy is None else dexperts
    grads = (dx, dnorm, drouter, dgate, None, *of_experts)
    return wanted(
        [None if g is None or t is None else g.to(t.dtype) for g, t in zip(grads, tensors, strict=True)], needs
    )


moe_layer.register_autograd(_backward, setup_context=_setup)
