"""The first image of a schedule of levels: the prior's mean, taken to the measurements without the network."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood
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


class FirstImage(NamedTuple):
    """Where a group of images starts."""

    posterior: Posterior
    x: Tensor  # (n, C, H, W)
    how: tuple[str, ...]  # it was made, in words


def first_images(posterior: Posterior) -> list[FirstImage]:
    """The first image of every row; images whose noise is too large for least squares are a group of their own."""
    if posterior.init is not None:
        _check_range(posterior.init)
        return [FirstImage(posterior, posterior.init, ("init",))]
    x, how = _prior_mean(posterior)
    if isinstance(posterior.likelihood, Gaussian):
        posterior = replace(posterior, likelihood=posterior.likelihood.simulated_at(x))
    by_squares = _by_squares(posterior, x)
    found = []
    for images in (by_squares.nonzero()[:, 0], (~by_squares).nonzero()[:, 0]):
        if len(images):
            group, first = posterior.of_images(images), x.view(posterior.num_samples, -1, *x.shape[1:])[:, images]
            start = FirstImage(group, first.flatten(0, 1), how)
            found.append(_from_squares(start) if by_squares[images[0]] else _from_steps(start))
    return found


def _by_squares(posterior: Posterior, x: Tensor) -> Tensor:
    """Whether least squares come first, for each image."""
    likelihood = posterior.likelihood
    yes = torch.ones(len(posterior) // posterior.num_samples, dtype=torch.bool, device=x.device)
    if likelihood.is_gaussian:
        return yes
    if not likelihood.has_noise or not likelihood.forward.is_linear:
        return ~yes
    if posterior.nuisance is not None:
        return yes
    is_even = likelihood.largest_variance(x) <= EVEN_NOISE**2 * likelihood.squared_norm
    return is_even.view(posterior.num_samples, -1).all(0)


def _from_squares(start: FirstImage) -> FirstImage:
    """Least squares, and gradient steps where they are not exact."""
    posterior, x, how = start
    likelihood, is_blind = posterior.likelihood, posterior.nuisance is not None
    # A guess of A explains nothing of y yet.
    variance = likelihood.residual_variance(x) if is_blind else likelihood.largest_variance(x)
    moved = FirstImage(
        posterior, _least_squares(likelihood.gaussian(variance), x, posterior.prior.limits), (*how, "least squares")
    )
    is_known = isinstance(likelihood, Gaussian) and likelihood.source != "estimated"
    return moved if is_blind or (is_known and likelihood.forward.is_linear) else _from_steps(moved)


def _from_steps(start: FirstImage) -> FirstImage:
    posterior, x, how = start
    x = descend(posterior.likelihood, x, steps=START_STEPS, limits=posterior.prior.limits)
    return FirstImage(posterior, x, (*how, "gradient steps"))


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
