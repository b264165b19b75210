"""The C++ form of the SwiGLU product as a torch operator. Legend: ... any shape, F hidden width."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.native import NativeLibrary, native_operator
from superblock.kernels.native.rows import row_counts, rows_of

_DTYPES = (torch.float32, torch.bfloat16)


def fits(gate_up_2F: Tensor) -> bool:
    """Whether the C++ form serves this tensor; builds it at the first call."""
    return (
        gate_up_2F.device.type == "cpu"
        and gate_up_2F.dtype in _DTYPES
        and gate_up_2F.numel() > 0
        and LIBRARY.why_not() is None
    )


@native_operator("swiglu")
def swiglu(gate_up_2F: Tensor) -> Tensor:
    """silu(gate) * up [..., F] of rows [gate | up] with any strides, fp32 or bf16."""
    assert gate_up_2F.dtype in _DTYPES, f"the C++ SwiGLU takes fp32 and bf16, not {gate_up_2F.dtype}"
    rows, (M, G, width) = rows_of(gate_up_2F), row_counts(gate_up_2F)
    assert width % 2 == 0, "a row has as many gates as values"
    y_F = gate_up_2F.new_empty(*gate_up_2F.shape[:-1], width // 2)
    half = int(y_F.dtype == torch.bfloat16)
    LIBRARY.call("swiglu_forward", rows.tensor, half, rows.outer, rows.inner, y_F, M, G, width // 2)
    return y_F


@swiglu.register_fake
def _(gate_up_2F: Tensor) -> Tensor:
    return gate_up_2F.new_empty(*gate_up_2F.shape[:-1], gate_up_2F.shape[-1] // 2)


@native_operator("swiglu_backward")
def swiglu_backward(gate_up_2F: Tensor, dy_F: Tensor) -> Tensor:
    """The gradient of `gate_up`, in its dtype, which is that of `dy`."""
    assert dy_F.dtype == gate_up_2F.dtype, "a gradient has the dtype of its tensor"
    rows, dy, (M, G, width) = rows_of(gate_up_2F), rows_of(dy_F), row_counts(gate_up_2F)
    dgate_up_2F = gate_up_2F.new_empty(gate_up_2F.shape)
    half = int(dy_F.dtype == torch.bfloat16)
    LIBRARY.call(
        "swiglu_backward", rows.tensor, half, rows.outer, rows.inner, *dy, dgate_up_2F, M, G, width // 2
    )  # fmt: skip
    return dgate_up_2F


@swiglu_backward.register_fake
def _(gate_up_2F: Tensor, dy_F: Tensor) -> Tensor:
    return gate_up_2F.new_empty(gate_up_2F.shape)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _gradient(ctx: Any, dy_F: Tensor) -> Tensor:
    return swiglu_backward(*ctx.saved_tensors, dy_F)


swiglu.register_autograd(_gradient, setup_context=_save)


def _check() -> None:
    from superblock.kernels.swiglu import reference_swiglu  # which asks this module whether it fits

    gate_up = (4 * torch.randn(5, 66, generator=torch.Generator().manual_seed(0))).requires_grad_()
    found, want = swiglu(gate_up), reference_swiglu(gate_up)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    pair = [torch.autograd.grad(y.square().sum(), gate_up) for y in (found, want)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


LIBRARY = NativeLibrary(Path(__file__).with_name("native.cpp"), check=_check)
