"""What follows the last level: from the most probable image to the mean, and a sparse deviation from the prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.measurements import Measurements, parts, real
from deepinv_dmilo.likelihood.noise import same_noise
from deepinv_dmilo.likelihood.wiener import mean_lmmse_error
from deepinv_dmilo.optim.descent import proximal_point, sparse_deviation
from deepinv_dmilo.posterior.noise_estimation import with_noise_at
from deepinv_dmilo.posterior.posterior import Posterior

# The error, in [0, 1], that steps towards the measurements assume the image so far to have at most; here more, if the
# noise of the measurements is and they leave as much open: ours.
IMAGE_ERROR = 0.1
LAST_STEPS = 15  # towards the measurements: ours
STEPS_PER_OCTAVE = 32  # of the noise that the network is given; measured in docs/defaults.md


@dataclass(frozen=True)
class PosteriorMean:
    """
    Steps towards the measurements, and the noise that they let through denoised by one call.

    A level ends at a most probable image, which is less than the mean of the images that go with y: the network
    as a denoiser gives means. How much noise the steps let through is seen on measurements with fresh noise; it is
    not clamped, since a denoiser expects noise about its mean in what is black or white, too. Where the image is well
    determined, the steps go all the way, and it is they that are denoised.

    :param bool well_determined: the measurements leave open little more than their noise.
    """

    well_determined: bool = False

    def __call__(self, posterior: Posterior, x: Tensor) -> Tensor:
        """
        Means of most probable images.

        :param torch.Tensor x: images, (n, C, H, W).
        """
        posterior = with_noise_at(posterior, x, again=True)
        prior, likelihood = posterior.prior, posterior.likelihood
        free = torch.zeros_like(x[:, 0, 0, 0])
        penalty = free if self.well_determined else 1 / _image_error(posterior, x).square()
        noisy, noisier = (
            proximal_point(x, one.gaussian_at(x), penalty=penalty, steps=LAST_STEPS, limits=(-torch.inf, torch.inf))
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
    The image may deviate sparsely from the prior.

    :param float threshold: where it does, the objective falls by more than this many standard deviations of its noise.
    """

    threshold: float

    def __call__(self, posterior: Posterior, x: Tensor) -> Tensor:
        """
        Images with their deviations.

        :param torch.Tensor x: images, (n, C, H, W).
        """
        likelihood = posterior.likelihood
        if isinstance(likelihood, Gaussian):
            is_guess = likelihood.source == "estimated"
            variance = likelihood.residual_variance(x) if is_guess else likelihood.simulated_at(x).variance
            likelihood = likelihood.gaussian(variance)
        variance = likelihood.largest_variance(x).clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
        # Noise alone has a gradient of this root mean square, at most, in a pixel.
        slope = (likelihood.squared_norm / variance).sqrt()
        deviation = sparse_deviation(likelihood, x, self.threshold * slope, 1 / slope**2)
        return (x + deviation).clamp(*posterior.prior.limits)


def rounded_down(noise: Tensor) -> list[float]:
    """
    The noise of each image, (n,), as the network is given it, rounded down by up to 2 %.

    So that images whose noise differs by rounding, those of one mask, go through the network together. Down, since a
    network that is given too much takes details for noise.
    """
    return [2.0 ** (step / STEPS_PER_OCTAVE) for step in (STEPS_PER_OCTAVE * noise.log2()).floor().tolist()]


def _standard_noise(y: Measurements) -> Measurements:
    return same_noise(y, torch.ones_like(real(parts(y)[0])[:, 0]))


def _image_error(posterior: Posterior, x: Tensor) -> Tensor:
    """
    The error of the images so far, (n,), that the steps assume.

    Where y itself errs more, so may the image: held so, that is not amplified. But an image errs by no more than its
    measurements leave open of it: held by less, the steps follow noise in the few frequencies that are measured, and
    the network is given noise in all of them.
    """
    likelihood, error = posterior.likelihood, torch.full_like(x[:, 0, 0, 0], IMAGE_ERROR)
    if not likelihood.forward.is_known_linear:
        return error
    variance = likelihood.mean_variance(x)
    noise = (variance / likelihood.squared_norm).sqrt()
    if (noise > error).any():
        noise = torch.minimum(noise, mean_lmmse_error(likelihood.gaussian(variance), x))
    return torch.maximum(error, noise)
