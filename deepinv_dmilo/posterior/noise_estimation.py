"""The noise of measurements that nobody told, as the network sees it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements, working_dtype
from deepinv_dmilo.likelihood.observation import Observation
from deepinv_dmilo.methods.run import Run

# All ours.
LOWER = (0.2, 0.07, 0.02, 0.007)  # noise that is looked at below the first, in [0, 1]
SURE = 0.5  # of fresh noise, that noise in y hides in at most
WORTH = 0.75  # of less fresh noise, that noise found with more may be for it to be tried
LEAST = 0.01  # of what the network leaves unexplained, that is noise
ORDER = 8  # of differences that leave noise alone
MEDIAN = 0.6745  # of the modulus of a standard normal number


def finest_variance(observation: Observation) -> Tensor:
    """
    The variance of the noise in a measurement, or more, (S * B,): that in the finest details of y, which is a picture.

    A blur leaves nothing of the image in differences of a high order along rows and columns, and of white noise its
    part: the median of their modulus is that of the noise, whatever the image and the blur. Infinite where y is no
    picture, (B, C, H, W), or has pixels that do not depend on the image. Ours, after Donoho and Johnstone (1994), who
    take wavelets.
    """
    y = observation.y
    if not isinstance(y, Tensor) or y.ndim != 4 or y.is_complex() or min(y.shape[2:]) <= 2 * ORDER:
        return torch.full_like(observation.data.rows, torch.inf, dtype=working_dtype(y))
    details = y.diff(n=ORDER, dim=2).diff(n=ORDER, dim=3).flatten(1).to(working_dtype(y))
    std = details.abs().median(1).values / (MEDIAN * math.comb(2 * ORDER, ORDER))
    return torch.where(observation.reaches_all, std.square(), torch.inf).repeat(observation.num_samples)


def seen_variance(run: Run, x: Tensor, sigma: float) -> Tensor:
    r"""
    About the variance of the noise in a measurement, (S * B,).

    With fresh noise on the image so far, more than that of the measurements, the network gives an image :math:`x_1`
    that does not know the noise in y: :math:`\|A(x_1) - y\|^2` is that noise and the network's own error. How large
    the error is, is seen where the truth is known: of :math:`x_1` with fresh noise it makes :math:`x_2`, and errs by
    :math:`\|A(x_2) - A(x_1)\|^2`. The difference is the noise, if the fresh noise hides it; then less is
    tried, since the network errs less, and counts where it still hides what is found. Ten forward passes at most.

    :param torch.Tensor x: the images so far, (S * B, C, H, W).
    :param float sigma: standard deviation of the first fresh noise, in [0, 1].
    """
    operator, data = run.observation.operator, run.observation.data
    gain, reached = (t.repeat(run.num_samples) for t in (operator.squared_gain, operator.reached))
    fresh = run.noise(), run.noise()  # drawn whether needed or not, so that a batch equals its images one by one
    seen, rows = torch.full_like(gain, torch.inf), torch.arange(len(x), device=x.device)

    def denoised(x: Tensor, fresh: Tensor) -> Tensor:
        return run.denoised(level.signal * run.prior.encode(x) + level.noise * fresh[rows], level, rows)

    def energy(r: Measurements) -> Tensor:
        return operator.reached_energy(r, data.rows[rows]) / reached[rows]

    for noise in (sigma, *(lower for lower in LOWER if lower < sigma)):
        rows = rows if noise == sigma else rows[seen[rows] < (WORTH * noise) ** 2 * gain[rows]]
        if not len(rows):
            break
        level, here = run.prior.level(2 * noise), data.select(rows)
        once = denoised(x[rows], fresh[0])
        twice = denoised(once, fresh[1])
        rest = energy(here.residual(once))
        error = energy(operator(twice, here.rows) - operator(once, here.rows))
        found = torch.maximum(rest - error, LEAST * rest)
        is_hidden = found < (SURE * noise) ** 2 * gain[rows]
        seen[rows] = torch.where(is_hidden | (noise == sigma), found, seen[rows])
        rows = rows[is_hidden]
    return seen
