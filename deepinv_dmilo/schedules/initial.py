"""The first image of a schedule of levels: the prior's mean, taken to the measurements without the network."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood, NoiseModel
from deepinv_dmilo.likelihood.wiener import least_squares
from deepinv_dmilo.optim.descent import STANDSTILL, gradient_steps
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.utils.warning import warn

# What the network makes of pure noise at this level, near the mean of its images; from there regularised least
# squares, or so many Gauss-Newton steps where A is not linear; and gradient steps where that is not enough: ours.
START_NOISE, NEWTON_STEPS, START_STEPS = 10.0, 3, 10
# Noise of the noisiest measurement, in [0, 1], up to which a likelihood is about one of squares (25 photons); measured
# in docs/defaults.md.
EVEN_NOISE = 0.2
MARGIN = 0.5  # beyond [0, 1], that a start may have without a warning


def first_image(posterior: Posterior) -> tuple[Tensor, tuple[str, ...]]:
    """The first image of every row, (n, C, H, W), and in words how it was made."""
    if posterior.init is not None:
        _check_range(posterior.init)
        return posterior.init, ("init",)
    x, how = _prior_mean(posterior)
    likelihood, limits = posterior.likelihood, posterior.prior.limits
    squares = _squares(posterior, x)
    if squares is not None:
        x = _least_squares(squares, x, limits)
        how += ("least squares",)
        exact = likelihood.forward.is_linear and isinstance(likelihood, Gaussian) and likelihood.source != "estimated"
        if posterior.nuisance is not None or exact:
            return x, how
    return descend(likelihood, x, steps=START_STEPS, limits=limits), (*how, "gradient steps")


def by_first_image(posterior: Posterior) -> list[Posterior]:
    """The images whose likelihood is about one of squares, and those of noisier ones, which gradient steps are for."""
    likelihood = posterior.likelihood
    if not isinstance(likelihood, NoiseModel) or not likelihood.has_noise or posterior.init is not None:
        return [posterior]
    is_even = _is_even(posterior.first_samples)
    groups = [chosen.nonzero()[:, 0] for chosen in (is_even, ~is_even)]
    return [posterior.of_images(images) for images in groups if len(images)]


def _is_even(posterior: Posterior) -> Tensor:
    """Whether the noise of the noisiest measurement of a grey image is little enough for squares, (n,)."""
    likelihood = posterior.likelihood
    return likelihood.largest_variance(posterior.grey()) <= EVEN_NOISE**2 * likelihood.squared_norm


def _check_range(init: Tensor) -> None:
    low, high = init.min().item(), init.max().item()
    if low < -MARGIN or high > 1 + MARGIN:
        warn(
            f"init has values from {low:.3g} to {high:.3g}, and is an image in [0, 1]; pass init / 255, (init + 1) / 2 "
            "or init.clamp(0, 1), as the case may be"
        )


def _prior_mean(posterior: Posterior) -> tuple[Tensor, tuple[str, ...]]:
    """What the prior expects before any measurement."""
    a, b = posterior.prior.level(2 * START_NOISE), posterior.prior.levels(1)[-1]
    if a.sigma < START_NOISE / 4:  # the network knows no pure noise
        return posterior.grey(), ("mid-grey",)
    z = a.spread * posterior.noise("start")
    return posterior.images(posterior.in_parts(lambda prior, part: prior.step(part, a, b), z)), ("prior mean",)


def _squares(posterior: Posterior, x: Tensor) -> Gaussian | None:
    """The least squares that come first, if any."""
    likelihood = posterior.likelihood
    if isinstance(likelihood, Gaussian):
        # A guess of A explains nothing of y yet.
        return (
            likelihood.gaussian(likelihood.residual_variance(x)) if posterior.nuisance else likelihood.simulated_at(x)
        )
    has_squares = isinstance(likelihood, NoiseModel) and not likelihood.has_outliers
    if not has_squares or not likelihood.forward.is_linear:
        return None
    if posterior.nuisance is not None:
        return likelihood.gaussian(likelihood.residual_variance(x))
    return likelihood.gaussian(likelihood.largest_variance(x)) if _is_even(posterior).all() else None


def _least_squares(squares: Gaussian, x: Tensor, limits: tuple[float, float]) -> Tensor:
    """Regularised least squares around x; where A is not linear, a few times, as long as they lead nearer to y."""
    if squares.forward.is_linear:
        return least_squares(squares, x).clamp(*limits)
    for _ in range(NEWTON_STEPS):
        moved = least_squares(squares, x).clamp(*limits)
        nearer = squares.energy(moved) < squares.energy(x)  # not where it is no number
        if not nearer.any():
            break
        x = torch.where(nearer.view(-1, 1, 1, 1), moved, x)
    return x


def descend(likelihood: Likelihood, x: Tensor, *, steps: int, limits: tuple[float, float]) -> Tensor:
    """Gradient steps towards the measurements, of a size by ``||A||^2`` where it is known, or found by backtracking."""
    size = None
    if isinstance(likelihood, Gaussian) and likelihood.forward.is_known_linear:
        size = likelihood.variance / likelihood.squared_norm
    return gradient_steps(x, likelihood, steps=steps, size=size, standstill=STANDSTILL, limits=limits)
