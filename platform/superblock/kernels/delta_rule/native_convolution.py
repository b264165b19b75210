"""Short causal convolution and SiLU in one C++ operation for processors; the backward pass computes z anew.

Legend: B sequences, T tokens, C channels, W taps (tap W-1 is the token itself).
"""

from typing import Any

import torch
from torch import Tensor

from superblock.kernels.delta_rule.native_library import LIBRARY
from superblock.kernels.native import native_operator
from superblock.kernels.packing import PackInfo

MOST_TAPS = 16
Pair = tuple[Tensor, Tensor]


def fused_conv(
    x_BTC: Tensor, weight_CW: Tensor, *, pack: PackInfo | None = None, state_BWC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Same as `convolution.causal_conv` in fp32 with one rounding to the dtype of `x`, bf16 or fp32.

    Rows of `x` may be slices of longer ones. Results do not depend on the number of threads.
    """
    documents_BT = None if pack is None or pack.whole_rows else pack.doc_ids_BT.to(torch.int32).contiguous()
    state_BWC = None if state_BWC is None else state_BWC.to(x_BTC.dtype).contiguous()
    y, state = convolve(x_BTC, weight_CW.float().contiguous(), state_BWC, documents_BT)
    return y, state


def unfit(x_BTC: Tensor, weight_CW: Tensor) -> str | None:
    """Why these tensors are not for the C++ form, in words; None if they are."""
    if x_BTC.device.type != "cpu":
        return f"it has no kernel for {x_BTC.device.type}"
    if x_BTC.dtype not in (torch.float32, torch.bfloat16) or weight_CW.dtype == torch.float64:
        return f"it computes bf16 and fp32, not {x_BTC.dtype}"
    return unfit_sizes(x_BTC.shape[1], x_BTC.shape[2], weight_CW.shape[1])


def unfit_sizes(T: int, C: int, taps: int) -> str | None:
    """Why so many tokens, channels and taps are not for the C++ form, in words; None if they are."""
    if not T or C % 16 or taps > MOST_TAPS:
        return f"{T} tokens are none, {C} channels not a multiple of 16, or {taps} taps above {MOST_TAPS}"
    return LIBRARY.why_not()


def _arguments(x: Tensor, weight: Tensor, state: Tensor | None, documents: Tensor | None) -> tuple[Any, ...]:
    """What both entry points begin with.

    Raises:
        ValueError: if shapes or dtypes do not belong together.
    """
    (B, T, C), taps = x.shape, weight.shape[1]
    for name, t, dtype, shape in (
        ("weights", weight, torch.float32, (C, taps)),
        ("a state", state, x.dtype, (B, taps - 1, C)),
        ("documents", documents, torch.int32, (B, T)),
    ):
        if t is not None and (t.shape != shape or t.dtype != dtype or not t.is_contiguous()):
            raise ValueError(f"convolution in C++: {name} {list(t.shape)} {t.dtype} for inputs {[B, T, C]} {x.dtype}")
    x = x if x.stride(2) == 1 else x.contiguous()
    return x, weight, state, documents, x.stride(0), x.stride(1), B, T, C, taps, x.dtype == torch.bfloat16


@native_operator("causal_conv")
def convolve(x_BTC: Tensor, weight_CW: Tensor, state_BWC: Tensor | None, documents_BT: Tensor | None) -> Pair:
    """silu(conv(x)) and the last W-1 inputs, both contiguous in the dtype of `x`."""
    y, last = _outputs(x_BTC, weight_CW)
    LIBRARY.call("convolution_forward", *_arguments(x_BTC, weight_CW, state_BWC, documents_BT), y, last)
    return y, last


def _outputs(x: Tensor, weight: Tensor) -> Pair:
    B, _, C = x.shape
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(B, weight.shape[1] - 1, C)


@convolve.register_fake
def _(x, weight, state, documents):  # type: ignore[no-untyped-def]
    return _outputs(x, weight)


@native_operator("causal_conv_backward")
def convolve_backward(
    dy_BTC: Tensor, x_BTC: Tensor, weight_CW: Tensor, state_BWC: Tensor | None, documents_BT: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the weights and the state before, which is empty without one."""
    dx, dweight, dstate = _gradients(x_BTC, weight_CW, state_BWC)
    B, _, C = x_BTC.shape
    LIBRARY.call(
        "convolution_backward",
        *_arguments(x_BTC, weight_CW, state_BWC, documents_BT),
        *(dy_BTC.contiguous(), dx, dx.stride(0), dx.stride(1)),
        *(None if state_BWC is None else dstate, weight_CW.new_empty(B, weight_CW.shape[1], C), dweight),
    )
    return dx, dweight, dstate


def _gradients(x: Tensor, weight: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    dstate = x.new_empty(0) if state is None else torch.empty_like(state)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight), dstate


@convolve_backward.register_fake
def _(dy, x, weight, state, documents):  # type: ignore[no-untyped-def]
    return _gradients(x, weight, state)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, state, documents = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    dx, dweight, dstate = convolve_backward(dy, x, weight, state, documents)
    if dlast is not None:  # the last inputs, copied out; those of another document were zeroed
        T, lags = x.shape[1], weight.shape[1] - 1
        if documents is not None:
            before = documents[:, :1].expand(-1, lags)
            within = torch.cat([before, documents], dim=1)[:, T:] == documents[:, -1:]
            dlast = dlast * within.flip(1).cumprod(1).flip(1)[..., None].to(dlast.dtype)
        fresh = min(T, lags)
        dx[:, T - fresh :] += dlast[:, lags - fresh :]
        if state is not None and fresh < lags:
            dstate[:, fresh:] += dlast[:, : lags - fresh]
    return dx, dweight, None if state is None else dstate, None


convolve.register_autograd(_differentiate, setup_context=_setup)


def check() -> None:
    """Two packed rows that continue a state, forward and backward, against shifted products in float64."""
    from superblock.kernels.delta_rule.convolution import shifted_conv

    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 37, 48), (48, 4), (2, 3, 48))]
    pack = PackInfo.from_doc_ids(torch.tensor([0] * 2 + [1] * 14 + [2] * 21).expand(2, -1))
    results = []
    for form, dtype in ((shifted_conv, torch.float64), (fused_conv, torch.float32)):
        x, weight, state = (t.to(dtype).requires_grad_() for t in exact)
        y, last = form(x, weight, pack=pack, state_BWC=state)
        results.append([y, last, *torch.autograd.grad(y.sin().sum() + last.sin().sum(), (x, weight, state))])
    for name, a, b in zip(("y", "last", "dx", "dweight", "dstate"), *results, strict=True):
        error = float((a - b).detach().norm() / a.detach().norm())
        assert error < 1e-5, f"relative error of {name} is {error:.1e}"
