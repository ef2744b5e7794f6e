"""The noise level of measurements that nobody told, estimated by the network."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.measurements import Measurements, working_dtype
from deepinv_dmilo.posterior.posterior import Posterior

# All ours. Standard deviations of fresh noise that the network is shown, in [0, 1].
SIGMAS = (0.65, 0.2, 0.07, 0.02, 0.007)
HIDDEN = 0.5  # of the fresh noise, that noise in y is hidden by at most
WORTH_TRYING = 0.75  # of less fresh noise, that noise found with more may be for it to be tried
LEAST = 0.01  # of the residual variance, that is noise
LEAST_OF_FIRST = 0.01  # of the first estimate, that is left where a forward model is only guessed
ORDER = 8  # of differences that leave noise alone
MEDIAN = 0.6745  # of the modulus of a standard normal number


def with_noise_at(posterior: Posterior, x: Tensor, *, again: bool = False) -> Posterior:
    """
    The posterior with the noise level decided: simulated at images x, or estimated by the network where nobody told.

    :param torch.Tensor x: images near the solution, (n, C, H, W).
    :param bool again: estimate on a better image, on which the network errs less; an estimate may fall then.
    """
    likelihood = posterior.likelihood
    if not isinstance(likelihood, Gaussian):
        return posterior
    if likelihood.source != "estimated":
        return replace(posterior, likelihood=likelihood.simulated_at(x))
    variance = estimated_variance(posterior, x, index=2 * again)
    if again:
        variance = torch.minimum(variance, likelihood.variance)
    else:
        variance = torch.minimum(variance, likelihood.variance_bound)
        if posterior.nuisance is not None:  # a guess of A errs, too, and that is no noise
            variance = torch.minimum(variance, finest_variance(likelihood).clamp(min=LEAST_OF_FIRST * variance))
    return replace(posterior, likelihood=replace(likelihood, variance=variance))


def finest_variance(likelihood: Gaussian) -> Tensor:
    """
    The variance of the noise in a measurement, or more, (n,): that in the finest details of y, which is a picture.

    A blur leaves nothing of the image in differences of a high order along rows and columns, and of white noise its
    part: the median of their modulus is that of the noise, whatever the image and the blur. Infinite where y is no
    picture, (n, C, H, W), or has pixels that do not depend on the image. Ours, after Donoho and Johnstone (1994), who
    take wavelets.
    """
    y, fully_observed = likelihood.y, likelihood.of_images(likelihood.forward.fully_observed)
    if not isinstance(y, Tensor) or y.ndim != 4 or y.is_complex() or min(y.shape[2:]) <= 2 * ORDER:
        return torch.full_like(fully_observed, torch.inf, dtype=working_dtype(y))
    details = y.diff(n=ORDER, dim=2).diff(n=ORDER, dim=3).flatten(1).to(working_dtype(y))
    std = details.abs().median(1).values / (MEDIAN * math.comb(2 * ORDER, ORDER))
    return torch.where(fully_observed, std.square(), torch.inf)


def estimated_variance(posterior: Posterior, x: Tensor, *, index: int = 0, most: float = SIGMAS[0]) -> Tensor:
    r"""
    About the variance of the noise in a measurement, (n,).

    With fresh noise on the image so far, more than that of the measurements, the network gives an image :math:`x_1`
    that does not know the noise in y: :math:`\|A(x_1) - y\|^2` is that noise and the network's own error. How large
    the error is, is seen where the truth is known: of :math:`x_1` with fresh noise it makes :math:`x_2`, and errs by
    :math:`\|A(x_2) - A(x_1)\|^2`. The difference is the noise, if the fresh noise hides it; then less is
    tried, since the network errs less, and counts where it still hides what is found. Ten forward passes at most.

    :param torch.Tensor x: the images so far, (n, C, H, W).
    :param int index: of the fresh noise, two draws.
    :param float most: standard deviation of the first fresh noise, in [0, 1].
    """
    gain = posterior.likelihood.squared_norm
    fresh = [posterior.noise("noise level", index + k) for k in range(2)]
    found_at, rows = torch.full_like(gain, torch.inf), torch.arange(len(x), device=x.device)
    for sigma in (most, *(lower for lower in SIGMAS if lower < most)):
        rows = rows if sigma == most else rows[found_at[rows] < (WORTH_TRYING * sigma) ** 2 * gain[rows]]
        if not len(rows):
            break
        found = _at_level(posterior.select(rows), x[rows], [noise[rows] for noise in fresh], sigma)
        is_hidden = found < (HIDDEN * sigma) ** 2 * gain[rows]
        found_at[rows] = torch.where(is_hidden | (sigma == most), found, found_at[rows])
        rows = rows[is_hidden]
    return found_at


def _at_level(posterior: Posterior, x: Tensor, fresh: list[Tensor], sigma: float) -> Tensor:
    """What the network at one level of fresh noise leaves unexplained, less its own error, (n,)."""
    likelihood, level = posterior.likelihood, posterior.prior.level(2 * sigma)

    def denoised(x: Tensor, noise: Tensor) -> Tensor:
        return posterior.denoised(level.signal * posterior.prior.encode(x) + level.noise * noise, level)

    def variance(r: Measurements) -> Tensor:
        return likelihood.forward.observed_energy(r, likelihood.rows) / likelihood.observed

    once = denoised(x, fresh[0])
    twice = denoised(once, fresh[1])
    measured, again = (likelihood.forward(image, likelihood.rows) for image in (once, twice))
    rest = variance(measured - likelihood.y)
    return torch.maximum(rest - variance(again - measured), LEAST * rest)
