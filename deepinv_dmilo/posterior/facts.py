"""The facts about each image and its measurements from which its plan is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import mean_energy
from deepinv_dmilo.likelihood.wiener import worst_lmmse_error
from deepinv_dmilo.posterior.posterior import Posterior


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
    """

    linear: bool
    blind: bool
    open_boundary: bool
    fully_observed: bool
    gaussian: bool
    relative_noise: float
    image_noise: float
    lmmse_error: float

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
    )
    has_open_boundary = posterior.nuisance is not None and posterior.nuisance.open_boundary
    shared = forward.is_known_linear, posterior.nuisance is not None, has_open_boundary
    return [
        Facts(*shared, fully_observed, likelihood.is_gaussian, *numbers)
        for fully_observed, *numbers in zip(*(t.tolist() for t in columns), strict=True)
    ]
