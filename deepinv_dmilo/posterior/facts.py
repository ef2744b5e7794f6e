"""The facts about each image and its measurements from which its plan is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.measurements import mean_energy
from deepinv_dmilo.likelihood.wiener import worst_lmmse_error
from deepinv_dmilo.posterior.posterior import Posterior

# An image is well determined if its LMMSE error is at most this many times its noise level, and would be at this noise
# level in [0, 1], too; measured in docs/lab-book/levels.md.
WELL_DETERMINED, LOW_NOISE = 1.5, 0.02


@dataclass(frozen=True)
class Facts:
    """
    The facts about one image.

    :param bool linear: A is linear and known.
    :param bool blind: the physics has nuisance parameters.
    :param bool open_boundary: they are a blur kernel without padding, as in a camera: y ends inside the image.
    :param bool fully_observed: every measurement depends on the image: none is masked.
    :param bool gaussian: the noise is Gaussian.
    :param float relative_noise: root mean square of the noise of the noisiest measurement, relative to that of y.
    :param float image_noise: its standard deviation over the norm of A: the noise level of an image in [0, 1].
    :param float lmmse_error: the worst LMMSE error over frequencies and places, a standard deviation in [0, 1].
    :param bool well_determined: the LMMSE error is hardly larger than the noise.
    """

    linear: bool
    blind: bool
    open_boundary: bool
    fully_observed: bool
    gaussian: bool
    relative_noise: float
    image_noise: float
    lmmse_error: float
    well_determined: bool

    @property
    def nonlinear(self) -> bool:
        """A is nonlinear, or has nuisance parameters."""
        return not self.linear


def facts_of(posterior: Posterior, x: Tensor, *, with_error: bool = True) -> list[Facts]:
    """
    The facts about each of B images. The LMMSE error costs about sixty evaluations of A.

    :param Posterior posterior: of all samples of the images, with the noise level decided.
    :param torch.Tensor x: first images in [0, 1], (S * B, C, H, W).
    :param bool with_error: False: the LMMSE error is not computed, and infinite.
    """
    first = posterior.first_samples
    likelihood, forward, x = first.likelihood, first.likelihood.forward, x[: len(first)]
    variance = likelihood.largest_variance(x)
    noise = (variance / likelihood.squared_norm).sqrt()
    error = worst_lmmse_error(likelihood.gaussian(variance), x) if with_error else torch.full_like(noise, torch.inf)
    columns = (
        likelihood.of_images(forward.fully_observed),
        (variance / mean_energy(likelihood.y)).sqrt(),
        noise,
        error,
        _well_determined(first, x, noise, error),
    )
    has_open_boundary = posterior.nuisance is not None and posterior.nuisance.open_boundary
    shared = forward.is_known_linear, posterior.nuisance is not None, has_open_boundary
    return [
        Facts(*shared, fully_observed, likelihood.is_gaussian, *numbers)
        for fully_observed, *numbers in zip(*(t.tolist() for t in columns), strict=True)
    ]


def _well_determined(posterior: Posterior, x: Tensor, noise: Tensor, error: Tensor) -> Tensor:
    """Whether the LMMSE error is hardly larger than the noise, (B,), for linear A and Gaussian noise."""
    likelihood, forward = posterior.likelihood, posterior.likelihood.forward
    if not isinstance(likelihood, Gaussian) or not forward.is_known_linear or (error > WELL_DETERMINED * noise).all():
        return torch.zeros_like(noise, dtype=torch.bool)
    low = noise.clamp(max=LOW_NOISE)  # high noise would hide frequencies that A does not transmit
    error_at_low = worst_lmmse_error(likelihood.gaussian(low.square() * likelihood.squared_norm), x)
    return error_at_low <= WELL_DETERMINED * low
