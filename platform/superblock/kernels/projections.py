"""Which projections the C++ products of a layer that is one operation can take."""

import torch
from torch import Tensor

MULTIPLE = 32
"""Every width that the C++ products meet must be a multiple of this: their blocks are 32 wide."""


def unfit_projections(enter: Tensor, leave: Tensor, dtype: torch.dtype) -> str | None:
    """Why the C++ products refuse a layer's two projections, to be multiplied in `dtype`; None if they do not."""
    if enter.dtype != leave.dtype:
        return f"its projections are in {enter.dtype} and {leave.dtype}"
    if enter.dtype != dtype and not torch.is_autocast_enabled("cpu"):  # a module would not multiply them
        return f"its projections are not in {dtype}, and autocast is off"
    return unfit_width(enter, leave)


def unfit_width(*weights: Tensor) -> str | None:
    """Why the C++ products refuse such projections, in words; None if they do not."""
    for width in (width for weight in weights for width in weight.shape):
        if width % MULTIPLE or not width:
            return f"width {width} of a projection is not a multiple of {MULTIPLE}"
    return None
