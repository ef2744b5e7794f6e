"""Finishing steps after the last level: the posterior mean, and a sparse deviation from the prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements, parts, real
from deepinv_dmilo.likelihood.noise import same_noise
from deepinv_dmilo.optim.descent import proximal_point, sparse_deviation
from deepinv_dmilo.posterior.noise_estimation import with_noise_at
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.utils.rows import column

# Bounds of the standard deviation of the image error, in [0, 1], in the proximal step: ours. With the lower one alone,
# photons of gain 1/5 lose 0.9 dB (photos); with 0.2 alone, deblurring 0.6 dB (photos, noise 0.05).
IMAGE_ERROR, MOST_ERROR = 0.1, 0.3
LAST_STEPS = 15  # L-BFGS steps of the proximal step: ours
STEPS_PER_OCTAVE = 32  # grid of the noise levels given to the network; measured in docs/defaults.md


@dataclass(frozen=True)
class PosteriorMean:
    """
    An approximate posterior mean: a proximal step on the measurements, then one network call as a denoiser.

    A level ends at a mode of the posterior, and a denoiser returns means. The noise that the proximal step transfers
    from y to the image is measured by repeating it with fresh noise added to y. The result is not clamped before it is
    denoised, since a denoiser expects zero-mean noise also in black and white areas.
    """

    def __call__(self, posterior: Posterior, x: Tensor) -> Tensor:
        """
        Move images towards the posterior mean.

        :param torch.Tensor x: images in [0, 1], (n, C, H, W).
        """
        posterior = with_noise_at(posterior, x, again=True)
        prior, likelihood = posterior.prior, posterior.likelihood
        spectrum = column(_image_error(likelihood, x).square(), x)  # white, as the denoiser expects the noise to be
        noisy, noisier = (
            proximal_point(x, one.gaussian_at(x), spectrum=spectrum, steps=LAST_STEPS, limits=(-torch.inf, torch.inf))
            for one in (likelihood, likelihood.perturbed(x, _standard_noise))
        )
        noise = (noisier - noisy).square().flatten(1).mean(1).sqrt()
        levels = [prior.level(2 * sigma) for sigma in rounded_down(noise)]
        means = x.clone()
        for level in set(levels):
            rows = torch.tensor([k for k, v in enumerate(levels) if v == level], device=x.device)
            means[rows] = posterior.select(rows).denoised(level.signal * prior.encode(noisy[rows]), level)
        return means


@dataclass(frozen=True)
class SparseDeviation:
    """
    Add a sparse deviation from the prior to the images.

    :param float threshold: a pixel deviates where the gradient of the negative log-likelihood exceeds this many
        standard deviations of its noise.
    """

    threshold: float

    def __call__(self, posterior: Posterior, x: Tensor) -> Tensor:
        """
        Add the deviations.

        :param torch.Tensor x: images in [0, 1], (n, C, H, W).
        """
        likelihood = posterior.likelihood.at(x)
        variance = likelihood.largest_variance(x).clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
        # Upper bound of the root mean square of the gradient in a pixel that is due to noise alone.
        slope = (likelihood.squared_norm / variance).sqrt()
        deviation = sparse_deviation(likelihood, x, self.threshold * slope, 1 / slope**2)
        return (x + deviation).clamp(*posterior.prior.limits)


def rounded_down(noise: Tensor) -> list[float]:
    """
    The noise level of each image, (n,), rounded down by up to 2 % to a grid.

    Images whose noise levels differ only by rounding errors then share a network call. It is rounded down because a
    denoiser removes details where its noise level is too high.
    """
    return [2.0 ** (step / STEPS_PER_OCTAVE) for step in (STEPS_PER_OCTAVE * noise.log2()).floor().tolist()]


def _standard_noise(y: Measurements) -> Measurements:
    return same_noise(y, torch.ones_like(real(parts(y)[0])[:, 0]))


def _image_error(likelihood: Likelihood, x: Tensor) -> Tensor:
    """The noise level of y within bounds, (n,); the lower bound for nonlinear A, whose norm is not exact."""
    noise = (likelihood.mean_variance(x) / likelihood.squared_norm).sqrt()
    return noise.clamp(IMAGE_ERROR, MOST_ERROR if likelihood.forward.is_known_linear else IMAGE_ERROR)
