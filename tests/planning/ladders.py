"""Ladders of stages whose law of loss is known, to see how often an interval contains what comes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from superblock.planning.scaling import DRAWS, LossLaw, LossPoint

ACTIVE = (2.2e6, 4.6e6, 8.2e6, 15.3e6)
TOKENS = (3.9e6, 2.7e6, 2.3e6, 2.25e6)
LEVEL = 1.4


@dataclass(frozen=True)
class Truth:
    """L = E + A N^-n D^-d, where a run's D holds a share of its parent's."""

    floor: float
    by_size: float
    by_tokens: float
    kept: float

    def loss(self, active: float, lineage: tuple[float, ...]) -> float:
        tokens = 0.0
        for own in lineage:
            tokens = self.kept * tokens + own
        factor = (active / ACTIVE[0]) ** -self.by_size * (tokens / TOKENS[0]) ** -self.by_tokens
        return self.floor + (LEVEL - self.floor) * factor


def from_prior(random: np.random.Generator) -> Truth:
    """A law as likely as it is believed to be before any run."""
    share = float(random.choice([0.1, 0.2, 0.3, 0.4, 0.5], p=[0.15, 0.23, 0.24, 0.23, 0.15]))
    above, kept = 1 - share, math.exp(random.normal(math.log(0.7), 0.7))
    return Truth(share * LEVEL, random.normal(0.02, 0.05) / above, random.normal(0.22, 0.07) / above, kept)


def ladder(truth: Truth, stages: int, noise: float, random: np.random.Generator, *, grown: bool) -> list[LossPoint]:
    """The first stages, each from scratch or grown from the one before."""
    points = []
    for i in range(stages):
        lineage = TOKENS[: i + 1] if grown else TOKENS[i : i + 1]
        loss = truth.loss(ACTIVE[i], lineage) * math.exp(noise * random.standard_normal())
        points.append(LossPoint(ACTIVE[i], lineage, loss))
    return points


def interval(known: list[LossPoint], new: LossPoint) -> tuple[float, float]:
    """The 80 % interval of a run's loss from the runs before it."""
    own = np.full(DRAWS, new.lineage_tokens[-1])
    draws = LossLaw(known).predict(new.active, new.lineage_tokens[:-1], own)
    low, high = np.quantile(draws, [0.1, 0.9])
    return float(low), float(high)


def coverage(
    truth: Callable[[np.random.Generator], Truth], stages: int, noise: float, *, grown: bool, ladders: int = 120
) -> tuple[float, float]:
    """Share of ladders whose next stage lies inside the interval, and the mean width of the intervals."""
    random = np.random.default_rng(stages)
    inside, widths = 0, []
    for _ in range(ladders):
        *known, new = ladder(truth(random), stages + 1, noise, random, grown=grown)
        low, high = interval(known, new)
        inside += low <= new.loss <= high
        widths.append(high - low)
    return inside / ladders, float(np.mean(widths))
