"""The noise level of measurements where it is not given: estimated by the network."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import EstimatedGaussian, Gaussian
from deepinv_dmilo.likelihood.measurements import Measurements, working_dtype
from deepinv_dmilo.posterior.posterior import Posterior

# All ours. Standard deviations, in [0, 1], of the fresh noise that the network removes.
SIGMAS = (0.65, 0.2, 0.07, 0.02, 0.007)
HIDDEN = 0.5  # fresh noise hides noise in y of up to this fraction of its standard deviation
WORTH_TRYING = 0.75  # the next lower level is tried if the noise found is below this fraction of it
LEAST = 0.01  # least fraction of the residual variance that counts as noise
LEAST_OF_FIRST = 0.01  # least fraction of the first estimate that is kept in blind problems
ORDER = 8  # of the differences of y, in which only noise is left
MEDIAN = 0.6745  # of the absolute value of a standard normal number


def with_noise_at(posterior: Posterior, x: Tensor, *, again: bool = False) -> Posterior:
    """
    The posterior with the noise level decided: simulated at images x, or estimated where it is not given.

    :param torch.Tensor x: images in [0, 1] near the solution, (n, C, H, W).
    :param bool again: estimate again on a better image, with a smaller error of the network; it can only fall.
    """
    likelihood = posterior.likelihood
    if not isinstance(likelihood, EstimatedGaussian):
        return replace(posterior, likelihood=likelihood.simulated_at(x))
    variance = estimated_variance(posterior, x, index=2 * again)
    variance = torch.minimum(variance, likelihood.variance if again else likelihood.variance_bound)
    if not again and posterior.nuisance is not None:  # the error of the first guess of A is not noise
        variance = torch.minimum(variance, finest_variance(likelihood).clamp(min=LEAST_OF_FIRST * variance))
    return replace(posterior, likelihood=replace(likelihood, variance=variance))


def finest_variance(likelihood: Gaussian) -> Tensor:
    """
    An upper estimate of the noise variance of a measurement, (n,), from the finest details of y.

    Differences of high order along rows and columns of a blurred image contain almost only noise, whose standard
    deviation follows from their median absolute value. Infinite where y is no image, (n, C, H, W), or has masked
    pixels. Ours, after Donoho and Johnstone (1994), who use wavelets.
    """
    y, fully_observed = likelihood.y, likelihood.of_images(likelihood.forward.fully_observed)
    if not isinstance(y, Tensor) or y.ndim != 4 or y.is_complex() or min(y.shape[2:]) <= 2 * ORDER:
        return torch.full_like(fully_observed, torch.inf, dtype=working_dtype(y))
    details = y.diff(n=ORDER, dim=2).diff(n=ORDER, dim=3).flatten(1).to(working_dtype(y))
    std = details.abs().median(1).values / (MEDIAN * math.comb(2 * ORDER, ORDER))
    return torch.where(fully_observed, std.square(), torch.inf)


def estimated_variance(posterior: Posterior, x: Tensor, *, index: int = 0, most: float = SIGMAS[0]) -> Tensor:
    r"""
    An estimate of the noise variance of a measurement, (n,).

    The network denoises x with fresh noise that hides the noise of y. Its output :math:`x_1` is independent of that
    noise, so :math:`\|A(x_1) - y\|^2` is the noise plus the error of the network. The error is measured where the
    truth is known: from :math:`x_1` with fresh noise the network makes :math:`x_2`, with an error of
    :math:`\|A(x_2) - A(x_1)\|^2`. The difference is the noise. Lower levels of fresh noise are tried as long as they
    still hide the noise found, since the network errs less there. At most ten network calls.

    :param torch.Tensor x: the current images in [0, 1], (n, C, H, W).
    :param int index: of the first of two draws of fresh noise.
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
    """The estimate at one level of fresh noise, (n,): the residual variance less that of the network's error."""
    likelihood, level = posterior.likelihood, posterior.prior.level(2 * sigma)
    images = [x]
    for noise in fresh:
        z = level.signal * posterior.prior.encode(images[-1]) + level.noise * noise
        images.append(posterior.denoised(z, level))
    once, twice = (likelihood.forward(image, likelihood.rows) for image in images[1:])

    def variance(r: Measurements) -> Tensor:
        return likelihood.forward.observed_energy(r, likelihood.rows) / likelihood.observed

    residual = variance(once - likelihood.y)
    return torch.maximum(residual - variance(twice - once), LEAST * residual)
