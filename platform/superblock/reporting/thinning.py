"""Long histories cut down to what a picture shows."""

import math
from collections.abc import Sequence

from superblock.reporting.facts import Series

MOST = 240
"""Points that are kept of a history."""


def chosen(count: int, most: int = MOST) -> Sequence[int]:
    """Which of `count` points are kept: evenly many, the first and the last among them."""
    if count <= most:
        return range(count)
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def thin(points: Sequence[tuple[int, float]]) -> Series:
    """A history in order of step, without values that are not finite."""
    kept = [points[i] for i in chosen(len(points)) if math.isfinite(points[i][1])]
    return Series(tuple(step for step, _ in kept), tuple(value for _, value in kept))
