"""Inverse of many small unit lower triangular matrices by matrix products alone.

On CPU as fast as `torch.linalg.solve_triangular` for 32 rows and a third faster for 64, and twice as accurate on the
hard case (nearly equal keys, beta near 2). Legend: M matrices, C rows.
"""

import torch
from torch import Tensor

_BASE = 4
"""Rows of the blocks inverted by their power series, which ends there: A^4 = 0 for strictly lower A. With 8 the terms of the
series cancel, and the rule's error on the hard case is ten times larger."""


def unit_lower_inverse(A_MCC: Tensor) -> Tensor:
    """(I + A)^-1 for strictly lower triangular A; C is a power of two from 4.

    Diagonal blocks of 4 rows: (I - A)(I + A^2). Then pairs of blocks join until one is left:
    [[X, 0], [Y, Z]]^-1 = [[X^-1, 0], [-Z^-1 Y X^-1, Z^-1]].
    """
    M, C, _ = A_MCC.shape
    inverse = _power_series(_blocks(A_MCC, _BASE, row=0, column=0, step=_BASE))
    size = _BASE
    while size < C:
        below = _blocks(A_MCC, size, row=size, column=0, step=2 * size)
        pairs = inverse.view(len(below), 2, size, size)
        joined = A_MCC.new_zeros(len(below), 2 * size, 2 * size)
        joined[:, :size, :size] = pairs[:, 0]
        joined[:, size:, size:] = pairs[:, 1]
        joined[:, size:, :size] = torch.bmm(torch.bmm(pairs[:, 1], below), pairs[:, 0]).neg_()
        inverse, size = joined, 2 * size
    return inverse.view(M, C, C)


def _power_series(A: Tensor) -> Tensor:
    """Inverse of I + A for strictly lower blocks of `_BASE` rows."""
    inverse, power, order = torch.eye(_BASE, dtype=A.dtype, device=A.device) - A, A, 1
    while 2 * order < _BASE:
        power = torch.bmm(power, power)
        inverse, order = inverse + torch.bmm(inverse, power), 2 * order
    return inverse


def _blocks(A_MCC: Tensor, size: int, *, row: int, column: int, step: int) -> Tensor:
    """Square blocks at (row, column), (row + step, column + step), ... of every matrix, [M * C / step, size, size]."""
    M, C, _ = A_MCC.shape
    tiles = A_MCC.view(M, C // step, step, C // step, step)[:, :, row : row + size, :, column : column + size]
    return tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, size, size)
