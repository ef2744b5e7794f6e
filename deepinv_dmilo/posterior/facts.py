"""What a plan is made from: a few facts about each image and its measurements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.measurements import mean_energy
from deepinv_dmilo.likelihood.wiener import worst_lmmse_error
from deepinv_dmilo.posterior.posterior import Posterior

# The image is well determined where less is open than so many times the noise in it, and would be of little noise, in
# [0, 1]; measured in docs/defaults.md.
OPEN, LITTLE_NOISE = 1.5, 0.02


@dataclass(frozen=True)
class Facts:
    """
    Of one image.

    :param bool linear: A is linear, and nothing of it is unknown.
    :param bool blind: parameters of the physics are unknown.
    :param bool open_boundary: what is unknown is a camera's blur, whose measurements end inside the image.
    :param bool fully_observed: every measurement changes with the image: none is masked.
    :param bool gaussian: the noise is Gaussian.
    :param float relative_noise: root mean square of the noise, of the noisiest measurement, over that of y.
    :param float image_noise: the same noise as that of an image in [0, 1]: over the norm of A.
    :param float lmmse_error: standard deviation of white noise that hides all that the measurements leave open.
    :param bool well_determined: the measurements leave open little more than their noise.
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
        """A is not linear, or not known."""
        return not self.linear


def facts_of(posterior: Posterior, x: Tensor, *, with_error: bool = True) -> list[Facts]:
    """
    The facts of each image; those of what the measurements leave open cost some sixty evaluations of A.

    :param Posterior posterior: of all samples of B images, with the noise decided.
    :param torch.Tensor x: first images, (S * B, C, H, W).
    :param bool with_error: False: the error is infinite, all may be open.
    """
    first = posterior.first_samples
    likelihood, forward, x = first.likelihood, first.likelihood.forward, x[: len(first)]
    variance = likelihood.largest_variance(x)
    noise = (variance / likelihood.squared_norm).sqrt()
    error = torch.full_like(noise, torch.inf)
    if with_error:
        error = worst_lmmse_error(likelihood.gaussian(variance), x)
    columns = (
        likelihood.of_images(forward.fully_observed),
        (variance / mean_energy(likelihood.y)).sqrt(),
        noise,
        error,
        _well_determined(first, x, noise, error),
    )
    is_camera = posterior.nuisance is not None and posterior.nuisance.open_boundary
    of_all = forward.is_known_linear, posterior.nuisance is not None, is_camera
    return [
        Facts(*of_all, fully_observed, likelihood.is_gaussian, *numbers)
        for fully_observed, *numbers in zip(*(t.tolist() for t in columns), strict=True)
    ]


def _well_determined(posterior: Posterior, x: Tensor, noise: Tensor, error: Tensor) -> Tensor:
    """Whether measurements leave open little more than their noise, (B,); of linear A and Gaussian noise alone."""
    likelihood = posterior.likelihood
    # Else the norm is none, or the noise not of one size, as the second estimate takes it to be.
    if not isinstance(likelihood, Gaussian) or not likelihood.forward.is_known_linear or (error > OPEN * noise).all():
        return torch.zeros_like(noise, dtype=torch.bool)
    little = noise.clamp(max=LITTLE_NOISE)  # much noise would hide what A does not transmit
    open_to_little = worst_lmmse_error(likelihood.gaussian(little.square() * likelihood.squared_norm), x)
    return open_to_little <= OPEN * little
