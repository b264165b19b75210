"""How C++ kernels read tensors of any strides as rows: the last dimension contiguous, two strides for all dimensions before."""

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """M groups of G rows of D elements: row (m, g) begins `m * outer + g * inner` elements after the tensor's start."""

    tensor: Tensor
    """The tensor itself, or a contiguous copy where two strides cannot describe it."""
    outer: int
    inner: int


def rows_of(x: Tensor) -> Rows:
    """The rows of a tensor with at least one dimension; G is its last but one, M the product of those before."""
    strides = _two_strides(x)
    if strides is None:
        x = x.contiguous()
        strides = _two_strides(x)
        assert strides is not None
    return Rows(x, *strides)


def row_counts(x: Tensor) -> tuple[int, int, int]:
    """M, G and D of a tensor."""
    width, group = x.shape[-1], x.shape[-2] if x.ndim > 1 else 1
    return x.numel() // max(1, width * group), group, width


def _two_strides(x: Tensor) -> tuple[int, int] | None:
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        return None
    inner = x.stride(-2) if x.ndim > 1 else 0
    outer, span = 0, None
    for size, stride in zip(reversed(x.shape[:-2]), reversed(x.stride()[:-2]), strict=True):
        if size == 1:
            continue
        if span is None:
            outer = stride
        elif stride != span:
            return None
        span = stride * size
    return outer, inner
