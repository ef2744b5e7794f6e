"""From the most probable image towards the mean of those that go with the measurements."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.wiener import error_left_open
from deepinv_dmilo.methods.run import Run

# The error, in [0, 1], that steps towards the measurements assume the image so far to have at most; here more, if the
# noise of the measurements is and they leave as much open: ours.
IMAGE_ERROR = 0.1
LAST_STEPS = 15  # towards the measurements: ours
STEPS_PER_OCTAVE = 32  # of the noise that the network is told; measured in docs/defaults.md


def told(noise: Tensor) -> list[float]:
    """
    The noise of each image, (n,), as the network is told it, rounded down by up to 2 %.

    So that images whose noise differs by rounding, those of one mask, go through the network together. Down, since a
    network that is told too much takes details for noise.
    """
    return [2.0 ** (step / STEPS_PER_OCTAVE) for step in (STEPS_PER_OCTAVE * noise.log2()).floor().tolist()]


def mean_from_mode(run: Run, x: Tensor, variance: Tensor) -> Tensor:
    """
    Steps towards the measurements, and the noise that they let through denoised by one call.

    A level ends at a most probable image, which is less than the mean of the images that go with y: the network
    as a denoiser gives means. How much noise the steps let through is seen on measurements with fresh noise; it is
    not clamped, since a denoiser expects noise about its mean in what is black or white, too. Where measurements
    leave open little more than their noise, the steps go all the way, and it is they that are denoised.

    :param torch.Tensor x: images, (S * B, C, H, W).
    :param torch.Tensor variance: of the noise of a measurement, (S * B,).
    """
    held, error = ~run.determined.repeat(run.num_samples), _image_error(run, x, variance)
    squares, pull = partial(run.observation.squares, x, variance), held * variance / error**2
    how: dict[str, Any] = {"pull": pull, "steps": LAST_STEPS, "limits": (-torch.inf, torch.inf)}
    noisy, noisier = (run.descend(x, misfit=squares(fresh_noise=fresh), **how) for fresh in (False, True))
    noise = (noisier - noisy).square().flatten(1).mean(1).sqrt()
    levels = [run.prior.level(2 * sigma) for sigma in told(noise)]
    means = x.clone()
    for level in set(levels):
        rows = torch.tensor([k for k, v in enumerate(levels) if v == level], device=x.device)
        means[rows] = run.denoised(level.signal * run.prior.encode(noisy[rows]), level, rows)
    return means


def _image_error(run: Run, x: Tensor, variance: Tensor) -> Tensor:
    """
    The error of the images so far, (S * B,), that the steps assume.

    Where y itself errs more, so may the image: held so, that is not amplified. But an image errs by no more than its
    measurements leave open of it: held by less, the steps follow noise in the few frequencies that are measured, and
    the network is told of noise in all of them.
    """
    operator, error = run.observation.operator, torch.full_like(variance, IMAGE_ERROR)
    if not operator.is_known_linear:
        return error
    noise = (variance / operator.squared_gain.repeat(run.num_samples)).sqrt()
    if (noise > error).any():
        noise = torch.minimum(noise, error_left_open(run.observation.data, x, variance))
    return torch.maximum(error, noise)
