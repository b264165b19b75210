"""The regression beside closed forms and brute force."""

import numpy as np
import pytest

from superblock.planning.regression import Posterior, Prior, bell, fit


def line(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of y = 2 - 0.5 x with noise."""
    random = np.random.default_rng(seed)
    x = np.stack([np.ones(n), np.linspace(-1, 1, n)], axis=1)
    return x, x @ [2.0, -0.5] + noise * random.standard_normal(n)


def prior(noise: list[float], weights: list[float], groups: int = 1) -> Prior:
    ones = np.ones((groups, 2))
    return Prior(0 * ones, 3 * ones, np.ones(groups), np.array(noise), np.array(weights))


def test_it_agrees_with_least_squares_where_there_is_much_to_see() -> None:
    x, y = line(400, 0.1)
    posterior = fit(x[None], y[None], np.ones(400), prior([0.1], [1.0]))
    squares, *_ = np.linalg.lstsq(x, y, rcond=None)
    assert posterior.mean_GHK[0, 0] == pytest.approx(squares, abs=1e-4)
    spread = np.linalg.cholesky(0.01 * np.linalg.inv(x.T @ x))
    assert posterior.root_GHKK[0, 0] == pytest.approx(spread, rel=1e-3, abs=1e-6)


def test_without_measurements_it_is_the_prior() -> None:
    posterior = fit(np.zeros((1, 0, 2)), np.zeros((1, 0)), np.zeros(0), prior([0.1, 0.2], [1.0, 3.0]))
    assert posterior.weight_GH == pytest.approx(np.array([[0.25, 0.75]]))
    draws = posterior.draw(20_000, seed=0)
    assert draws.coefficients.std(axis=0) == pytest.approx([3, 3], rel=0.03)
    assert draws.noise.std() == pytest.approx((0.25 * 0.1**2 + 0.75 * 0.2**2) ** 0.5, rel=0.03)


def test_the_weights_are_the_densities_of_what_was_measured() -> None:
    """Against the density of the joint normal distribution that prior and noise make together."""
    x, y = line(5, 0.3)
    believed = prior([0.1, 0.3, 1.0], [1.0, 1.0, 2.0])
    posterior = fit(x[None], y[None], np.array([1, 1, 2, 1, 4.0]), believed)
    logs = []
    for noise, weight in zip(believed.noise_H, believed.weight_H, strict=True):
        covariance = noise**2 * np.diag([1, 1, 2, 1, 4.0]) + 9 * x @ x.T
        logs.append(np.log(weight) - 0.5 * (np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y)))
    expected = np.exp(np.array(logs) - max(logs))
    assert posterior.weight_GH[0] == pytest.approx(expected / expected.sum(), rel=1e-9)


def test_noise_and_hypothesis_are_found() -> None:
    x, y = line(200, 0.3)
    other = x.copy()
    other[:, 1] = np.abs(x[:, 1])  # a hypothesis under which the points lie on no line
    posterior = fit(
        np.stack([other, x]), np.stack([y, y]), np.ones(200), prior([0.03, 0.1, 0.3, 1.0], [1.0] * 4, groups=2)
    )
    assert np.unravel_index(posterior.weight_GH.argmax(), posterior.weight_GH.shape) == (1, 2)
    assert posterior.weight_GH[1, 2] > 0.99


def test_draws_repeat_with_their_seed() -> None:
    x, y = line(4, 0.3)
    posterior: Posterior = fit(x[None], y[None], np.ones(4), prior([0.1, 0.3], [1.0, 1.0]))
    assert np.array_equal(posterior.draw(10, 3).coefficients, posterior.draw(10, 3).coefficients)
    assert not np.array_equal(posterior.draw(10, 3).coefficients, posterior.draw(10, 4).coefficients)


def test_bell_falls_alike_to_both_sides_of_its_centre_in_factors() -> None:
    weights = bell(np.array([0.5, 1.0, 2.0]), 1.0, np.log(2))
    assert weights == pytest.approx([np.exp(-0.5), 1, np.exp(-0.5)])
