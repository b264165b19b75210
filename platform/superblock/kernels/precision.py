"""Which dtype an operation computes in, and how a part of the model stays in fp32 under autocast.

Mixed precision here is `torch.autocast`. The custom autograd functions of this package receive tensors as they are and
cast by themselves, so they ask `compute_dtype`; what must not be rounded (the delta rule's core, gates, router) runs in
an `fp32_island`: under bf16 autocast the delta rule's error is 4e-3, inside an island 0.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of `x` runs: autocast's where it applies, else the dtype of `x`.

    As in torch, autocast leaves float64 alone.
    """
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 (tests), float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def fp32_island(device_type: str) -> AbstractContextManager[object]:
    """Turn autocast off inside the `with` block."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
