"""The C++ form of RMSNorm as torch operators. Legend: ... any shape, D normalised width, R rows: all but D."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.native import NativeLibrary, native_operator
from superblock.kernels.native.rows import row_counts, rows_of
from superblock.kernels.norm.reference import reference_gated_rms_norm, reference_rms_norm

_DTYPES = (torch.float32, torch.bfloat16)


def fits(x_D: Tensor, weight_D: Tensor, dtype: torch.dtype) -> bool:
    """Whether the C++ form serves these tensors; builds it at the first call."""
    return (
        x_D.device.type == weight_D.device.type == "cpu"
        and x_D.dtype in _DTYPES
        and dtype in _DTYPES
        and weight_D.dtype in _DTYPES
        and x_D.numel() > 0
        and weight_D.shape in (x_D.shape[-1:], x_D.shape[-2:])
        and LIBRARY.why_not() is None
    )


def fits_gated(x_D: Tensor, weight_D: Tensor, gate_D: Tensor, dtype: torch.dtype) -> bool:
    """Likewise for the gated form, which takes fp32 `x` and one weight for all rows."""
    return (
        x_D.dtype == torch.float32
        and weight_D.ndim == 1
        and gate_D.dtype in _DTYPES
        and gate_D.device.type == "cpu"
        and gate_D.shape == x_D.shape
        and fits(x_D, weight_D, dtype)
    )


@native_operator("rms_norm")
def rms_norm(
    x_D: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype, wide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result in `dtype`, the same in fp32 if `wide` (else an empty tensor), and each row's scale, fp32.

    `x` is fp32 or bf16 with any strides, `weight` [D] or the last two dimensions of `x`.
    """
    x, weight = rows_of(x_D), weight_D.float().contiguous()
    y_D = x_D.new_empty(x_D.shape, dtype=dtype)
    wide_D = x_D.new_empty(x_D.shape if wide else 0, dtype=torch.float32)
    scale_R = x_D.new_empty(x_D.shape[:-1], dtype=torch.float32)
    LIBRARY.call(
        "rms_norm_forward", x.tensor, _half(x_D.dtype), x.outer, x.inner, weight, int(weight.ndim > 1), eps,
        y_D, _half(dtype), wide_D if wide else None, scale_R, *row_counts(x_D),
    )  # fmt: skip
    return y_D, wide_D, scale_R


@rms_norm.register_fake
def _(x_D: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    wide_D = x_D.new_empty(x_D.shape if wide else 0, dtype=torch.float32)
    return x_D.new_empty(x_D.shape, dtype=dtype), wide_D, x_D.new_empty(x_D.shape[:-1], dtype=torch.float32)


@native_operator("rms_norm_backward")
def rms_norm_backward(
    x_D: Tensor,
    weight_D: Tensor,
    scale_R: Tensor,
    dy_D: Tensor | None,
    dwide_D: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and of `weight`, in their dtypes; of `weight` the same bits for any number of threads."""
    x, weight = rows_of(x_D), weight_D.float().contiguous()
    dx_D, dweight = x_D.new_empty(x_D.shape), torch.empty_like(weight)
    partial = weight.new_empty(_MAX_BLOCKS, weight.numel())
    dy = (None, 0, 0) if dy_D is None else rows_of(dy_D)
    dwide = (None, 0, 0) if dwide_D is None else rows_of(dwide_D)
    LIBRARY.call(
        "rms_norm_backward", x.tensor, _half(x_D.dtype), x.outer, x.inner, weight, int(weight.ndim > 1), scale_R,
        dy[0], 0 if dy_D is None else _half(dy_D.dtype), *dy[1:], *dwide, dx_D, dweight, partial, *row_counts(x_D),
    )  # fmt: skip
    return dx_D, dweight.to(weight_D.dtype)


@rms_norm_backward.register_fake
def _(
    x_D: Tensor,
    weight_D: Tensor,
    scale_R: Tensor,
    dy_D: Tensor | None,
    dwide_D: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return x_D.new_empty(x_D.shape), weight_D.new_empty(weight_D.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], inputs[1], output[2])
    ctx.mark_non_differentiable(output[2])


def _gradients(ctx: Any, dy_D: Tensor | None, dwide_D: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy_D is None and dwide_D is None:
        return None, None, None, None, None
    dx_D, dweight = rms_norm_backward(*ctx.saved_tensors, dy_D, dwide_D)
    return dx_D, dweight, None, None, None


rms_norm.register_autograd(_gradients, setup_context=_save)


@native_operator("gated_rms_norm")
def gated_rms_norm(
    x_D: Tensor, weight_D: Tensor, gate_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The result in `dtype`, and each row's scale. `x` is fp32, `gate` fp32 or bf16, both with any strides."""
    x, gate, weight = rows_of(x_D), rows_of(gate_D), weight_D.float().contiguous()
    y_D = x_D.new_empty(x_D.shape, dtype=dtype)
    scale_R = x_D.new_empty(x_D.shape[:-1], dtype=torch.float32)
    LIBRARY.call(
        "gated_rms_norm_forward", *x, weight, gate.tensor, _half(gate_D.dtype), gate.outer, gate.inner, eps,
        y_D, _half(dtype), scale_R, *row_counts(x_D),
    )  # fmt: skip
    return y_D, scale_R


@gated_rms_norm.register_fake
def _(x_D: Tensor, weight_D: Tensor, gate_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x_D.new_empty(x_D.shape, dtype=dtype), x_D.new_empty(x_D.shape[:-1], dtype=torch.float32)


@native_operator("gated_rms_norm_backward")
def gated_rms_norm_backward(
    x_D: Tensor, weight_D: Tensor, gate_D: Tensor, scale_R: Tensor, dy_D: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`, `weight` and `gate`, in their dtypes; of `weight` the same bits for any number of threads."""
    x, gate, dy, weight = rows_of(x_D), rows_of(gate_D), rows_of(dy_D), weight_D.float().contiguous()
    dx_D, dgate_D = x_D.new_empty(x_D.shape), gate_D.new_empty(gate_D.shape)
    dweight, partial = torch.empty_like(weight), weight.new_empty(_MAX_BLOCKS, weight.numel())
    LIBRARY.call(
        "gated_rms_norm_backward", *x, weight, gate.tensor, _half(gate_D.dtype), gate.outer, gate.inner, scale_R,
        dy.tensor, _half(dy_D.dtype), dy.outer, dy.inner, dx_D, *rows_of(dgate_D), dweight, partial, *row_counts(x_D),
    )  # fmt: skip
    return dx_D, dweight.to(weight_D.dtype), dgate_D


@gated_rms_norm_backward.register_fake
def _(x_D: Tensor, weight_D: Tensor, gate_D: Tensor, scale_R: Tensor, dy_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x_D.new_empty(x_D.shape), weight_D.new_empty(weight_D.shape), gate_D.new_empty(gate_D.shape)


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.mark_non_differentiable(output[1])


def _gated_gradients(ctx: Any, dy_D: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy_D is None:
        return None, None, None, None, None
    return *gated_rms_norm_backward(*ctx.saved_tensors, dy_D), None, None


gated_rms_norm.register_autograd(_gated_gradients, setup_context=_save_gated)

_MAX_BLOCKS = 64
"""Into how many blocks of rows, at most, the source cuts the gradient of a weight."""


def _half(dtype: torch.dtype) -> int:
    assert dtype in _DTYPES, f"the C++ norm takes fp32 and bf16, not {dtype}"
    return int(dtype == torch.bfloat16)


def _check() -> None:
    generator = torch.Generator().manual_seed(0)
    x_D, gate_D, dy_D = (torch.randn(2, 9, 5, 37, generator=generator) for _ in range(3))
    inputs = [t.requires_grad_() for t in (x_D, torch.randn(37, generator=generator), gate_D)]
    x_D, weight_D, gate_D = inputs
    gated = gated_rms_norm(x_D, weight_D, gate_D, 1e-6, torch.float32)[0]
    pairs = [
        (rms_norm(x_D, weight_D, 1e-6, torch.float32, False)[0], reference_rms_norm(x_D, weight_D, 1e-6)),
        (gated, reference_gated_rms_norm(x_D, weight_D, gate_D, 1e-6)),
    ]
    for pair in pairs:
        found, want = ([y_D, *torch.autograd.grad(y_D, inputs, dy_D, materialize_grads=True)] for y_D in pair)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


LIBRARY = NativeLibrary(Path(__file__).with_name("native.cpp"), check=_check)
