"""The first image of a schedule of levels: the prior mean, fitted to the measurements without the network."""

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

# Noise level at which the denoised pure noise is about the prior mean; Gauss-Newton steps for nonlinear A; gradient
# steps where least squares are not exact: ours.
START_NOISE, NEWTON_STEPS, START_STEPS = 10.0, 3, 10
# Noise of the noisiest measurement, in [0, 1], up to which other likelihoods are approximated by a Gaussian (25
# photons); measured in docs/lab-book/levels.md.
MOST_NOISE_FOR_SQUARES = 0.2
MARGIN = 0.5  # by which an init may exceed [0, 1] without a warning


class FirstImage(NamedTuple):
    """The first images of a group."""

    posterior: Posterior
    x: Tensor  # (n, C, H, W)
    how: tuple[str, ...]  # they were made, for printing


def first_images(posterior: Posterior) -> list[FirstImage]:
    """The first image of every row; images that are too noisy for least squares form a separate group."""
    if posterior.init is not None:
        _check_range(posterior.init)
        return [FirstImage(posterior, posterior.init, ("init",))]
    x, how = _prior_mean(posterior)
    posterior = replace(posterior, likelihood=posterior.likelihood.simulated_at(x))
    by_squares = _by_squares(posterior, x)
    found = []
    for start, images in ((_from_squares, by_squares), (_from_steps, ~by_squares)):
        if images.any():
            rows = posterior.rows_of(images.nonzero()[:, 0])
            found.append(start(FirstImage(posterior.select(rows), x[rows], how)))
    return found


def _by_squares(posterior: Posterior, x: Tensor) -> Tensor:
    """Whether each image starts from least squares."""
    likelihood = posterior.likelihood
    yes = torch.ones(len(posterior) // posterior.num_samples, dtype=torch.bool, device=x.device)
    if likelihood.is_gaussian:
        return yes
    if not likelihood.has_noise or not likelihood.forward.is_linear:
        return ~yes
    if posterior.nuisance is not None:
        return yes
    is_even = likelihood.largest_variance(x) <= MOST_NOISE_FOR_SQUARES**2 * likelihood.squared_norm
    return is_even.view(posterior.num_samples, -1).all(0)


def _from_squares(start: FirstImage) -> FirstImage:
    """Least squares, and gradient steps where they are not exact."""
    posterior, x, how = start
    likelihood, is_blind = posterior.likelihood, posterior.nuisance is not None
    # The residual of a first guess of A counts as noise.
    variance = likelihood.residual_variance(x) if is_blind else likelihood.largest_variance(x)
    x = _least_squares(likelihood.gaussian(variance), x, posterior.prior.limits)
    solved = FirstImage(posterior, x, (*how, "least squares"))
    is_known = likelihood.source in ("given", "simulated")
    return solved if is_blind or (is_known and likelihood.forward.is_linear) else _from_steps(solved)


def _from_steps(start: FirstImage) -> FirstImage:
    posterior, x, how = start
    x = descend_likelihood(posterior.likelihood, x, steps=START_STEPS, limits=posterior.prior.limits)
    return FirstImage(posterior, x, (*how, "gradient steps"))


def _check_range(init: Tensor) -> None:
    low, high = init.min().item(), init.max().item()
    if low < -MARGIN or high > 1 + MARGIN:
        warn(
            f"init has values from {low:.3g} to {high:.3g}, and is an image in [0, 1]; pass init / 255, (init + 1) / 2 "
            "or init.clamp(0, 1)"
        )


def _prior_mean(posterior: Posterior) -> tuple[Tensor, tuple[str, ...]]:
    """The prior mean, and how it was made."""
    a, b = posterior.prior.level(2 * START_NOISE), posterior.prior.levels(1)[-1]
    if a.sigma < START_NOISE / 4:  # the noise levels of the network end below pure noise
        return posterior.grey(), ("mid-grey",)
    z = a.spread * posterior.noise("start")
    return posterior.images(posterior.in_parts(lambda prior, part: prior.step(part, a, b), z)), ("prior mean",)


def _least_squares(squares: Gaussian, x: Tensor, limits: tuple[float, float]) -> Tensor:
    """Regularised least squares around x; for nonlinear A a few Gauss-Newton steps while the residual falls."""
    if squares.forward.is_linear:
        return least_squares(squares, x).clamp(*limits)
    for _ in range(NEWTON_STEPS):
        moved = least_squares(squares, x).clamp(*limits)
        nearer = squares.energy(moved) < squares.energy(x)  # False for NaN
        if not nearer.any():
            break
        x = torch.where(nearer.view(-1, 1, 1, 1), moved, x)
    return x


def descend_likelihood(likelihood: Likelihood, x: Tensor, *, steps: int, limits: tuple[float, float]) -> Tensor:
    """Gradient steps on a likelihood, with the step size ``1 / L`` where it is known, else by backtracking."""
    size = None
    if isinstance(likelihood, Gaussian) and likelihood.forward.is_known_linear:
        size = likelihood.variance / likelihood.squared_norm
    return gradient_steps(x, likelihood, steps=steps, size=size, standstill=STANDSTILL, limits=limits)
