"""The laws that finished runs are extrapolated by, and what is believed about them before there is a run.

**Loss.** L = E + A N^-n D^-d with N active parameters and D tokens. With n = d this is E + A C^-n, the power law
against compute C = 6 N D; kept apart, it can also say that a deeper model with fewer tokens is worse, which short
trainings show. A grown run has seen fewer tokens than its lineage: D is its own tokens plus a share h of its parent's D.
Unknown are E, h (a grid), A, n, d (in closed form) and the spread of runs about the law. Validation losses within a run
inform d as well: they lie above a run that ended there by as much as the learning rate has not decayed yet (a further
coefficient), and count as two measurements per run, for they are one run's.

Priors, as elasticities of the whole loss where runs lie (percent of loss per percent of size or tokens):
  tokens      0.22 +- 0.07: Hoffmann et al. (arXiv 2203.15556, exponent 0.28) and the fit of their data by Besiroglu et al.
              (arXiv 2404.10102, exponent 0.37), whose term of the tokens makes up 0.6 of the loss at 2 tokens per parameter;
              0.16 to 0.19 within our own first runs (reports/records/2026-11-21-first-runs.json)
  parameters  0.02 +- 0.05: the same sources say 0.08 with tokens in plenty; our deep models after some hundred steps
              (reports/records/2026-11-21-mini-sweep.json, `deep`) gain nothing by depth
  E           0 to 0.7 of the lowest loss seen, most likely 0.2 to 0.5
  h           0.7, within a factor of 2: above 0.3 where a grown model continues its parent's loss; growth by stacking
              has saved about half of the training (arXiv 2405.15319)
  spread      2 % within a factor of 2; seeds alone differ by 0.1 to 0.5 %

**Time, memory.** Seconds per step = b (F + f) with F the step's model FLOPs; minutes beside training the same with the
FLOPs of a token, since evaluation has a fixed number of tokens; bytes = b (m + 16 parameters + c superblocks x tokens x
width). The constant parts f, m and c are a grid, b is in closed form, spreads are relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from superblock.models.formulas import TRAINING_BYTES
from superblock.planning.regression import Posterior, Prior, bell, fit

if TYPE_CHECKING:
    from superblock.planning.regression import Array

DRAWS = 8000
"""The tenth percentile of that many draws is off by 2 % of the spread."""
TOKENS, PARAMETERS, RATE = (0.22, 0.07), (0.02, 0.05), (0.03, 0.03)
"""Mean and spread of the elasticities, and of the loss that a learning rate at its peak adds."""
CURVE_WORTH = 2.0
"""Measurements that the validation losses of one run count as, each with twice a run's spread."""


@dataclass(frozen=True)
class LossPoint:
    """One configuration that was trained."""

    active: float
    """Parameters a token meets."""
    lineage_tokens: tuple[float, ...]
    """Of the run last, of those it came from before it."""
    loss: float
    """Bits per byte on the test split."""
    curve: tuple[tuple[float, float, float], ...] = ()
    """Earlier validations: share of the training, loss as a multiple of the last one, share of the peak learning rate."""


class LossLaw:
    """The posterior of the law of loss, given at least one point."""

    def __init__(self, points: Sequence[LossPoint]) -> None:
        import numpy as np

        assert points
        shares, kept = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), np.geomspace(0.12, 4.0, 8)
        share_G, self._kept_G = (grid.ravel() for grid in np.meshgrid(shares, kept, indexing="ij"))
        self._floor_G = share_G * min(point.loss for point in points)
        self._active = float(np.exp(np.mean([np.log(point.active) for point in points])))
        self._tokens_G = np.exp(np.mean([np.log(self.effective(p.lineage_tokens)) for p in points], axis=0))
        level = float(np.mean([np.log(point.loss) for point in points]))
        rows = [self._row(point, level) for point in points]
        rows += [row for point in points for row in self._curve_rows(point)]
        x, y, variance = (np.stack([row[i] for row in rows]) for i in range(3))
        G = len(share_G)
        scale_G1 = 1 / (1 - share_G[:, None])  # an elasticity of the whole loss is larger for what lies above the floor
        mean_K, spread_K = (
            np.array([first, *[pair[i] for pair in (PARAMETERS, TOKENS, RATE)]]) for i, first in enumerate((0.0, 0.5))
        )
        spreads = np.geomspace(0.004, 0.09, 8)
        prior = Prior(
            mean_K * scale_G1,
            spread_K * scale_G1,
            np.repeat([0.5, 1, 1.5, 1.5, 1.5, 1, 0.5, 0.25], len(kept)) * bell(self._kept_G, 0.7, 0.7),
            spreads,
            bell(spreads, 0.02, 0.7),
        )
        assert prior.weight_G.shape == (G,)
        self._level = level
        self.posterior: Posterior = fit(x.transpose(1, 0, 2), y.T, variance, prior)

    def effective(self, lineage_tokens: Sequence[float], own: float | Array | None = None) -> Array:
        """Tokens [G] that count, with `own` in place of the run's own."""
        total = 0.0 * self._kept_G
        for tokens in lineage_tokens[:-1]:
            total = self._kept_G * (total + tokens)
        return total + (lineage_tokens[-1] if own is None else own)

    def _row(self, point: LossPoint, level: float) -> tuple[Array, Array, float]:
        """A run's loss above the floor, in logarithms; scaled so that a step of `y` is a share of the whole loss."""
        import numpy as np

        above_G = point.loss - self._floor_G
        size = np.log(point.active / self._active)
        tokens_G = np.log(self.effective(point.lineage_tokens) / self._tokens_G)
        x_GK = np.stack([np.ones_like(above_G), -size * np.ones_like(above_G), -tokens_G, 0 * above_G], axis=1)
        scale_G = above_G / point.loss
        return x_GK * scale_G[:, None], (np.log(above_G) - self._start_G(level)) * scale_G, 1.0

    def _curve_rows(self, point: LossPoint) -> list[tuple[Array, Array, float]]:
        """How far the loss lay above the run's last one: no matter of its level or size."""
        import numpy as np

        rows = []
        for share, ratio, rate in point.curve:
            above_G = point.loss * ratio - self._floor_G
            tokens_G = np.log(
                self.effective(point.lineage_tokens, share * point.lineage_tokens[-1])
                / self.effective(point.lineage_tokens)
            )
            zero = np.zeros_like(above_G)
            x_GK = np.stack([zero, zero, -tokens_G, zero + rate], axis=1)
            scale_G = above_G / (point.loss * ratio)
            y_G = np.log(above_G / (point.loss - self._floor_G))
            rows.append((x_GK * scale_G[:, None], y_G * scale_G, 4 * max(1.0, len(point.curve) / CURVE_WORTH)))
        return rows

    def _start_G(self, level: float) -> Array:
        import numpy as np

        return np.log(np.exp(level) - self._floor_G)

    def predict(self, active: float, parents_tokens: Sequence[float], own_tokens: Array, seed: int = 0) -> Array:
        """Draws of the loss of a new run, one for each draw of its own tokens."""
        import numpy as np

        draws = self.posterior.draw(len(own_tokens), seed)
        g = draws.hypothesis
        total = np.zeros(len(own_tokens))
        for tokens in parents_tokens:
            total = self._kept_G[g] * (total + tokens)
        level, by_size, by_tokens, _ = draws.coefficients.T
        above = self._start_G(self._level)[g] + level - by_size * np.log(active / self._active)
        above -= by_tokens * np.log((total + own_tokens) / self._tokens_G[g])
        loss = self._floor_G[g] + np.exp(above)
        result: Array = loss * np.exp(draws.noise)
        return result


def proportional(
    sizes: Sequence[float], measured: Sequence[float], size: float, *, noise: float, offsets: Sequence[float], seed: int
) -> Array:
    """Draws of a quantity b (size + offset) at a new size, given some measurements at others.

    Args:
        noise: the relative spread that is likely, within a factor of 2.
        offsets: that are possible, as multiples of the measured sizes' mean; all are equally likely at first.
    """
    import numpy as np

    reference = float(np.mean(sizes))
    offset_G = np.array(offsets) * reference
    return _level(np.array(sizes) + offset_G[:, None], measured, size + offset_G, noise, np.ones(len(offset_G)), seed)


def memory(
    models: Sequence[tuple[float, float]], measured: Sequence[float], model: tuple[float, float], seed: int
) -> Array:
    """Draws of a process's peak in bytes.

    Args:
        models: parameters, and superblocks x tokens of a micro-batch x width, of what was measured.
        model: the same of the new one.
    """
    import numpy as np

    base, each = (grid.ravel() for grid in np.meshgrid([0.25e9, 0.4e9, 0.6e9, 0.8e9, 1.1e9], [20, 45, 100, 200, 400]))
    shape_GN = np.stack([base + TRAINING_BYTES * p + each * a for p, a in models], axis=1)
    shape_G = base + TRAINING_BYTES * model[0] + each * model[1]
    return _level(shape_GN, measured, shape_G, 0.03, bell(each, 90.0, 1.0), seed, level_spread=0.3)


def ratio(measured: Sequence[float], *, mean: float, spread: float, seed: int) -> Array:
    """Draws of a factor that lies near `mean` and was measured some times."""
    import numpy as np

    ones = np.full((1, len(measured)), mean)
    return _level(ones, measured, np.full(1, mean), spread, np.ones(1), seed, level_spread=spread)


def _level(
    shape_GN: Array, measured: Sequence[float], shape_G: Array, noise: float, weight_G: Array, seed: int,
    level_spread: float = 5.0,
) -> Array:  # fmt: skip
    """Draws of shape x b for a new shape, where b is about 1 if its prior is narrow."""
    import numpy as np

    G, N = shape_GN.shape
    y_GN = np.log(np.array(measured, dtype=float)) - np.log(shape_GN) if N else np.zeros((G, 0))
    centre = float(y_GN.mean()) if N and level_spread > 1 else 0.0
    spreads = noise * np.geomspace(0.25, 4, 7)
    prior = Prior(
        np.full((G, 1), 0.0), np.full((G, 1), level_spread), weight_G, spreads, bell(spreads, noise, 0.7)
    )  # fmt: skip
    posterior = fit(np.ones((G, N, 1)), y_GN - centre, np.ones(N), prior)
    draws = posterior.draw(DRAWS, seed)
    result: Array = shape_G[draws.hypothesis] * np.exp(centre + draws.coefficients[:, 0] + draws.noise)
    return result
