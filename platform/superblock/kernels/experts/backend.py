"""Which implementation of the experts runs. An explicit choice that cannot run is an error, never a silent fallback."""

import torch
from torch import Tensor

from superblock.kernels.precision import compute_dtype

BACKENDS = ("auto", "sorted", "grouped", "loop")


def choose(name: str, x: Tensor, gate_up: Tensor, down: Tensor) -> str:
    """Resolve "auto": grouped GEMM where CUDA has one, sorted elsewhere, the loop for float64.

    Raises ValueError for an unknown name and RuntimeError, saying why, for a choice that cannot run.
    """
    if name not in BACKENDS:
        raise ValueError(f"experts backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if name == "grouped" and (reason := why_not_grouped(x, gate_up, down)):
        raise RuntimeError(f"experts backend 'grouped' cannot run: {reason}; use 'sorted'")
    if name != "auto":
        return name
    if x.dtype == torch.float64:
        return "loop"
    return "grouped" if x.is_cuda and why_not_grouped(x, gate_up, down) is None else "sorted"


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
