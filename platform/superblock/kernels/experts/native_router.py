"""The router as one C++ operation for processors, with the auxiliary losses, the counts and the statistics.

Legend: N tokens, D width, E experts, C columns (E, and one more for a gate of the shared expert), k experts per token.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from superblock.kernels.experts.native import LIBRARY, SOURCE, matrix_fields
from superblock.kernels.native import native_operator
from superblock.kernels.native.record import Filled, Record
from superblock.kernels.projections import MULTIPLE

_ARGUMENTS, _BACKWARD = Record(SOURCE, "RouterArguments"), Record(SOURCE, "RouterBackward")


class Routes(NamedTuple):
    """What `route_native` returns; fp32 but for the indices."""

    weight_Nk: Tensor
    index_Nk: Tensor
    gate_N: Tensor
    """Sigmoid of column E, empty where there is none."""
    loss: Tensor
    """Scalar: weighted balancing and z-loss."""
    counts_E: Tensor
    """Tokens of each expert, without gradient."""
    stats_3: Tensor
    """Root mean square of the logits, mean share of the strongest expert, mean entropy of the shares over ln k."""


def why_not_native_router(h: Tensor, router: Tensor, score: str, z_loss: float) -> str | None:
    """Why the C++ router refuses these; None if it does not."""
    if h.device.type != "cpu" or router.device.type != "cpu":
        return "it runs on processors only"
    if h.dtype not in (torch.float32, torch.bfloat16) or router.dtype not in (torch.float32, torch.bfloat16):
        return f"it has no {h.dtype} kernel"
    if h.shape[-1] % MULTIPLE or not h.numel():
        return f"[{len(h)}, {h.shape[-1]}] tokens: it needs some, and a width that is a multiple of {MULTIPLE}"
    if z_loss and score != "softmax":
        return "it has the z-loss of a softmax only"
    return LIBRARY.why_not()


def route_native(
    h_ND: Tensor,
    router_CD: Tensor,
    bias_E: Tensor,
    *,
    top_k: int,
    score: str,
    scale: float,
    aux_loss: float = 0.0,
    z_loss: float = 0.0,
) -> Routes:
    """Scores (`sigmoid` or `softmax`) of all experts, the k best by score + bias, and their normalised weights.

    Computed in fp32, autocast or not. Of experts that are equally good the first is taken. The same bits with any number
    of threads; gradients with the same number.
    """
    out = route(h_ND, router_CD.float(), bias_E.float(), top_k, score == "softmax", scale, aux_loss, z_loss)
    return Routes(*out[:6])


@native_operator("route")
def route(
    h: Tensor,
    router: Tensor,
    bias: Tensor,
    top_k: int,
    softmax: bool,
    scale: float,
    aux_loss: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Routes`, and for backward the scores [N, E] and the softmax's log denominators [N]."""
    arguments = _arguments(h, router, bias, top_k, softmax, scale, aux_loss, z_loss)
    weight, index, gate, loss, counts, stats, scores, lse = _outputs(h, router, bias, top_k, z_loss)
    LIBRARY.call("router_forward", arguments, index, weight, gate, loss, counts, stats, scores, lse)
    return weight, index, gate, loss, counts, stats, scores, lse


def _arguments(
    h: Tensor,
    router: Tensor,
    bias: Tensor,
    top_k: int,
    softmax: bool,
    scale: float,
    aux_loss: float,
    z_loss: float,
) -> Filled:
    """What both entry points take."""
    (N, D), (C, width), E = h.shape, router.shape, len(bias)
    assert width == D and C - E in (0, 1), "the router must be [C, D] with a bias for each of C or C - 1 columns"
    assert 0 < top_k <= E, "no more experts can be chosen than there are"
    return _ARGUMENTS(
        **matrix_fields("h", h), weight=router.contiguous(), bias=bias.contiguous(), N=N, D=D, E=E, C=C, k=top_k,
        softmax=softmax, scale=scale, aux_loss=aux_loss, z_loss=z_loss,
    )  # fmt: skip


def _outputs(h: Tensor, router: Tensor, bias: Tensor, top_k: int, z_loss: float) -> tuple[Tensor, ...]:
    N, E = len(h), len(bias)
    gates, kept = N if len(router) > E else 0, N if z_loss else 0
    shapes = ((N, top_k), (gates,), (), (E,), (3,), (N, E), (kept,))
    weight, *others = (h.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return (weight, h.new_empty(N, top_k, dtype=torch.int64), *others)


@route.register_fake
def _(h, router, bias, top_k, softmax, scale, aux_loss, z_loss):  # type: ignore[no-untyped-def]
    return _outputs(h, router, bias, top_k, z_loss)


@native_operator("route_backward")
def route_backward(
    dweight: Tensor | None,
    dgate: Tensor | None,
    dloss: Tensor | None,
    h: Tensor,
    router: Tensor,
    bias: Tensor,
    index: Tensor,
    weight: Tensor,
    gate: Tensor,
    counts: Tensor,
    scores: Tensor,
    lse: Tensor,
    top_k: int,
    softmax: bool,
    scale: float,
    aux_loss: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of h and the router's weights, fp32."""
    arguments = _arguments(h, router, bias, top_k, softmax, scale, aux_loss, z_loss)
    upstream = [None if g is None or not g.numel() else g.contiguous() for g in (dweight, dgate, dloss)]
    dh, drouter = h.new_empty(h.shape, dtype=torch.float32), torch.empty(router.shape, dtype=torch.float32)
    backward = _BACKWARD(
        index=index, weight=weight, shared=gate, counts=counts, scores=scores, lse=lse,
        dweight=upstream[0], dshared=upstream[1], dloss=upstream[2], dh=dh, drouter=drouter,
    )  # fmt: skip
    LIBRARY.call("router_backward", arguments, backward)
    return dh, drouter


@route_backward.register_fake
def _(dweight, dgate, dloss, h, router, *_):  # type: ignore[no-untyped-def]
    return h.new_empty(h.shape, dtype=torch.float32), router.new_empty(router.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    h, router, bias, *ctx.settings = inputs
    weight, index, gate, _, counts, stats, scores, lse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(index, counts, stats, scores, lse)
    bias = bias.clone()  # which the balance may move before the backward pass
    ctx.save_for_backward(h, router, bias, index, weight, gate, counts, scores, lse)


def _backward(
    ctx: Any, dweight: Tensor | None, _: None, dgate: Tensor | None, dloss: Tensor | None, *rest: None
) -> Any:
    h, *others = ctx.saved_tensors
    if dweight is None and dgate is None and dloss is None:
        return (None,) * 8
    dh, drouter = route_backward(dweight, dgate, dloss, h, *others, *ctx.settings)
    return (dh.to(h.dtype), drouter, *[None] * 6)


route.register_autograd(_backward, setup_context=_setup)
