"""Rotary position embedding (arXiv 2104.09864) on the first dimensions of a head.

Legend: B sequences, T tokens, H heads, K head width, R rotated dimensions.
"""

import torch
from torch import Tensor


def rotary(x_BTHK: Tensor, position_ids_BT: Tensor, *, fraction: float, theta: float) -> Tensor:
    """Rotate the first R = fraction * K dimensions of each head, in pairs (i, i + R/2), by position * theta^(-2i/R).

    Angles, sines and products are fp32 (a bf16 position is off by whole tokens from 256 on); the dtype of `x` comes out.
    """
    rotated = round(fraction * x_BTHK.shape[-1])
    if rotated == 0:
        return x_BTHK
    cos_BT1R, sin_BT1R = angles(position_ids_BT, rotated, theta)
    dtype = torch.promote_types(x_BTHK.dtype, torch.float32)
    first, second = x_BTHK[..., :rotated].to(dtype).chunk(2, dim=-1)
    turned = torch.cat([first * cos_BT1R - second * sin_BT1R, second * cos_BT1R + first * sin_BT1R], dim=-1).to(
        x_BTHK.dtype
    )
    return torch.cat([turned, x_BTHK[..., rotated:]], dim=-1) if rotated < x_BTHK.shape[-1] else turned


def angles(position_ids_BT: Tensor, rotated: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, fp32 [B, T, 1, R/2]."""
    angle = position_ids_BT[..., None, None].to(torch.float32) * frequencies(rotated, theta, position_ids_BT.device)
    return angle.cos(), angle.sin()


def frequencies(rotated: int, theta: float, device: torch.device | str = "cpu") -> Tensor:
    """Radians per position of each pair, fp32 [R/2]."""
    exponent_R = torch.arange(0, rotated, 2, device=device, dtype=torch.float32) / rotated
    return 1.0 / theta**exponent_R
