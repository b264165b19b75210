"""Bayesian regression over a grid of hypotheses: exact, without iterations, and at home where there are fewer runs than unknowns.

A hypothesis fixes what enters a law in a non-linear way (a floor of the loss, a constant part of a step's time); given it,
the law is linear in its coefficients, whose posterior under normal priors and noise of a known spread is normal and
in closed form. Spreads of the noise form a second grid. Every pair of hypothesis and spread is weighted by its prior
and by the density it gives to what was measured, so that nothing is estimated and then taken for certain: a prediction
is a mixture over all of them. With no measurement at all it is the prior's.

Legend: G hypotheses, H spreads of the noise, N measurements, K coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a fifth of a second, which only those who predict pay
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """What is believed before any measurement."""

    mean_GK: Array
    """Of the coefficients."""
    spread_GK: Array
    """Standard deviations of the coefficients, independent of one another."""
    weight_G: Array
    """Of the hypotheses; any scale."""
    noise_H: Array
    """Standard deviations of a measurement."""
    weight_H: Array
    """Of those; any scale."""


@dataclass(frozen=True)
class Draws:
    """Values drawn from a posterior, one row per draw."""

    hypothesis: NDArray[np.int64]
    coefficients: Array
    noise: Array
    """A draw of the noise of one new measurement."""


@dataclass(frozen=True)
class Posterior:
    """What is believed after the measurements: a weighted set of normal distributions."""

    weight_GH: Array
    mean_GHK: Array
    root_GHKK: Array
    """Lower Cholesky factors of the coefficients' covariances."""
    noise_H: Array

    def draw(self, count: int, seed: int) -> Draws:
        """`count` independent draws; the same seed draws the same."""
        import numpy as np

        random = np.random.default_rng(seed)
        H, K = len(self.noise_H), self.mean_GHK.shape[2]
        g, h = np.divmod(random.choice(self.weight_GH.size, size=count, p=self.weight_GH.ravel()), H)
        unit = random.standard_normal((count, K))
        coefficients = self.mean_GHK[g, h] + np.einsum("nij,nj->ni", self.root_GHKK[g, h], unit)
        return Draws(g, coefficients, self.noise_H[h] * random.standard_normal(count))


def fit(x_GNK: Array, y_GN: Array, variance_N: Array, prior: Prior) -> Posterior:
    """The posterior after N measurements, which may be none.

    Args:
        x_GNK: what each coefficient is multiplied with, under each hypothesis.
        y_GN: what was measured, under each hypothesis. All hypotheses must describe densities of the same quantity:
            scale rows so that a step in `y` means the same under each.
        variance_N: of each measurement's noise, as a multiple of the spread's square.
    """
    import numpy as np

    G, N, K = x_GNK.shape
    noise_GH11 = prior.noise_H[None, :, None, None] ** 2
    precision_G1KK = np.eye(K) / prior.spread_GK[:, None, :, None] ** 2
    weighted = x_GNK / variance_N[:, None]
    xx_GKK, xy_GK = np.einsum("gnk,gnl->gkl", weighted, x_GNK), np.einsum("gnk,gn->gk", weighted, y_GN)
    yy_G = (y_GN**2 / variance_N).sum(axis=1)
    after_GHKK = precision_G1KK + xx_GKK[:, None] / noise_GH11
    start_GK = prior.mean_GK / prior.spread_GK**2
    pull_GHK = start_GK[:, None] + xy_GK[:, None] / noise_GH11[..., 0]
    mean_GHK = np.linalg.solve(after_GHKK, pull_GHK[..., None])[..., 0]
    # log density of the measurements: the integral over the coefficients in closed form, constants left out
    fit_GH = yy_G[:, None] / noise_GH11[..., 0, 0] + (prior.mean_GK * start_GK).sum(1)[:, None]
    fit_GH = fit_GH - (mean_GHK * pull_GHK).sum(2)
    sizes = np.linalg.slogdet(after_GHKK)[1] + 2 * np.log(prior.spread_GK).sum(1)[:, None]
    log_GH = -0.5 * (fit_GH + sizes) - N * np.log(prior.noise_H) + np.log(prior.weight_H)
    log_GH = log_GH + np.log(prior.weight_G)[:, None]
    weight_GH = np.exp(log_GH - log_GH.max())
    root_GHKK = np.linalg.cholesky(np.linalg.inv(after_GHKK))
    assert np.isfinite(weight_GH).all() and mean_GHK.shape == (G, len(prior.noise_H), K)
    return Posterior(weight_GH / weight_GH.sum(), mean_GHK, root_GHKK, prior.noise_H)


def bell(values: Array, centre: float, spread: float) -> Array:
    """Weights of grid points that are normal in the logarithm: `spread` 0.7 means within a factor of 2, two times in three."""
    import numpy as np

    return np.exp(-0.5 * (np.log(values / centre) / spread) ** 2)
