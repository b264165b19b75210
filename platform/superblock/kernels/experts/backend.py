"""Which implementation of the experts runs. An explicit choice that cannot run is an error, never a silent fallback."""

import torch
from torch import Tensor

from superblock.kernels.experts.native import why_not_native
from superblock.kernels.experts.native_router import why_not_native_router
from superblock.kernels.precision import compute_dtype

BACKENDS = ("auto", "native", "sorted", "grouped", "loop")


def choose(name: str, x: Tensor, gate_up: Tensor, down: Tensor, shared: tuple[Tensor, Tensor] | None = None) -> str:
    """Resolve "auto": grouped GEMM where CUDA has one, on a processor the C++ kernels, else sorted; the loop for float64.

    The C++ kernels need a compiler or what it once built, and widths that are multiples of 32.

    Raises ValueError for an unknown name and RuntimeError, saying why, for a choice that cannot run.
    """
    if name not in BACKENDS:
        raise ValueError(f"experts backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if name == "grouped" and (reason := why_not_grouped(x, gate_up, down)):
        raise RuntimeError(f"experts backend 'grouped' cannot run: {reason}; use 'sorted'")
    if name == "native" and (reason := why_not_native(x, gate_up, down, shared)):
        raise RuntimeError(f"experts backend 'native' cannot run: {reason}; use 'sorted'")
    if name != "auto":
        return name
    if x.dtype == torch.float64:
        return "loop"
    if why_not_native(x, gate_up, down, shared) is None:
        return "native"
    return "grouped" if x.is_cuda and why_not_grouped(x, gate_up, down) is None else "sorted"


def router_is_native(name: str, h: Tensor, router: Tensor, *, score: str, z_loss: float) -> bool:
    """Whether the router runs in C++ with the backend `name` of the experts: under "auto" and "native" where it can.

    Raises RuntimeError, saying why, for a choice that cannot run.
    """
    if name not in ("auto", "native"):
        return False
    reason = why_not_native_router(h, router, score, z_loss)
    if reason and name == "native":
        raise RuntimeError(f"experts backend 'native' cannot run the router: {reason}; use 'sorted'")
    return reason is None


def why_not_grouped(x: Tensor, gate_up: Tensor, down: Tensor) -> str | None:
    """Why torch's grouped GEMM refuses these tensors; None if it does not."""
    dtype = compute_dtype(x)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no {dtype} kernel"
    for width in (gate_up.shape[1], gate_up.shape[2], down.shape[2]):
        if width * dtype.itemsize % 16:
            return f"rows of {width} {dtype} elements are not a multiple of 16 bytes"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    return None
