"""Which projections the C++ products of a layer that is one operation can take."""

import torch
from torch import Tensor

_MULTIPLE = 32


def multiplies(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a module would multiply this weight in `dtype`: only autocast makes it another than its own."""
    return weight.dtype == dtype or torch.is_autocast_enabled("cpu")


def unfit_width(*weights: Tensor) -> str | None:
    """Why the C++ products refuse such projections, in words; None if they do not."""
    for width in (width for weight in weights for width in weight.shape):
        if width % _MULTIPLE or not width:
            return f"width {width} of a projection is not a multiple of {_MULTIPLE}"
    return None
