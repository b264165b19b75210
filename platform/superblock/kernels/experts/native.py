"""Experts as C++ kernels for processors: routed and shared experts in one call, forward and backward.

Legend: N tokens, D model width, E experts, F expert width, G width of the shared expert, k experts per token.

Rows are gathered from `x` in blocks of 32, the products run in registers (bf16 dot products of AVX-512, or the tiles of
AMX; fp32 products at every level), and SwiGLU, its derivative and the routing weights are applied while a block is in the
first cache. Kept for backward: `hidden`, what SwiGLU gets.

Measured on one thread of a Zen 4 server without AMX, forward and backward, bf16, against 210 GFLOP/s, the rate of torch's
products there: 4096 tokens, D = F = G = 256, 8 experts top-2: 76 ms, 91 %; 2048 tokens, D 256, F 128: 20.4 ms, 85 %;
2048 tokens, D 128, F 64: 5.2 ms, 82 %. The products alone reach 225 to 232 GFLOP/s, the rest is SwiGLU, gathering and
packing. In fp32, against 95 GFLOP/s: 102, 92 and 85 %. Without gain: stores of `hidden` past the cache. The code for AMX
has run under emulation there; on hardware with AMX only its predecessor has run.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.experts.loop import loop, swiglu
from superblock.kernels.native import NativeLibrary, native_operator
from superblock.kernels.native.operator import wanted
from superblock.kernels.native.record import Filled, Record
from superblock.kernels.precision import compute_dtype
from superblock.kernels.projections import MULTIPLE

_READS = (torch.float32, torch.bfloat16)
SOURCE = Path(__file__).with_name("native.cpp")
_ARGUMENTS, _GRADIENTS = Record(SOURCE, "ExpertsArguments"), Record(SOURCE, "ExpertsGradients")


def why_not_native(x: Tensor, gate_up: Tensor, down: Tensor, shared: tuple[Tensor, Tensor] | None = None) -> str | None:
    """Why the C++ experts refuse these tensors; None if they do not. Builds them at the first call that gets so far."""
    weights = [gate_up, down, *(shared or ())]
    if any(t.device.type != "cpu" for t in (x, *weights)):
        return "it runs on processors only"
    if compute_dtype(x) not in _READS or x.dtype not in _READS:
        return f"it has no {compute_dtype(x)} kernel"
    if weights[0].dtype not in _READS or len({t.dtype for t in weights}) > 1:
        return "weights must all be float32, or all bfloat16"
    for width in (down.shape[1], *(t.shape[-1] for t in weights[1::2])):
        if width % MULTIPLE or not width:
            return f"width {width} is not a multiple of {MULTIPLE}"
    return LIBRARY.why_not()


def native_experts(
    x_ND: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    index_Nk: Tensor,
    weight_Nk: Tensor,
    shared: tuple[Tensor, Tensor] | None = None,
    shared_weight_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The routed and the shared experts' sum [N, D] in the compute dtype, and both parts' sums of squares, fp32 [2].

    Differentiable once in everything but `index`. Forward gives the same bits with any number of threads, backward with
    the same number. Raises ValueError for an index without an expert.
    """
    inputs = (x_ND, gate_up_E2FD, down_EDF, weight_Nk, *(shared or ()), shared_weight_N)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    shared_gate_up, shared_down = shared or (None, None)
    y_ND, power_2, *_ = mix_experts_native(
        x_ND,
        gate_up_E2FD,
        down_EDF,
        index_Nk,
        weight_Nk.float(),
        shared_gate_up,
        shared_down,
        None if shared_weight_N is None else shared_weight_N.float(),
        compute_dtype(x_ND),
        keep,
    )
    return y_ND, power_2


def _kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which dtype products run and rows are kept: bf16 only where the processor multiplies it."""
    return dtype if LIBRARY.level in ("avx512_bf16", "amx") else torch.float32


def matrix_fields(name: str, x: Tensor) -> dict[str, Tensor | int]:
    """What C++ gets of a matrix: its memory, elements from row to row, and whether it is 16-bit."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return {name: x, f"{name}_stride": x.stride(0), f"{name}_half": x.dtype == torch.bfloat16}


def _arguments(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    index: Tensor,
    weight: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    shared_weight: Tensor | None,
    dtype: torch.dtype,
    hidden: Tensor | None,
    shared_hidden: Tensor | None,
) -> Filled:
    """What both entry points take."""
    (N, D), (E, _, F), k = x.shape, down.shape, index.shape[1]
    G = 0 if shared_down is None else shared_down.shape[1]
    assert gate_up.shape == (E, 2 * F, D) and down.shape == (E, D, F), "weights must be [E, 2F, D] and [E, D, F]"
    assert index.shape == weight.shape == (N, k), "index and weight must be [N, k]"
    if shared_gate_up is not None and shared_down is not None:
        assert shared_gate_up.shape == (2 * G, D) and shared_down.shape == (D, G), "shared must be [2G, D] and [D, G]"
    assert shared_weight is None or shared_weight.shape == (N,), "the shared expert's weight must be [N]"
    dense = [None if t is None else t.contiguous() for t in (shared_gate_up, shared_down, shared_weight)]
    return _ARGUMENTS(
        **matrix_fields("x", x), gate_up=gate_up.contiguous(), down=down.contiguous(), shared_gate_up=dense[0],
        shared_down=dense[1], weights_half=gate_up.dtype == torch.bfloat16, index=index.to(torch.int64).contiguous(),
        weight=weight.contiguous(), shared_weight=dense[2], N=N, D=D, F=F, shared_F=G, E=E, k=k,
        in_half=_kept_dtype(dtype) == torch.bfloat16, hidden=hidden, shared_hidden=shared_hidden,
        parts=x.new_empty(N * k, D, dtype=_kept_dtype(dtype)),
    )  # fmt: skip


@native_operator("mix_experts")
def mix_experts_native(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    index: Tensor,
    weight: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    shared_weight: Tensor | None,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, sums of squares, and what backward needs: hidden rows of the routed and of the shared expert."""
    if index.numel():
        low, high = index.aminmax()
        if low < 0 or high >= len(gate_up):
            raise ValueError(f"indices from {low} to {high} for {len(gate_up)} experts")
    y, power, hidden, shared_hidden = _outputs(x, down, index, shared_down, dtype, keep)
    kept = (hidden, shared_hidden) if keep else (None, None)
    arguments = _arguments(x, gate_up, down, index, weight, shared_gate_up, shared_down, shared_weight, dtype, *kept)
    LIBRARY.call("experts_forward", arguments, y, y.dtype == torch.bfloat16, power)
    return y, power.sum(0), hidden, shared_hidden


def _outputs(
    x: Tensor, down: Tensor, index: Tensor, shared_down: Tensor | None, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, rows = len(x), index.numel() if keep else 0
    shared_rows, G = (0, 0) if shared_down is None else (N if keep else 0, shared_down.shape[1])
    kept = _kept_dtype(dtype)
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty((N + 31) // 32, 2, dtype=torch.float32),
        x.new_empty(rows, 2 * down.shape[2], dtype=kept),
        x.new_empty(shared_rows, 2 * G, dtype=kept),
    )


@mix_experts_native.register_fake
def _(x, gate_up, down, index, weight, shared_gate_up, shared_down, shared_weight, dtype, keep):  # type: ignore[no-untyped-def]
    y, power, hidden, shared_hidden = _outputs(x, down, index, shared_down, dtype, keep)
    return y, power.new_empty(2), hidden, shared_hidden


@native_operator("mix_experts_backward")
def mix_experts_backward(
    dy: Tensor,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    index: Tensor,
    weight: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    shared_weight: Tensor | None,
    hidden: Tensor,
    shared_hidden: Tensor,
    dtype: torch.dtype,
    learn: bool,
) -> list[Tensor]:
    """Gradients of x, weight, shared_weight, gate_up, down and the shared expert's two; empty where there is none.

    Those of the experts' own weights are fp32, and empty unless `learn`.
    """
    kept = (hidden, shared_hidden)
    arguments = _arguments(x, gate_up, down, index, weight, shared_gate_up, shared_down, shared_weight, dtype, *kept)
    grads = _gradients(x, gate_up, down, weight, shared_gate_up, shared_down, shared_weight, learn)
    if not len(x):
        return [grad.zero_() for grad in grads]
    dx, *others = grads
    names = ("weight", "shared_weight", "gate_up", "down", "shared_gate_up", "shared_down")
    asked = {name: grad if grad.numel() else None for name, grad in zip(names, others, strict=True)}
    to = _GRADIENTS(**matrix_fields("dy", dy), dx=dx, dx_half=dx.dtype == torch.bfloat16, **asked)
    LIBRARY.call("experts_backward", arguments, to)
    return grads


def _gradients(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weight: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    shared_weight: Tensor | None,
    learn: bool,
) -> list[Tensor]:
    nothing = x.new_empty(0, dtype=torch.float32)
    weights = [gate_up, down, shared_gate_up, shared_down] if learn else [None] * 4
    like = [weight, shared_weight, *weights]
    grads = [nothing.clone() if t is None else t.new_empty(t.shape, dtype=torch.float32) for t in like]
    return [x.new_empty(x.shape), *grads]


@mix_experts_backward.register_fake
def _(dy, x, gate_up, down, index, weight, sgu, sd, shared_weight, hidden, shared_hidden, dtype, learn):  # type: ignore[no-untyped-def]
    return _gradients(x, gate_up, down, weight, sgu, sd, shared_weight, learn)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dtype, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[2:])


def _backward(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 10
    tensors = ctx.saved_tensors
    gate_up, needs = tensors[1], ctx.needs_input_grad
    learn = any(needs[i] for i in (1, 2, 5, 6))
    dx, dweight, dshared_weight, *grads = mix_experts_backward(dy, *tensors, ctx.dtype, learn)
    dgate_up, ddown, dshared_gate_up, dshared_down = (grad.to(gate_up.dtype) for grad in grads)
    every = (dx, dgate_up, ddown, None, dweight, dshared_gate_up, dshared_down, dshared_weight, None, None)
    return wanted(every, needs)


mix_experts_native.register_autograd(_backward, setup_context=_setup)


def _check() -> None:
    """Tiny inputs against the loop, in fp32 and in bf16, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((41, 32), (3, 128, 32), (3, 32, 64), (41, 2), (64, 32), (32, 32), (41,))
    leaves = [torch.randn(shape, generator=generator).mul_(0.3) for shape in shapes]
    index = torch.rand(41, 3, generator=generator).topk(2, dim=1).indices
    x, gate_up, down, weight, shared_gate_up, shared_down, shared_weight = (t.requires_grad_() for t in leaves)
    dy = torch.randn(x.shape, generator=generator)
    y = loop(x, gate_up, down, index, weight)
    y = y + swiglu(x, shared_gate_up, shared_down) * shared_weight[:, None]
    want = [y, *torch.autograd.grad(y, leaves, dy)]
    tensors = (x, gate_up, down, index, weight, shared_gate_up, shared_down, shared_weight)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        with torch.no_grad():
            y, _, *kept = mix_experts_native(*tensors, dtype, True)
            grads = mix_experts_backward(dy.to(dtype), *tensors, *kept, dtype, True)
        dx, dweight, dshared_weight, dgate_up, ddown, *dshared = grads
        have = (y, dx, dgate_up, ddown, dweight, *dshared, dshared_weight)
        for number, (a, b) in enumerate(zip(have, want, strict=True)):
            error = float((a.detach().float() - b.detach()).norm() / b.detach().norm())
            assert error < bound, f"result {number} in {dtype} is off by {error:.1e}"
    from superblock.kernels.experts import whole_layer  # which calls the library

    whole_layer.check()


LIBRARY = NativeLibrary(SOURCE, check=_check)
