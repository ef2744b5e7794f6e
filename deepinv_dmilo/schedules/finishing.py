"""Finishing steps after the last level: the posterior mean, and a sparse deviation from the prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements, parts, real
from deepinv_dmilo.likelihood.noise import same_noise
from deepinv_dmilo.likelihood.wiener import mean_lmmse_error
from deepinv_dmilo.optim.descent import proximal_point, sparse_deviation
from deepinv_dmilo.posterior.noise_estimation import with_noise_at
from deepinv_dmilo.posterior.posterior import Posterior

# Standard deviation of the image error, in [0, 1], in the proximal steps; larger where both the noise and the LMMSE
# error are: ours.
IMAGE_ERROR = 0.1
LAST_STEPS = 15  # L-BFGS steps of the proximal step: ours
#: evaluations of A of the posterior mean; a sparse deviation mostly takes few
EVALUATIONS_OF_FINISHING = 2 * LAST_STEPS
STEPS_PER_OCTAVE = 32  # grid of the noise levels given to the network; measured in docs/lab-book/levels.md


@dataclass(frozen=True)
class PosteriorMean:
    """
    An approximate posterior mean: a proximal step on the measurements, then one network call as a denoiser.

    A level ends at a mode of the posterior, and a denoiser returns means. The noise that the proximal step transfers
    from y to the image is measured by repeating it with fresh noise added to y. The result is not clamped before it is
    denoised, since a denoiser expects zero-mean noise also in black and white areas. Where the image is well
    determined, the step has no proximal term: the denoiser gets the least squares solution.

    :param bool well_determined: the LMMSE error is hardly larger than the noise.
    """

    well_determined: bool = False

    def __call__(self, posterior: Posterior, x: Tensor) -> Tensor:
        """
        Move images towards the posterior mean.

        :param torch.Tensor x: images in [0, 1], (n, C, H, W).
        """
        posterior = with_noise_at(posterior, x, again=True)
        prior, likelihood = posterior.prior, posterior.likelihood
        none, free = torch.zeros_like(x[:, 0, 0, 0]), (-torch.inf, torch.inf)
        penalty = none if self.well_determined else 1 / _image_error(posterior, x).square()
        noisy, noisier = (
            proximal_point(x, posterior.with_energy(one.gaussian_at(x)), penalty=penalty, steps=LAST_STEPS, limits=free)
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
        objective = posterior.with_energy(likelihood)
        deviation = sparse_deviation(objective, x, self.threshold * slope, 1 / slope**2)
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


def _image_error(posterior: Posterior, x: Tensor) -> Tensor:
    """
    The standard deviation of the image error in the proximal step, (n,).

    ``IMAGE_ERROR``, or the noise level of y where that is larger, capped by the mean LMMSE error: with a weaker
    proximal term the step would fit noise at the few measured frequencies, and the denoiser expects white noise.
    """
    likelihood, error = posterior.likelihood, torch.full_like(x[:, 0, 0, 0], IMAGE_ERROR)
    if not likelihood.forward.is_known_linear:
        return error
    variance = likelihood.mean_variance(x)
    noise = (variance / likelihood.squared_norm).sqrt()
    if (noise > error).any():
        noise = torch.minimum(noise, mean_lmmse_error(likelihood.gaussian(variance), x))
    return torch.maximum(error, noise)
