"""The product inside a SwiGLU layer. Legend: ... any shape, F hidden width."""

import torch.nn.functional as F
from torch import Tensor

from superblock.kernels.swiglu import native

__all__ = ["reference_swiglu", "swiglu"]


def swiglu(gate_up_2F: Tensor) -> Tensor:
    """silu(gate) * up of rows [gate: F | up: F], in their dtype.

    The C++ kernel computes in fp32 and rounds once; it runs on a processor that can build it, PyTorch's form elsewhere.
    """
    assert gate_up_2F.shape[-1] % 2 == 0, "a row has as many gates as values"
    return native.swiglu(gate_up_2F) if native.fits(gate_up_2F) else reference_swiglu(gate_up_2F)


def reference_swiglu(gate_up_2F: Tensor) -> Tensor:
    """The formula; plain autograd."""
    gate_F, up_F = gate_up_2F.chunk(2, dim=-1)
    return F.silu(gate_F) * up_F
