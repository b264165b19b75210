"""A whole MoE layer as one operation for processors: norm, router, experts and the addition to the residual stream, in
one call of `layer.h` each way.

Legend: ... any shape of N tokens, D model width, E experts, F expert width, G width of the shared expert, k experts per token.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from superblock.kernels.experts import native, native_router
from superblock.kernels.experts.loop import loop, swiglu
from superblock.kernels.experts.native import LIBRARY
from superblock.kernels.native import native_operator
from superblock.kernels.native.arena import Parts, parts_of
from superblock.kernels.native.library import agree
from superblock.kernels.native.operator import in_memory, plain, shapes_fit, wanted
from superblock.kernels.native.record import Filled, Record
from superblock.kernels.norm.reference import reference_rms_norm

_HEADER = LIBRARY.source.with_name("layer.h")
_ARGUMENTS, _GRADIENTS = Record(_HEADER, "MoEArguments"), Record(_HEADER, "MoEGradients")


class Weights(NamedTuple):
    """The parameters of a layer and its balancing bias; `shared_gate` [D] and the shared expert's may be missing.

    The bias is missing in a backward pass: it chooses experts, and has no gradient.
    """

    norm_D: Tensor
    router_ED: Tensor
    shared_gate_D: Tensor | None
    bias_E: Tensor | None
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results of `whole_layer`, and what backward needs."""
    weights = Weights(norm, router, shared_gate, bias, gate_up, down, shared_gate_up, shared_down)
    settings = Settings(eps, dtype, top_k, softmax, scale, aux_loss, z_loss)
    parts, results = _kept(x, weights, settings, keep), _outputs(x, router)
    kept = parts.new(x)
    LIBRARY.call("moe_layer_forward", _arguments(x, weights, settings, parts.addresses(kept)), *results)
    return *results, kept


def _outputs(x: Tensor, router: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, counts, stats = (x.new_empty(shape, dtype=torch.float32) for shape in ((), (len(router),), (4,)))
    return x.new_empty(x.shape), loss, counts, stats


@moe_layer.register_fake
def _(  # type: ignore[no-untyped-def]
    x, norm, router, gate, bias, gate_up, down, shared_gate_up, shared_down,
    eps, dtype, top_k, softmax, scale, aux_loss, z_loss, keep,
):  # fmt: skip
    weights = Weights(norm, router, gate, bias, gate_up, down, shared_gate_up, shared_down)
    settings = Settings(eps, dtype, top_k, softmax, scale, aux_loss, z_loss)
    return *_outputs(x, router), _kept(x, weights, settings, keep).new(x)


@native_operator("moe_layer_backward")
def moe_layer_backward(
    dy: Tensor | None,
    dloss: Tensor | None,
    x: Tensor,
    norm: Tensor,
    router: Tensor,
    shared_gate: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    counts: Tensor,
    kept: Tensor,
    eps: float,
    dtype: torch.dtype,
    top_k: int,
    softmax: bool,
    scale: float,
    aux_loss: float,
    z_loss: float,
    learn: bool,
) -> list[Tensor]:
    """Gradients of x and of the seven weights in their order, in their dtypes, empty for a weight that is not there.

    Without `dy` there is only the auxiliary loss, and the experts have no gradient; nor have they unless `learn`.
    """
    weights = Weights(norm, router, shared_gate, None, gate_up, down, shared_gate_up, shared_down)
    settings = Settings(eps, dtype, top_k, softmax, scale, aux_loss, z_loss)
    dx, *grads = _gradients(x, weights, learn and dy is not None, torch.float32)
    names = ("norm", "router", "shared_gate", "gate_up", "down", "shared_gate_up", "shared_down")
    LIBRARY.call(
        "moe_layer_backward",
        _arguments(x, weights, settings, _kept(x, weights, settings, True).addresses(kept)),
        _GRADIENTS(
            dy=None if dy is None else in_memory(dy), dloss=None if dloss is None else in_memory(dloss), counts=counts,
            dx=dx, **{name: d if d.numel() else None for name, d in zip(names, grads, strict=True)},
        ),
    )  # fmt: skip
    return [
        dx,
        *(grad.to(t.dtype) if t is not None else grad for grad, t in zip(grads, _learned(weights), strict=True)),
    ]


def _learned(weights: Weights) -> tuple[Tensor | None, ...]:
    return *weights[:3], *weights[4:]


def _gradients(x: Tensor, weights: Weights, learn: bool, dtype: torch.dtype | None = None) -> list[Tensor]:
    """In each weight's dtype, or all in one; empty for what has no gradient."""
    wanted = [*weights[:3], *(weights[4:] if learn else (None,) * 4)]
    grads = [x.new_empty(0) if t is None else t.new_empty(t.shape, dtype=dtype) for t in wanted]
    return [x.new_empty(x.shape), *grads]


@moe_layer_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    dy, dloss, x, norm, router, gate, gate_up, down, shared_gate_up, shared_down, counts, kept,
    eps, dtype, top_k, softmax, scale, aux_loss, z_loss, learn,
):  # fmt: skip
    weights = Weights(norm, router, gate, None, gate_up, down, shared_gate_up, shared_down)
    return _gradients(x, weights, learn and dy is not None)


def _arguments(x: Tensor, weights: Weights, settings: Settings, places: dict[str, int | None]) -> Filled:
    """What both entry points take; `places` are those of what is kept for the backward pass.

    Raises:
        ValueError: if shapes do not belong together.
    """
    norm, router, shared_gate, bias, gate_up, down, shared_gate_up, shared_down = weights
    (E, D), G = router.shape, 0 if shared_down is None else shared_down.shape[1]
    F = down.shape[2]
    shapes_fit(
        "MoE layer",
        tokens=(x, (*x.shape[:-1], D)),
        norm=(norm, (D,)),
        shared_gate=(shared_gate, (D,)),
        bias=(bias, (E,)),
        gate_up=(gate_up, (E, 2 * F, D)),
        down=(down, (E, D, F)),
        shared_gate_up=(shared_gate_up, (2 * G, D)),
        shared_down=(shared_down, (D, G)),
    )
    if not 0 < settings.top_k <= E:
        raise ValueError(f"MoE layer: {settings.top_k} experts cannot be chosen of {E}")
    wide = [None if t is None else t.float().contiguous() for t in (norm, router, shared_gate, bias)]
    experts = [None if t is None else t.contiguous() for t in (gate_up, down, shared_gate_up, shared_down)]
    in_half = native._kept_dtype(settings.dtype) == torch.bfloat16
    return _ARGUMENTS(
        x=x.contiguous(), norm=wide[0], router_weight=wide[1], shared_gate=wide[2], bias=wide[3],
        gate_up=experts[0], down=experts[1], shared_gate_up=experts[2], shared_down=experts[3],
        N=x.numel() // D, D=D, F=F, shared_F=G, E=E, k=settings.top_k,
        x_half=x.dtype == torch.bfloat16, weights_half=gate_up.dtype == torch.bfloat16,
        half=settings.dtype == torch.bfloat16, in_half=in_half, softmax=settings.softmax,
        epsilon=settings.eps, scale=settings.scale, aux_loss=settings.aux_loss, z_loss=settings.z_loss, **places,
    )  # fmt: skip


def _kept(x: Tensor, weights: Weights, settings: Settings, keep: bool) -> Parts:
    """What layer.h keeps for the backward pass."""
    (E, D), k = weights.router_ED.shape, settings.top_k
    N, F = x.numel() // D, weights.down_EDF.shape[2]
    G = 0 if weights.shared_down_DG is None else weights.shared_down_DG.shape[1]
    hidden = 2 * native._kept_dtype(settings.dtype).itemsize if keep else 0
    return parts_of(
        h=settings.dtype.itemsize * N * D, scales=4 * N, index=8 * N * k, weight=4 * N * k,
        gate=0 if weights.shared_gate_D is None else 4 * N, scores=4 * N * E, lse=4 * N if settings.z_loss else 0,
        hidden=hidden * N * k * F, shared_hidden=hidden * N * G,
    )  # fmt: skip


_TENSORS = len(Weights._fields) + 1


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, norm, router, shared_gate, _bias, *experts = inputs[:_TENSORS]
    *ctx.settings, _keep = inputs[_TENSORS:]
    _y, _loss, counts, stats, kept = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(counts, stats, kept)
    ctx.save_for_backward(x, norm, router, shared_gate, *experts, counts, kept)


def _backward(ctx: Any, dy: Tensor | None, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    if dy is None and dloss is None:
        return wanted([], needs)
    learn = any(needs[_TENSORS - 4 : _TENSORS])
    grads = moe_layer_backward(dy, dloss, *ctx.saved_tensors, *ctx.settings, learn)
    dx, dnorm, drouter, dgate, *dexperts = (grad if grad.numel() else None for grad in grads)
    return wanted([dx, dnorm, drouter, dgate, None, *dexperts], needs)


moe_layer.register_autograd(_backward, setup_context=_setup)


def reference_layer(x_ND: Tensor, weights: Weights, settings: Settings) -> Tensor:
    """The stream after `whole_layer`, step by step in PyTorch and in the inputs' dtype, for scores by sigmoid: the reference."""
    h_ND = reference_rms_norm(x_ND, weights.norm_D, settings.eps)
    scores_NE = (h_ND @ weights.router_ED.t()).sigmoid()
    biased_NE = scores_NE if weights.bias_E is None else scores_NE + weights.bias_E
    index_Nk = biased_NE.topk(settings.top_k, dim=1).indices
    weight_Nk = scores_NE.gather(1, index_Nk)
    weight_Nk = settings.scale * weight_Nk / weight_Nk.sum(1, keepdim=True)
    y_ND = x_ND + loop(h_ND, weights.gate_up_E2FD, weights.down_EDF, index_Nk, weight_Nk)
    if weights.shared_gate_up_2GD is None or weights.shared_down_DG is None:
        return y_ND
    shared_ND = swiglu(h_ND, weights.shared_gate_up_2GD, weights.shared_down_DG)
    return y_ND + (
        shared_ND if weights.shared_gate_D is None else shared_ND * (h_ND @ weights.shared_gate_D).sigmoid()[:, None]
    )


def check() -> None:
    """41 tokens through a layer with a shared expert and its gate."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((41, 32), (32,), (4, 32), (32,), (4, 64, 32), (4, 32, 32), (64, 32), (32, 32))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.4) for shape in shapes]
    bias = torch.tensor([0.1, 0.0, -0.1, 0.0])
    settings = Settings(1e-6, torch.float32, 2, False, 1.5, 0.0, 0.0)

    def weights_of(norm: Tensor, router: Tensor, gate: Tensor, *experts: Tensor) -> Weights:
        return Weights(norm, router, gate, bias, *experts)

    def moe_layer(x: Tensor, *weights: Tensor) -> Tensor:
        return whole_layer(x, weights_of(*weights), settings)[0]

    agree(moe_layer, lambda x, *weights: reference_layer(x, weights_of(*weights), settings), inputs, 1e-4)
